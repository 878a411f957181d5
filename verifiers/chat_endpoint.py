"""A server that speaks OpenAI's chat completions, asked over HTTP; and how its API key is kept a secret.

The key comes from an environment variable and goes into one header of one request. It is in no attribute, message,
note or log, and it is sent only to the host it belongs to: a workflow from the internet names the server and the
variable, and could otherwise send any secret of its reader anywhere.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import time
from collections.abc import Callable
from threading import Event
from typing import Any
from urllib.parse import SplitResult, urlsplit

from ..search.errors import SearchError

#: Seconds before the first repetition; each further one waits twice as long.
PAUSE = 0.5
#: The longest time to wait because a server asked for it.
LONGEST_PAUSE = 30.0
#: Bytes of an answer; a real one has a few thousand.
LARGEST = 4_000_000
#: The host of a key that has no variable of its own to say so.
HOSTS = {"OPENAI_API_KEY": "api.openai.com"}

# What secrets of well-known services begin with.
_SECRET = re.compile(
    r"(?<![A-Za-z0-9])(?:(?:(?:sk|pk|rk|xai|nvapi|key)-|(?:gsk|hf|r8)_|AIza)[A-Za-z0-9_-]{8,}|Bearer\s+\S{8,})"
)


class Unanswered(Exception):
    """The server answered, but not with something that judges this one image; the message says why."""


class ChatEndpoint:
    """The chat completions of `model` at `base_url`, such as https://api.openai.com/v1.

    `key_variable` names the environment variable with the API key; empty sends none. A request waits `timeout` seconds
    for its answer, and is repeated up to `retries` times, ever more slowly, when it cannot be made or the server is
    busy or broken (429, 5xx). Nothing is sent before `ask`. Raises SearchError for an address or a key variable that
    cannot be used.
    """

    def __init__(self, base_url: str, model: str, key_variable: str, timeout: float, retries: int) -> None:
        import requests

        refuse_secrets(base_url=base_url, model=model, api_key_variable=key_variable)
        self._requests = requests
        self._address = _address(base_url)
        self.host = self._address.hostname or ""
        self.model, self.key_variable = model, key_variable
        self.timeout, self.retries = timeout, retries
        self._key()  # says at once what is wrong with it

    def ask(self, body: dict[str, Any], stopped: Event) -> dict[str, Any]:
        """The server's answer to a request with the fields of `body`; gives up when `stopped` is set.

        Raises SearchError when the server cannot be reached or refuses the request, and Unanswered when the answer
        cannot be read or the server will not judge this image.
        """
        problem, pause = "", PAUSE
        for attempt in range(self.retries + 1):
            if attempt and stopped.wait(pause):
                break
            wished = PAUSE * 2.0**attempt
            try:
                status, asked_to_wait, text = self._post({"model": self.model, **body})
            except self._requests.Timeout:
                problem = f"timeout: {self.host} did not answer within {self.timeout:g} seconds"
            except self._requests.RequestException as error:
                problem = f"base_url: {self.host} could not be reached ({type(error).__name__})"
            else:
                if status == 200:
                    return _object(text)
                if status != 429 and status < 500:
                    raise self._refusal(status, text)
                problem = f"base_url: {self.host} is busy or broken (HTTP {status}{self._said(text)})"
                wished = max(wished, asked_to_wait)
            pause = min(wished, LONGEST_PAUSE)
        raise SearchError(
            f"{problem}, asked {self.retries + 1} times; see that the server runs, or change the base_url, timeout, "
            "retries or concurrency"
        )

    def _post(self, body: dict[str, Any]) -> tuple[int, float, bytes]:
        """Status, seconds the server asks to wait, and body of one answer."""
        key, deadline = self._key(), time.monotonic() + self.timeout

        # As a function and not a header, it also keeps requests from reading a password for the host from ~/.netrc.
        def sign(request: Any) -> Any:
            if key:
                request.headers["Authorization"] = f"Bearer {key}"
            return request

        # a proxy of the environment is for the internet, not for this machine
        direct: Any = {"http": None, "https": None, "all": None} if _is_here(self.host) else None
        with self._requests.post(
            self._address.geturl(), json=body, auth=sign, timeout=self.timeout, proxies=direct, stream=True,
            allow_redirects=False,
        ) as answer:  # fmt: skip
            text = b""
            for part in answer.iter_content(65536):
                text += part
                if len(text) > LARGEST:
                    raise Unanswered(f"the answer has more than {LARGEST} bytes")
                if time.monotonic() > deadline:
                    raise self._requests.Timeout
            return answer.status_code, _seconds(answer.headers.get("Retry-After", "")), text

    def _refusal(self, status: int, text: bytes) -> Exception:
        """What to raise for an answer that repeating would not change."""
        if 300 <= status < 400:
            return SearchError(
                f"base_url: {self.host} sends requests on to another address (HTTP {status}), where neither images nor "
                "key are sent; write the final address"
            )
        if status in (401, 403):
            with_key = f"refused the key in {self.key_variable}" if self.key_variable else "asks for an API key"
            return SearchError(
                f"api_key_variable: {self.host} {with_key} (HTTP {status}); put a valid key into an environment "
                "variable, write its name here and start ComfyUI again"
            )
        said = self._said(text)
        if status == 400 and re.search(rb"content.{0,2}(policy|filter)|safety|moderation", text, re.IGNORECASE):
            return Unanswered(f"the server will not look at it (HTTP {status}{said})")
        hint = "; most addresses end in /v1" if status == 404 else "; see model, mode and extra"
        return SearchError(f"base_url: {self.host} refused the request (HTTP {status}{said}){hint}")

    def _said(self, text: bytes) -> str:
        """The server's own words, short, without what looks like a secret: some servers repeat the key."""
        try:
            content = json.loads(text)
            inner = content.get("error", content)
            words = inner.get("message", "") if isinstance(inner, dict) else inner
        except (ValueError, AttributeError, RecursionError):
            return ""
        words = self.without_secrets(" ".join(str(words).split()))
        return f": {words[:200]}" if words else ""

    def without_secrets(self, text: str) -> str:
        """The text with the key, and all that looks like one, blacked out."""
        key = os.environ.get(self.key_variable, "").strip() if self.key_variable else ""
        return _SECRET.sub("***", text.replace(key, "***") if key else text)

    def _key(self) -> str:
        """The API key, or "" for none. Raises SearchError, never naming its value, when it may not be sent."""
        name = self.key_variable
        if not name:
            return ""
        if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", name):
            raise SearchError(
                "api_key_variable: expected the name of an environment variable in capitals, such as OPENAI_API_KEY; "
                "never write a key into a workflow: it is saved with it, and in every image"
            )
        key = os.environ.get(name, "").strip()
        if not key:
            raise SearchError(
                "api_key_variable: the environment variable of that name is not set or empty; set it before "
                "ComfyUI starts, or leave the widget empty for a server that needs no key"
            )
        if not key.isascii() or not key.isprintable() or " " in key:
            raise SearchError(f"api_key_variable: what {name} holds is no key: expected one word of plain characters")
        if _is_here(self.host):
            return key
        owner = os.environ.get(f"{name}_HOST", HOSTS.get(name, "")).strip().lower()
        if self.host != owner:
            raise SearchError(
                f"api_key_variable: the key in {name} may be sent to {owner or 'no host yet'}, and base_url names "
                f"{self.host}; if you trust it, set the environment variable {name}_HOST={self.host} before ComfyUI "
                "starts"
            )
        if self._address.scheme != "https" and not _is_private(self.host):
            raise SearchError("base_url: expected https:// where a key is sent over the internet")
        return key


