"""A small server on this machine that answers chat completions as a test wants them."""

from __future__ import annotations

import base64
import io
import json
import math
import threading
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

#: Status, body and further headers of an answer.
Answer = tuple[int, Any, dict[str, str]]


class Server(ThreadingHTTPServer):
    """Answers with `answer(request)` in threads; `asked` holds each request's body, `headers` its headers."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, answer: Callable[[dict[str, Any]], Answer]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer = answer
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.most_at_once = self._now = 0
        self._lock = threading.Lock()
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def entered(self, by: int) -> None:
        with self._lock:
            self._now += by
            self.most_at_once = max(self.most_at_once, self._now)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is what some tests are about."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        self.server.entered(1)
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body)
        self.server.headers.append({**self.headers, "path": self.path})
        status, content, headers = self.server.answer(body)
        self.server.entered(-1)
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def picture(body: dict[str, Any]) -> Any:
    """The PIL image of a request."""
    from PIL import Image

    address: str = next(p["image_url"]["url"] for p in body["messages"][0]["content"] if p["type"] == "image_url")
    return Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))


def question(body: dict[str, Any]) -> str:
    text: str = next(part["text"] for part in body["messages"][0]["content"] if part["type"] == "text")
    return text


def brightness(body: dict[str, Any]) -> float:
    """The mean of a request's image, 0..1."""
    shrunk = picture(body).convert("L").resize((1, 1), resample=4)  # 4: the mean of all pixels
    return float(shrunk.getpixel((0, 0))) / 255


def words(probabilities: dict[str, float]) -> Answer:
    """An answer of one word with its top_logprobs."""
    top = [{"token": word, "logprob": math.log(p) if p else -9999.0} for word, p in probabilities.items()]
    chosen = max(probabilities, key=lambda word: probabilities[word])
    content = [{"token": chosen, "logprob": math.log(probabilities[chosen]), "top_logprobs": top}]
    return 200, {"choices": [{"message": {"content": chosen}, "logprobs": {"content": content}}]}, {}


def text(content: Any) -> Answer:
    """An answer of text."""
    return 200, {"choices": [{"message": {"content": content}, "finish_reason": "stop"}]}, {}


def grades(scores: Sequence[float], overall: float = 0) -> str:
    """The JSON of the five aspects."""
    names = ("accuracy", "creativity", "visual_quality_and_realism", "consistency", "emotional_resonance", "overall")
    return json.dumps({n: {"explanation": "So.", "score": s} for n, s in zip(names, [*scores, overall], strict=True)})
