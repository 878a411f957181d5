"""Fetch one official file when the user has asked for it: with resume and a hash check, and without any token.

Nothing here runs by itself: `fetch` is called by one node, whose user has switched it on.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from ..search.errors import SearchError
from .files import Download

if TYPE_CHECKING:
    from requests import PreparedRequest, Response, Session

#: Called with the bytes that are there and, if known, those that there will be. What it raises ends the download.
Progress = Callable[[int, int | None], None]

_CHUNK = 1 << 20
_TIMEOUT = (15.0, 30.0)  # seconds to connect, and without a byte
_REDIRECTS = 10
_LOCAL = ("127.0.0.1", "::1", "localhost")


@dataclass
class _Told:
    """What the server says about the file: its size, and its SHA-256 or its name (SHA-1) in git."""

    size: int | None = None
    sha256: str = ""
    git: str = ""


def fetch(download: Download, folder: Path, progress: Progress) -> Path:
    """Put the file at `folder / download.path` and return its path.

    It grows as `<name>.partial`, from where an earlier try stopped if the server can do so, and gets its name when it
    is whole: its size must be the one that the server tells, its hash `download.sha256`, or else the one that Hugging
    Face tells. A file that is already there is left as it is, and returned if it has that size (or the server cannot be
    reached). Only https is followed (plain http on this machine alone), and no token or password is sent.

    Raises SearchError: not found, not allowed, no connection, no room, a wrong size or hash, a path outside `folder`.
    A partial file stays for the next try unless it is wrong.
    """
    import requests

    destination = _below(folder, download.path)
    with requests.Session() as session:
        session.auth = _no_password
        try:
            if destination.is_file():
                return _same_size(session, download, destination)
            partial = _received(session, download, destination, progress)
            partial.replace(destination)
        except requests.RequestException as error:
            raise SearchError(
                f"download: the connection to {urlsplit(download.address).hostname} failed ({type(error).__name__}); "
                f"run the node again to go on, or get {download.address} in another way and put it at {destination}"
            ) from error
        except OSError as error:
            raise SearchError(
                f"download: {destination} cannot be written ({error.strerror or error}); make room or allow writing "
                "there, and run the node again to go on"
            ) from error
    return destination


def _no_password(request: PreparedRequest) -> PreparedRequest:
    """Takes the place of the passwords that requests would look up in the user's .netrc file."""
    return request


def _below(folder: Path, path: str) -> Path:
    # Read as Windows does, which knows every kind of separator and drives.
    parts = PureWindowsPath(path)
    if parts.anchor or ".." in parts.parts or not parts.name:
        raise SearchError(f"download: got the path {path!r}; expected one below {folder}; the source is wrong")
    return folder.joinpath(*parts.parts)


def _same_size(session: Session, download: Download, destination: Path) -> Path:
    """The file that is there, if it has the size of the official one, or nobody can be asked for that."""
    import requests

    try:
        response, told = _answer(session, download, 0)
    except requests.RequestException:
        return destination
    response.close()
    size = destination.stat().st_size
    if told.size not in (None, size):
        raise SearchError(
            f"download: {destination} has {size} bytes, the official file has {told.size}; delete it, or move it "
            "away, and run the node again"
        )
    return destination


def _received(session: Session, download: Download, destination: Path, progress: Progress) -> Path:
    """The whole file, checked, under its partial name."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    partial = destination.with_name(destination.name + ".partial")
    start = partial.stat().st_size if partial.is_file() else 0
    response, told = _answer(session, download, start)
    if response.status_code == 416 and start != told.size:  # what is there is longer than the file
        response.close()
        start = 0
        response, told = _answer(session, download, start)
    if response.status_code != 416:
        with response:
            _write(response, told.size, partial, start if response.status_code == 206 else 0, progress)
    done = partial.stat().st_size
    if told.size is not None and done < told.size:
        raise SearchError(
            f"download: the connection ended after {done} of {told.size} bytes of {destination.name}; run the node "
            "again to go on"
        )
    _check(download, told, partial, progress)
    return partial


def _answer(session: Session, download: Download, start: int) -> tuple[Response, _Told]:
    """The server's answer to a request for all bytes from `start` on: 200, 206 or 416, its body not yet read."""
    told, address = _Told(), download.address
    # Compressed on the way, a file has another size and cannot be resumed.
    headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={start}-"} if start else {})}
    for _ in range(_REDIRECTS):
        if not _safe(address, download.address):
            raise SearchError(f"download: {download.address} leads to {address}, which is not https: not fetched")
        response = session.get(address, headers=headers, stream=True, timeout=_TIMEOUT, allow_redirects=False)
        _read_headers(response, told)
        if not response.is_redirect:
            break
        address = urljoin(address, response.headers["Location"])
        response.close()
    else:
        raise SearchError(f"download: {download.address} is redirected again and again; try later")
    if response.status_code not in (200, 206, 416) or (response.status_code != 200 and not start):
        response.close()
        raise SearchError(_refusal(response.status_code, download))
    if response.status_code == 206 and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
        response.close()
        raise SearchError(f"download: {urlsplit(address).hostname} sent another part of the file than asked for")
    return response, told


