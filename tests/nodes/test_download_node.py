"""Download Verifier Files; and that nothing else goes to the network, whatever is missing."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import comfy.model_management
import comfy.utils
import folder_paths
import pytest
from comfy_execution.graph_utils import ExecutionBlocker

from pack import load_pack
from pack.nodes.download_node import DownloadVerifierFiles, offers
from pack.nodes.model_files import choices, register_folders
from pack.nodes.verifier_nodes import PORTS, VerifierNode
from pack.search import SearchError
from pack.tests.host_server import HostError, HostServer
from pack.tests.nodes import tiny
from pack.tests.workflows.graphs import search_graph
from pack.verifiers import VERIFIERS
from pack.verifiers.files import Download, Source
from pack.verifiers.kinds import VerifierKind

CONTENT = {"/model.bin": bytes(range(256)) * 12_000, "/vocab.txt": b"words"}
KINDS = pytest.mark.parametrize("kind", VERIFIERS.values(), ids=VERIFIERS)
OURS = ("noise_search_demo_", "fid_statistics")
SOURCES = [(kind, source) for kind in VERIFIERS.values() for source in kind.sources]
DOWNLOADS = sorted({download for _, source in SOURCES for download in source.downloads}, key=lambda d: d.address)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = CONTENT[self.path]
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty models/verifiers, first of those that ComfyUI knows."""
    place = tmp_path / "models" / "verifiers"
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "verifiers", ([str(place)], set()))
    return place


