"""A real ComfyUI server in a process of its own, with this pack loaded in place, driven over HTTP.

The server is the host's own `main.py`; nothing of it is replaced. Standard library only, but for `Listener`, which
needs the aiohttp that ComfyUI itself requires.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from pack.run import pack_arguments

PACK = Path(__file__).resolve().parents[1]
FOLDERS = ("custom_nodes", "input", "models", "output", "temp", "user")

# This machine's own server must be reached even where the environment names a proxy for everything.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class HostError(Exception):
    """The server did not start, has died, did not answer in time, refused a prompt, or a prompt failed in it."""


def free_port() -> int:
    """Return a loopback port that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class HostServer:
    """One ComfyUI process on a free loopback port; a context manager that starts it and ends it.

    `host` is a ComfyUI folder and `base` an existing folder that takes all that the server writes. `packs` are the
    node packs to load, this one by default. `arguments` are further ones for ComfyUI's command line, `environment` is
    added to this process's own.
    """

    def __init__(
        self,
        host: Path,
        base: Path,
        *,
        packs: Sequence[Path] = (PACK,),
        cpu: bool = True,
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        start_timeout: float = 400.0,
    ) -> None:
        self.host = host
        self.base = base.resolve()
        self.packs = tuple(packs)
        self.cpu = cpu
        self.arguments = tuple(arguments)
        self.environment = dict(environment or {})
        self.start_timeout = start_timeout
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    # ---- the process

    @property
    def url(self) -> str:
        """The address of the page, without a slash at its end."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def output_dir(self) -> Path:
        """The folder that output nodes write to."""
        return self.base / "output"

    @property
    def input_dir(self) -> Path:
        """The folder that input nodes read from."""
        return self.base / "input"

    @property
    def models_dir(self) -> Path:
        """The folder that model loaders list, empty unless a test fills it."""
        return self.base / "models"

    def log(self) -> str:
        """Return all that the server has printed so far."""
        path = self.base / "server.log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def start(self) -> None:
        """Start the server and return once it answers; raises HostError with the end of its log if it does not."""
        for folder in FOLDERS:
            (self.base / folder).mkdir(exist_ok=True)
        self.port = free_port()
        command = [
            sys.executable,
            str(self.host / "main.py"),
            *(["--cpu"] if self.cpu else []),
            *("--listen", "127.0.0.1", "--port", str(self.port), "--disable-auto-launch", "--disable-api-nodes"),
            *("--database-url", "sqlite:///:memory:", "--base-directory", str(self.base)),
            *pack_arguments(self.packs, self.base / "packs.yaml", self.base / "custom_nodes"),
            *self.arguments,
        ]
        # One thread each: several threads on a small loaded machine slow tiny models a hundredfold.
        fixed = {"PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
        environment = {"OMP_NUM_THREADS": "1", **os.environ, **fixed, **self.environment}
        with open(self.base / "server.log", "wb") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, cwd=self.base, env=environment
            )
        try:
            self._wait_until_up()
        except BaseException:
            self.stop()
            raise

    def _wait_until_up(self) -> None:
        deadline = time.monotonic() + self.start_timeout
        while True:
            try:
                self.get("/system_stats", timeout=5)
                return
            except (OSError, HostError):
                self.check_alive()
            if time.monotonic() > deadline:
                raise HostError(f"ComfyUI did not answer in {self.start_timeout:.0f} s.\n{self._tail()}")
            time.sleep(0.1)

    def stop(self) -> None:
        """End the server; does nothing when it is not running."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def kill(self) -> None:
        """End the server at once, as a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __enter__(self) -> HostServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def check_alive(self) -> None:
        """Raise HostError with the end of the log if the server has ended."""
        if self._process is None or self._process.poll() is not None:
            code = None if self._process is None else self._process.returncode
            raise HostError(f"ComfyUI is not running (exit code {code}).\n{self._tail()}")

    def _tail(self, lines: int = 60) -> str:
        return "\n".join(self.log().splitlines()[-lines:])

    # ---- HTTP

    def get(self, path: str, timeout: float = 60.0) -> bytes:
        """Return the body of GET `path`; raises HostError for any status but 200."""
        return self._request(urllib.request.Request(self.url + path), timeout)

    def get_json(self, path: str, timeout: float = 60.0) -> Any:
        """Return the parsed body of GET `path`."""
        return json.loads(self.get(path, timeout))

    def post(self, path: str, content: Any = None, timeout: float = 60.0) -> bytes:
        """Send `content` as JSON to POST `path` and return the body of the answer."""
        body = json.dumps({} if content is None else content).encode()
        return self._request(
            urllib.request.Request(self.url + path, body, {"Content-Type": "application/json"}), timeout
        )

    def _request(self, request: urllib.request.Request, timeout: float) -> bytes:
        try:
            with _DIRECT.open(request, timeout=timeout) as answer:
                return bytes(answer.read())
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace")
            raise HostError(f"{request.get_method()} {request.selector}: status {error.code}: {text}") from None

    def object_info(self, node: str | None = None) -> dict[str, Any]:
        """Return ComfyUI's description of one node class, or of all of them by id."""
        if node is None:
            return dict(self.get_json("/object_info"))
        found = self.get_json("/object_info/" + urllib.parse.quote(node))
        if node not in found:
            raise HostError(f"ComfyUI knows no node {node!r}.\n{self._tail()}")
        return dict(found[node])

    def queue(
        self, prompt: dict[str, Any], client_id: str | None = None, extra_data: dict[str, Any] | None = None
    ) -> str:
        """Queue a prompt in API form and return its id; raises HostError, with the reasons, if it is refused."""
        content: dict[str, Any] = {"prompt": prompt}
        if client_id is not None:
            content["client_id"] = client_id
        if extra_data is not None:
            content["extra_data"] = extra_data
        return str(json.loads(self.post("/prompt", content))["prompt_id"])

    def wait(self, prompt_id: str, timeout: float = 120.0) -> dict[str, Any]:
        """Return the history entry of a prompt once it has ended, well or not; raises HostError after `timeout` s."""
        deadline = time.monotonic() + timeout
        while True:
            history = self.get_json(f"/history/{prompt_id}")
            if prompt_id in history:
                return dict(history[prompt_id])
            self.check_alive()
            if time.monotonic() > deadline:
                raise HostError(f"prompt {prompt_id} did not end in {timeout:.0f} s.\n{self._tail()}")
            time.sleep(0.05)

    def run(self, prompt: dict[str, Any], timeout: float = 120.0) -> dict[str, Any]:
        """Queue a prompt, wait, and return its history entry; raises HostError, naming node and error, if it failed."""
        entry = self.wait(self.queue(prompt), timeout)
        if entry["status"]["status_str"] != "success":
            raise HostError(f"the prompt ended with {failure(entry) or 'no error message'}\n{self._tail()}")
        return entry

    def interrupt(self) -> None:
        """Press Cancel."""
        self.post("/interrupt")

    def view(self, image: dict[str, str]) -> bytes:
        """Return the file of one entry of `outputs[node]["images"]`."""
        return self.get("/view?" + urllib.parse.urlencode(image))

    def listen(self, client_id: str | None = None, preview_metadata: bool = False) -> Listener:
        """Return a websocket listener (a context manager); pass its `client_id` to `queue` to get its messages."""
        return Listener(self.url, client_id or uuid.uuid4().hex, preview_metadata)