def _safe(address: str, asked: str) -> bool:
    """Whether an address is https, or, for one on this machine, as plain as the one that was asked for."""
    parts, first = urlsplit(address), urlsplit(asked)
    local = parts.scheme == first.scheme == "http" and parts.hostname in _LOCAL and first.hostname in _LOCAL
    return local or (parts.scheme == "https" and bool(parts.hostname))


def _read_headers(response: Response, told: _Told) -> None:
    """Add what one answer, a redirect or the last one, tells about the file.

    Hugging Face redirects large files to another host, and tells size and SHA-256 in the redirect; the other host's
    ETag looks like a hash of the file but is none. For small files the ETag is their name in git.
    """
    headers = response.headers
    tag, size = headers.get("X-Linked-Etag", ""), headers.get("X-Linked-Size", "")
    told.sha256 = told.sha256 or _hex(tag, 64)
    if "X-Repo-Commit" in headers:
        told.git = told.git or _hex(tag or headers.get("ETag", ""), 40)
    if size.isdigit():
        told.size = int(size)
    if told.size is None and not response.is_redirect:
        total = re.search(r"/(\d+)$", headers.get("Content-Range", ""))
        length = headers.get("Content-Length", "")
        if total:
            told.size = int(total[1])
        elif response.status_code == 200 and length.isdigit() and "Content-Encoding" not in headers:
            told.size = int(length)


def _hex(tag: str, digits: int) -> str:
    """The hash in an ETag such as W/"0a...", if it has that many hexadecimal digits; otherwise ""."""
    found = re.fullmatch(rf'(?:W/)?"?([0-9a-f]{{{digits}}})"?', tag.strip())
    return found[1] if found else ""


def _refusal(status: int, download: Download) -> str:
    page = download.address.split("/resolve/")[0]
    if status in (401, 403):
        return (
            f"download: {download.address} needs an account or a licence that is accepted there (answer {status}); "
            f"get {download.path} from {page} in a browser and put it into ComfyUI's models/verifiers"
        )
    if status in (404, 410):
        return f"download: there is no file at {download.address} (answer {status}); look for it at {page}"
    return f"download: {urlsplit(download.address).hostname} answered {status}; try again later"


def _write(response: Response, size: int | None, partial: Path, start: int, progress: Progress) -> None:
    """Append the body to the first `start` bytes."""
    if not start:
        partial.unlink(missing_ok=True)
    free = shutil.disk_usage(partial.parent).free
    if size is not None and size - start > free:
        raise SearchError(
            f"download: {partial.parent} has room for {free / 1e9:.2f} GB, but {(size - start) / 1e9:.2f} GB are to "
            "come; make room and run the node again"
        )
    done = start
    progress(done, size)
    with partial.open("ab" if start else "wb") as file:
        for chunk in response.iter_content(_CHUNK):
            file.write(chunk)
            done += len(chunk)
            progress(done, size)


def _check(download: Download, told: _Told, partial: Path, progress: Progress) -> None:
    """Delete a file that is not the official one, and say so."""
    size = partial.stat().st_size
    wrong = "" if told.size in (None, size) else f"{size} bytes, expected {told.size}"
    expected = download.sha256 or told.sha256
    if expected and not wrong:
        wrong = _difference("SHA-256", hashlib.sha256(), expected, partial, progress)
    elif told.git and not wrong:
        # git names a file by the hash of a short header and its bytes.
        header = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        wrong = _difference("git's SHA-1", header, told.git, partial, progress)
    if wrong:
        partial.unlink()
        raise SearchError(
            f"download: what came from {download.address} is not the official file ({wrong}): it was deleted; run the "
            "node again, and if this stays so, the file at that address is not the one that this pack knows"
        )


def _difference(kind: str, digest: hashlib._Hash, expected: str, file: Path, progress: Progress) -> str:
    """What is wrong with the hash of a file, or ""."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        while chunk := opened.read(_CHUNK):
            digest.update(chunk)
            progress(size, size)
    got = digest.hexdigest()
    return "" if got == expected else f"{kind} {got}, expected {expected}"