@pytest.fixture
def two_files(models: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    """A verifier with two sources on this machine: a large file and a small one. Yields their server."""
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads, http.handle_error = True, lambda *_: None  # type: ignore[method-assign]
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    at = f"http://127.0.0.1:{http.server_port}"
    sha256 = hashlib.sha256(CONTENT["/model.bin"]).hexdigest()
    sources = (
        Source("model.bin", at, "3 MB", "MIT", "ComfyUI's models/verifiers/two",
               (Download(f"{at}/model.bin", "two/model.bin", sha256),)),
        Source("vocab.txt", at, "5 bytes", "Apache-2.0", "ComfyUI's models/verifiers/two",
               (Download(f"{at}/vocab.txt", "two/vocab.txt"),)),
    )  # fmt: skip
    kind = VerifierKind(key="two", name="Two", description="", load=VERIFIERS["exact_judge"].load, sources=sources)
    monkeypatch.setitem(VERIFIERS, "two", kind)
    yield http
    http.shutdown()
    http.server_close()
    thread.join()


def run(files: str = "Two: all", accepted: bool = True) -> Any:
    return tiny.execute(DownloadVerifierFiles, files=files, i_accept_the_licence=accepted)


def fingerprint(files: str = "Two: all") -> str:
    return DownloadVerifierFiles.fingerprint_inputs(files=files, i_accept_the_licence=True)


def test_the_files_arrive_where_the_drop_down_finds_them(two_files: Any, models: Path) -> None:
    out = run()
    assert out.args[0] == [str(models / "two/model.bin"), str(models / "two/vocab.txt")]
    assert {p.name: p.read_bytes() for p in models.rglob("*.*")} == {k[1:]: v for k, v in CONTENT.items()}
    assert out.ui["text"] == [
        f"{models / 'two/model.bin'}: downloaded, 3.1 MB", f"{models / 'two/vocab.txt'}: downloaded, 5 bytes",
    ]  # fmt: skip
    assert choices(("verifiers",)) == ["two/model.bin"]


def test_without_the_licence_it_only_says_what_there_is(two_files: Any, models: Path) -> None:
    out = run(accepted=False)
    [sentence] = out.ui["text"]
    for said in ("3 MB", "5 bytes", "MIT", "Apache-2.0", f"http://127.0.0.1:{two_files.server_port}", "switch"):
        assert said in sentence
    assert not models.exists() and "\n" not in sentence
    assert isinstance(out.args[0], ExecutionBlocker) and out.args[0].message == sentence


def test_files_that_are_there_are_given_without_the_licence_too(
    two_files: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = [tmp_path / "models" / "verifiers", tmp_path / "big disk"]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "verifiers", ([str(each) for each in both], set()))
    model, words = both[1] / "two/model.bin", both[0] / "two/vocab.txt"
    none = fingerprint()
    for path, said in ((model, "3.1 MB"), (words, "5 bytes")):
        path.parent.mkdir(parents=True)
        path.write_bytes(CONTENT[f"/{path.name}"])
        out = run(accepted=False)
        assert f"{path}: is there, {said}" in out.ui["text"]
        if path is model:
            assert len(out.ui["text"]) == 2 and "get vocab.txt" in out.args[0].message
            assert "get model.bin" not in out.args[0].message and fingerprint() != none
    assert out.args[0] == [str(model), str(words)] and len(out.ui["text"]) == 2


def test_one_source_alone_can_be_chosen(two_files: Any, models: Path) -> None:
    assert [name for name in offers() if name.startswith("Two")] == [
        "Two: two/model.bin", "Two: two/vocab.txt", "Two: all",
    ]  # fmt: skip
    assert run("Two: two/vocab.txt").args[0] == [str(models / "two/vocab.txt")]
    assert [path.name for path in models.rglob("*.*")] == ["vocab.txt"]


def test_an_unknown_choice_is_named() -> None:
    with pytest.raises(SearchError, match="files: got 'Nobody'; expected one of CLIPScore"):
        run("Nobody")


def test_files_that_are_there_are_said_to_be_and_a_deleted_one_comes_again(two_files: Any, models: Path) -> None:
    fresh = fingerprint()
    run()
    full = fingerprint()
    assert [line.split(": ")[1] for line in run().ui["text"]] == [
        "was there already, 3.1 MB", "was there already, 5 bytes",
    ]  # fmt: skip
    assert fingerprint() == full != fresh  # ComfyUI serves the old result
    (models / "two/vocab.txt").unlink()
    assert fingerprint() != full  # and now it does not
    assert [line.split(": ")[1] for line in run().ui["text"]] == ["was there already, 3.1 MB", "downloaded, 5 bytes"]


def test_progress_goes_to_comfyuis_bar(two_files: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, *_, **__: seen.append((value, total)))
    run()
    size = len(CONTENT["/model.bin"])
    assert (0, size) in seen and (size, size) in seen and seen[-1] == (5, 5)


def test_cancel_ends_a_download_and_the_next_one_goes_on(two_files: Any, models: Path) -> None:
    comfy.model_management.interrupt_current_processing(True)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run()
    assert [path.name for path in models.rglob("*.*")] in ([], ["model.bin.partial"])
    assert len(run().args[0]) == 2


def test_files_go_to_the_first_folder_of_extra_model_paths(
    two_files: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = [str(tmp_path / "big disk"), str(tmp_path / "models" / "verifiers")]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "verifiers", (both, set()))
    assert run("Two: two/vocab.txt").args[0] == [str(tmp_path / "big disk/two/vocab.txt")]


def test_a_file_that_is_in_another_folder_does_not_come_again(
    two_files: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "verifiers", ([str(first), str(second)], set()))
    (second / "two").mkdir(parents=True)
    (second / "two" / "model.bin").write_bytes(CONTENT["/model.bin"])
    output = run()
    assert output.args[0] == [str(second / "two" / "model.bin"), str(first / "two" / "vocab.txt")]
    assert "was there already" in output.ui["text"][0] and not (first / "two" / "model.bin").exists()
    # one that is not whole is complained about where it is
    (second / "two" / "model.bin").write_bytes(b"other")
    with pytest.raises(SearchError, match="second"):
        run()


def test_comfyui_shows_the_sentence_of_a_missing_file_and_a_licence_ends_no_workflow(server: HostServer) -> None:
    file = "HPSv2/HPS_v2.1_compressed.pt"
    [source] = offers()[f"{VERIFIERS['hps'].name}: {file}"]
    prompt = search_graph(verifier=VERIFIERS["hps"].name)
    [node] = [node for node in prompt.values() if node["class_type"] == "NoiseSearchVerifier"]
    node["inputs"]["verifier.file"] = file  # ComfyUI lets it pass: a default is listed even before it is there
    with pytest.raises(HostError) as caught:
        server.run(prompt)
    assert str(source) in str(caught.value).splitlines()[0]
    download = {"class_type": "NoiseSearchDownloadVerifier", "inputs": {"files": f"{VERIFIERS['hps'].name}: {file}",
                "i_accept_the_licence": False}}  # fmt: skip
    said = f"i_accept_the_licence: it is off, so nothing was downloaded; {source}"
    entry = server.run({"1": download})
    assert entry["outputs"]["1"]["text"][0].startswith(said)
    # beside it the workflow runs; only what is wired to it does not
    text = {"class_type": "PreviewAny", "inputs": {"source": "beside"}}
    wired = {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}}
    outputs = server.run({"1": download, "2": text, "3": wired})["outputs"]
    assert outputs["2"]["text"] == ["beside"] and "3" not in outputs