def failure(entry: dict[str, Any]) -> str | None:
    """Return what a history entry says about its failure or interruption, in one line; None if it succeeded."""
    for kind, content in entry["status"]["messages"]:
        if kind == "execution_error":
            return (
                f"an error in node {content['node_id']} ({content['node_type']}): "
                f"{content['exception_type']}: {content['exception_message'].strip()}"
            )
        if kind == "execution_interrupted":
            return f"an interruption in node {content['node_id']} ({content['node_type']})"
    return None


class Listener:
    """Collects what ComfyUI sends to one browser, from a thread of its own, between `__enter__` and `__exit__`.

    `messages` holds (type, data) in order of arrival: data is a dict, or bytes for the type "binary".
    """

    def __init__(self, url: str, client_id: str, preview_metadata: bool = False) -> None:
        self.client_id = client_id
        self.messages: list[tuple[str, Any]] = []
        self._address = f"{url}/ws?clientId={client_id}"
        self._preview_metadata = preview_metadata
        self._changed = threading.Condition()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._error: BaseException | None = None
        self._connected = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Listener:
        self._thread.start()
        with self._changed:
            self._changed.wait_for(lambda: self._connected or self._error is not None, timeout=30)
        if not self._connected:
            raise HostError(f"no websocket at {self._address}: {self._error}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def of_type(self, kind: str) -> list[Any]:
        """Return the data of all messages of one type so far."""
        with self._changed:
            return [data for found, data in self.messages if found == kind]

    def wait_for(self, kind: str, accept: Callable[[Any], bool] = lambda data: True, timeout: float = 60.0) -> Any:
        """Return the data of the first message of this type that `accept` likes; raises HostError after `timeout` s."""

        def found() -> list[Any]:
            return [data for name, data in self.messages if name == kind and accept(data)]

        with self._changed:
            self._changed.wait_for(lambda: found() or self._error is not None, timeout)
            if not found():
                kinds = [name for name, _ in self.messages]
                raise HostError(f"no {kind!r} message in {timeout:.0f} s ({self._error}); there came {kinds}")
            return found()[0]

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._collect())
        except Exception as error:  # handed to the thread that waits, which raises it
            with self._changed:
                self._error = error
                self._changed.notify_all()
        finally:
            self._loop.close()

    async def _collect(self) -> None:
        import aiohttp

        async with aiohttp.ClientSession() as session, session.ws_connect(self._address, max_msg_size=0) as socket:
            if self._preview_metadata:
                await socket.send_json({"type": "feature_flags", "data": {"supports_preview_metadata": True}})
            with self._changed:
                self._connected = True
                self._changed.notify_all()
            stop = asyncio.ensure_future(self._stop.wait())
            while True:
                receive = asyncio.ensure_future(socket.receive())
                await asyncio.wait({stop, receive}, return_when=asyncio.FIRST_COMPLETED)
                if not receive.done():
                    receive.cancel()
                    return
                message = receive.result()
                if message.type == aiohttp.WSMsgType.TEXT:
                    content = json.loads(message.data)
                    item = (str(content["type"]), content.get("data"))
                elif message.type == aiohttp.WSMsgType.BINARY:
                    item = ("binary", message.data)
                else:
                    raise HostError("ComfyUI closed the websocket")
                with self._changed:
                    self.messages.append(item)
                    self._changed.notify_all()