def refuse_secrets(**widgets: str) -> None:
    """Raise SearchError, without its value, for a widget that holds what looks like an API key."""
    for name, text in widgets.items():
        if _SECRET.search(text):
            raise SearchError(
                f"{name}: this looks like an API key or holds one; workflows and images are saved with what is "
                "written here: delete it, put the key into an environment variable, and write the variable's name "
                "into api_key_variable"
            )


def _address(base_url: str) -> SplitResult:
    """The address of the chat completions below `base_url`."""
    wanted = "expected an address such as https://api.openai.com/v1 or http://127.0.0.1:8080/v1"
    try:
        parts = urlsplit(base_url.strip())
        parts.port  # noqa: B018  # raises for a number that is no port
        # nothing but a plain host: what is read as two hosts by two programs could lead a key astray
        plain = re.fullmatch(r"([\w.-]+|\[[\w:]+\])(:\d+)?", parts.netloc, re.ASCII)
        usable = parts.scheme in ("http", "https") and plain is not None
    except ValueError:
        raise SearchError(f"base_url: {wanted}") from None
    if parts.username is not None or parts.password is not None:
        raise SearchError(f"base_url: it holds a user name or password, which would be saved with the graph; {wanted}")
    if not usable or parts.query or parts.fragment or re.search(r"\s", base_url.strip()):
        raise SearchError(f"base_url: {wanted}, without ? and #")
    path = parts.path.rstrip("/").removesuffix("/chat/completions").rstrip("/")
    return parts._replace(path=f"{path}/chat/completions")


def _is_here(host: str) -> bool:
    """Whether a host is this machine."""
    return host == "localhost" or _of_ip(host, lambda ip: ip.is_loopback)


def _is_private(host: str) -> bool:
    """Whether a host is written as an address of the local network."""
    return _of_ip(host, lambda ip: ip.is_private)


def _of_ip(host: str, test: Callable[[Any], bool]) -> bool:
    try:
        return test(ipaddress.ip_address(host))
    except ValueError:
        return False


def _seconds(header: str) -> float:
    """The number in a Retry-After header, which may also be a date: that counts as none."""
    return float(header) if re.fullmatch(r"\d{1,6}(\.\d+)?", header.strip()) else 0.0


def _object(text: bytes) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        raise Unanswered("the answer is not JSON") from None
    if not isinstance(content, dict):
        raise Unanswered(f"the answer is a {type(content).__name__}, not an object")
    return content
