"""Fetching a file, against a server on this machine that can do all that real ones do, and what they do wrong."""

import hashlib
import os
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pack.search import SearchError
from pack.verifiers.download import fetch
from pack.verifiers.files import Download

CONTENT = bytes(range(256)) * 12_000  # 3,072,000 bytes: three chunks of a MiB, the last one not full
SHA256 = hashlib.sha256(CONTENT).hexdigest()
GIT = hashlib.sha1(b"blob 3072000\0" + CONTENT).hexdigest()


class Server:
    """A server of one file. What it does is set by its attributes; `asked` has the headers of every request."""

    def __init__(self) -> None:
        self.content, self.status, self.ranges, self.length = CONTENT, 200, True, True
        self.cut: int | None = None  # bytes after which the connection ends, once
        self.redirect, self.headers, self.redirect_headers = "", {}, {}
        self.asked: list[dict[str, str]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.asked.append(dict(self.headers))
                outer.answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.http.handle_error = lambda *_: None  # type: ignore[method-assign]  # of clients that hang up
        self.address = f"http://127.0.0.1:{self.http.server_port}/"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        if self.redirect and handler.path != "/cdn":
            self._send(handler, 302, {"Location": self.redirect, **self.redirect_headers}, b"")
            return
        start, asked = 0, handler.headers.get("Range", "")
        status, headers, body = self.status, dict(self.headers), self.content
        if asked and self.ranges and status == 200:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            status, body = 206, self.content[start:]
            headers["Content-Range"] = f"bytes {start}-{len(self.content) - 1}/{len(self.content)}"
            if start >= len(self.content):
                status, body, headers["Content-Range"] = 416, b"", f"bytes */{len(self.content)}"
        self._send(handler, status, headers, body)

    def _send(self, handler: BaseHTTPRequestHandler, status: int, headers: dict[str, str], body: bytes) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        if self.length:
            handler.send_header("Content-Length", str(len(body)))
        else:
            handler.send_header("Connection", "close")
        handler.end_headers()
        handler.wfile.write(body if self.cut is None else body[: self.cut])
        if self.cut is not None or not self.length:
            self.cut, handler.close_connection = None, True


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()
    made.thread.join()


def got(server: Server, folder: Path, path: str = "a/model.bin", sha256: str = "") -> tuple[Path, list[Any]]:
    """The path of the fetched file, and the progress that was reported."""
    seen: list[Any] = []
    download = Download(server.address + "repo/resolve/main/model.bin", path, sha256)
    return fetch(download, folder, lambda *progress: seen.append(progress)), seen


def refused(server: Server, folder: Path, sha256: str = "", path: str = "a/model.bin") -> str:
    with pytest.raises(SearchError) as caught:
        got(server, folder, path, sha256)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def left(folder: Path) -> dict[str, int]:
    """The files below a folder and their sizes."""
    return {f.relative_to(folder).as_posix(): f.stat().st_size for f in folder.rglob("*") if f.is_file()}


def test_a_file_arrives_whole_under_its_name_with_its_progress(server: Server, tmp_path: Path) -> None:
    made, seen = got(server, tmp_path, sha256=SHA256)
    assert made == tmp_path / "a/model.bin" and made.read_bytes() == CONTENT
    assert server.asked[0]["Accept-Encoding"] == "identity"  # compressed, it would have another size
    assert left(tmp_path) == {"a/model.bin": len(CONTENT)}
    done = [value for value, _ in seen]
    assert done[0] == 0 and done == sorted(done) and done[-1] == len(CONTENT) and len(set(done)) == 4
    assert {total for _, total in seen} == {len(CONTENT)}


def test_a_file_of_no_bytes_is_a_file_too(server: Server, tmp_path: Path) -> None:
    server.content = b""
    assert got(server, tmp_path)[0].read_bytes() == b""


def test_a_cut_connection_keeps_its_bytes_and_the_next_try_asks_for_the_rest_alone(
    server: Server, tmp_path: Path
) -> None:
    server.cut = 1_500_000
    said = refused(server, tmp_path)
    assert "run the node again to go on" in said
    kept = left(tmp_path)["a/model.bin.partial"]
    assert 1_048_576 <= kept <= 1_500_000
    made, seen = got(server, tmp_path, sha256=SHA256)
    assert server.asked[1]["Range"] == f"bytes={kept}-" and seen[0] == (kept, len(CONTENT))
    assert made.read_bytes() == CONTENT and list(left(tmp_path)) == ["a/model.bin"]


def test_a_server_without_ranges_sends_all_again(server: Server, tmp_path: Path) -> None:
    server.cut, server.ranges = 1_500_000, False
    refused(server, tmp_path)
    made, seen = got(server, tmp_path, sha256=SHA256)
    assert seen[0] == (0, len(CONTENT)) and made.read_bytes() == CONTENT


def test_a_partial_file_that_is_whole_is_only_checked(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/model.bin.partial").write_bytes(CONTENT)
    assert got(server, tmp_path, sha256=SHA256)[0].read_bytes() == CONTENT
    assert len(server.asked) == 1


def test_a_partial_file_that_is_too_long_is_begun_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/model.bin.partial").write_bytes(CONTENT + b"more")
    assert got(server, tmp_path)[0].read_bytes() == CONTENT
    assert "Range" in server.asked[0] and "Range" not in server.asked[1]


def test_a_partial_file_of_other_bytes_fails_its_hash_and_is_deleted(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/model.bin.partial").write_bytes(b"x" * 1000)
    assert "not the official file" in refused(server, tmp_path, SHA256)
    assert left(tmp_path) == {}
    assert got(server, tmp_path, sha256=SHA256)[0].read_bytes() == CONTENT


def test_a_server_that_tells_no_length_is_read_to_its_end(server: Server, tmp_path: Path) -> None:
    server.length = False
    made, seen = got(server, tmp_path, sha256=SHA256)
    assert made.read_bytes() == CONTENT and seen[0] == (0, None)


def test_without_a_length_a_cut_file_fails_its_hash(server: Server, tmp_path: Path) -> None:
    server.length, server.cut = False, 1000
    assert "SHA-256" in refused(server, tmp_path, SHA256) and left(tmp_path) == {}


def test_a_wrong_hash_deletes_the_file_and_names_both(server: Server, tmp_path: Path) -> None:
    said = refused(server, tmp_path, "0" * 64)
    assert SHA256 in said and "0" * 64 in said and "deleted" in said and left(tmp_path) == {}


# ---- Hugging Face: size and hash of a large file come with the redirect to another host, whose own ETag is no hash


def hub(server: Server, **headers: str) -> None:
    server.redirect, server.headers = server.address + "cdn", {"ETag": f'"{"c" * 64}"'}
    server.redirect_headers = {"X-Repo-Commit": "f" * 40, "X-Linked-Size": str(len(CONTENT)), **headers}


def test_a_redirected_file_has_the_hash_that_the_redirect_tells(server: Server, tmp_path: Path) -> None:
    hub(server, **{"X-Linked-Etag": f'"{SHA256}"'})
    assert got(server, tmp_path)[0].read_bytes() == CONTENT
    assert len(server.asked) == 2


@pytest.mark.parametrize("content", [CONTENT[:-1] + b"x", CONTENT[:1000] + b"x" + CONTENT[1001:]])
def test_a_redirected_file_with_another_hash_is_refused(server: Server, tmp_path: Path, content: bytes) -> None:
    hub(server, **{"X-Linked-Etag": f'"{SHA256}"'})
    server.content = content
    assert SHA256 in refused(server, tmp_path) and left(tmp_path) == {}


def test_a_redirected_file_must_have_the_size_that_the_redirect_tells(server: Server, tmp_path: Path) -> None:
    hub(server)
    server.content = CONTENT + b"more"
    assert "3072004 bytes, expected 3072000" in refused(server, tmp_path) and left(tmp_path) == {}
    server.content = CONTENT[:-5]
    assert "3071995 of 3072000" in refused(server, tmp_path)


@pytest.mark.parametrize("tag", [f'"{GIT}"', f'W/"{GIT}"'])
def test_a_small_file_of_the_hub_has_its_name_in_git_as_hash(server: Server, tmp_path: Path, tag: str) -> None:
    server.headers = {"ETag": tag, "X-Repo-Commit": "f" * 40}
    assert got(server, tmp_path)[0].read_bytes() == CONTENT
    server.content = CONTENT[::-1]
    assert GIT in refused(server, tmp_path, path="b.bin") and list(left(tmp_path)) == ["a/model.bin"]


@pytest.mark.parametrize("tag", ["c" * 40, "c" * 64, f'"{"c" * 64}"', "5d41402abc4b2a76b9719d911017c592"])
def test_the_etag_of_any_other_server_is_no_hash(server: Server, tmp_path: Path, tag: str) -> None:
    server.headers = {"ETag": tag}
    assert got(server, tmp_path)[0].read_bytes() == CONTENT


# ---- refusals


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_file_is_said_to_be_so_with_its_page(server: Server, tmp_path: Path, status: int) -> None:
    server.status = status
    said = refused(server, tmp_path)
    assert f"{server.address}repo in a browser" in said and "account" in said and left(tmp_path) == {}


def test_a_file_that_is_not_there_is_said_to_be_so(server: Server, tmp_path: Path) -> None:
    server.status = 404
    said = refused(server, tmp_path)
    assert "no file at" in said and server.address in said and left(tmp_path) == {}


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_keeps_what_is_there(server: Server, tmp_path: Path, status: int) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/model.bin.partial").write_bytes(CONTENT[:10])
    server.status = status
    assert "try again later" in refused(server, tmp_path) and left(tmp_path) == {"a/model.bin.partial": 10}


NOT_HTTPS = [
    "http://example.org/model.bin",
    "http://169.254.1.1/",
    "ftp://example.org/",
    "file:///etc/passwd",
    "https:///x",
]


@pytest.mark.parametrize("address", NOT_HTTPS)
def test_only_https_is_followed(server: Server, tmp_path: Path, address: str) -> None:
    server.redirect = address
    assert "not https" in refused(server, tmp_path)
    with pytest.raises(SearchError, match="not https"):
        fetch(Download(address, "model.bin"), tmp_path, lambda *_: None)
    assert left(tmp_path) == {}


def test_redirects_in_a_circle_end(server: Server, tmp_path: Path) -> None:
    server.redirect = "/again"
    assert "again and again" in refused(server, tmp_path) and len(server.asked) == 10


def test_a_relative_redirect_is_followed(server: Server, tmp_path: Path) -> None:
    server.redirect = "/cdn"
    assert got(server, tmp_path)[0].read_bytes() == CONTENT


OUTSIDE = ["../x.bin", "a/../../x.bin", "/x.bin", "C:\\x.bin", "C:x.bin", "\\x", "..\\x", "", "."]


@pytest.mark.parametrize("path", OUTSIDE)
def test_a_path_outside_the_folder_is_refused_before_anything_is_asked(
    server: Server, tmp_path: Path, path: str
) -> None:
    assert "expected one below" in refused(server, tmp_path / "models", path=path)
    assert server.asked == [] and left(tmp_path) == {}


def test_no_password_of_the_user_is_sent(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HF_TOKEN", "secret")
    got(server, tmp_path)
    address = server.address.replace("//", "//me:secret@")
    fetch(Download(address + "model.bin", "b.bin"), tmp_path, lambda *_: None)
    assert [name for asked in server.asked for name in asked if name.lower() in ("authorization", "cookie")] == []


def test_nobody_at_the_address_is_one_sentence_and_keeps_what_is_there(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/model.bin.partial").write_bytes(CONTENT[:10])
    server.http.shutdown()
    server.http.server_close()
    said = refused(server, tmp_path)
    assert "connection to 127.0.0.1 failed" in said and "run the node again to go on" in said
    assert left(tmp_path) == {"a/model.bin.partial": 10}


def test_a_disk_that_is_too_small_is_seen_before_a_byte_is_written(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 2_000_000))
    assert "room for 0.00 GB" in refused(server, tmp_path) and left(tmp_path) == {}


def test_a_disk_that_takes_no_more_is_one_sentence_and_keeps_what_it_took(server: Server, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")  # not on Windows
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, before[1]))  # no file may be larger
    try:
        said = refused(server, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "model.bin cannot be written (File too large)" in said and "make room" in said
    assert left(tmp_path) == {"a/model.bin.partial": 1_500_000}
    assert got(server, tmp_path, sha256=SHA256)[0].read_bytes() == CONTENT


def test_a_cancelled_download_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    class Cancelled(BaseException):
        pass

    def cancel(done: int, _: int | None) -> None:
        if done > 1_500_000:
            raise Cancelled

    with pytest.raises(Cancelled):
        fetch(Download(server.address, "model.bin"), tmp_path, cancel)
    assert left(tmp_path) == {"model.bin.partial": 2 * 1_048_576}
    assert got(server, tmp_path, "model.bin", SHA256)[0].read_bytes() == CONTENT
    assert server.asked[1]["Range"] == f"bytes={2 * 1_048_576}-"


# ---- a file that is there already


def test_a_file_that_is_there_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    made, _ = got(server, tmp_path)
    before = os.stat(made)
    assert got(server, tmp_path)[1] == []
    assert os.stat(made).st_mtime_ns == before.st_mtime_ns


def test_a_file_of_another_size_is_left_alone_and_named(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/model.bin").write_bytes(b"mine")
    said = refused(server, tmp_path)
    assert "has 4 bytes" in said and "3072000" in said and left(tmp_path) == {"a/model.bin": 4}


def test_a_file_that_is_there_is_used_without_a_connection(server: Server, tmp_path: Path) -> None:
    got(server, tmp_path)
    server.http.shutdown()
    server.http.server_close()
    assert got(server, tmp_path)[0].read_bytes() == CONTENT