# ---- the sources of every verifier of the registry


def test_every_source_with_downloads_is_offered_under_a_name_of_its_own() -> None:
    with_downloads = [(kind, source) for kind, source in SOURCES if source.downloads]
    alone = [sources for name, sources in offers().items() if not name.endswith(": all")]
    assert [source for _, source in with_downloads] == [source for (source,) in alone]


@pytest.mark.parametrize("download", DOWNLOADS, ids=lambda download: download.path)
def test_a_download_is_https_and_stays_below_models_verifiers(download: Download) -> None:
    parts = urlsplit(download.address)
    assert parts.scheme == "https" and parts.hostname and not (parts.username or parts.query or parts.fragment)
    path = PurePosixPath(download.path)
    assert not path.is_absolute() and ".." not in path.parts and path.as_posix() == download.path
    assert download.sha256 == "" or (len(download.sha256) == 64 and int(download.sha256, 16) >= 0)
    if parts.hostname == "huggingface.co":
        assert "/resolve/" in parts.path  # /blob/ and /tree/ are pages


@pytest.mark.parametrize(("kind", "source"), SOURCES, ids=lambda part: getattr(part, "key", getattr(part, "file", "")))
def test_a_source_says_what_where_from_how_large_and_under_which_licence(kind: VerifierKind, source: Source) -> None:
    assert source.address.startswith("https://") and source.licence and source.put
    assert source.size.split()[-1] in ("kB", "MB", "GB")
    for download in source.downloads:
        assert PurePosixPath(download.path).name in source.file
        folder = PurePosixPath("models/verifiers", download.path).parent.as_posix()
        assert f"{source.put},".startswith(f"ComfyUI's {folder},")


@KINDS
def test_what_is_downloaded_is_what_the_verifier_loads_by_default(kind: VerifierKind) -> None:
    paths = {download.path for source in kind.sources for download in source.downloads}
    for setting in kind.settings:
        # the demo's files come with the pack, and statistics are the user's own
        if setting.kind == "file" and setting.default and not str(setting.default).startswith(OURS):
            assert setting.default in paths


# ---- nothing goes to the network by itself


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a connection was made")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@KINDS
def test_a_missing_file_is_one_sentence_that_says_how_to_get_it_and_no_connection(
    kind: VerifierKind, models: Path, no_network: None
) -> None:
    """With the default file of the user, not the demo's: one that is not there."""
    files = [setting for setting in kind.settings if setting.kind == "file" and not setting.optional]
    if not kind.sources:
        pytest.skip("it needs no file")
    missing = {s.name: "not/there" + PurePosixPath(str(s.default)).suffix for s in files}
    widgets = {s.name: missing.get(s.name, s.default) for s in kind.settings if s.kind not in PORTS}
    with pytest.raises(SearchError) as caught:
        tiny.execute(VerifierNode, verifier={"verifier": kind.name, **widgets})
    said = str(caught.value)
    told = [source for source in kind.sources if str(source) in said]
    assert told and "\n" not in said
    for source in told:
        for part in (source.file, source.address, source.size, source.licence, f"put it into {source.put}"):
            assert part in said
    if files:
        assert any(name.rsplit("/", 1)[1] in said for name in missing.values())
    assert not models.exists()


def test_listing_what_can_be_had_makes_no_connection(models: Path, no_network: None) -> None:
    register_folders()
    for node in (VerifierNode, DownloadVerifierFiles):
        node.GET_SCHEMA()
    assert fingerprint(next(iter(offers()))) == "[]"
    assert "nothing was downloaded" in run(next(iter(offers())), accepted=False).args[0].message


def test_importing_the_pack_and_listing_its_nodes_makes_no_connection() -> None:
    program = f"""
import socket, sys
def refuse(*_, **__):
    raise SystemExit("a connection was made")
socket.socket.connect = socket.socket.connect_ex = socket.create_connection = socket.getaddrinfo = refuse
import asyncio
sys.path.append({str(load_pack.ROOT)!r})
import load_pack
load_pack.import_host()
pack = load_pack.load_pack()
extension = asyncio.run(pack.comfy_entrypoint())
asyncio.run(extension.on_load())
nodes = asyncio.run(extension.get_node_list())
for node in nodes:
    node.GET_SCHEMA()
    node.INPUT_TYPES()
print(len(nodes))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=240, check=False,
        env={"OMP_NUM_THREADS": "1", **os.environ}, cwd=Path(sys.executable).parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    assert int(done.stdout.split()[-1]) >= 15
