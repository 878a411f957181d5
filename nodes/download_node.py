"""Download Verifier Files: the only node that downloads anything, and only when it is told to."""

from __future__ import annotations

import logging
from pathlib import Path, PurePosixPath
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker
from server import PromptServer

from ..search.errors import SearchError
from ..verifiers import VERIFIERS
from ..verifiers.download import fetch
from ..verifiers.files import Download, Source
from . import sockets

FOLDER = "verifiers"
ALL = "all"
log = logging.getLogger(__name__)


def offers() -> dict[str, tuple[Source, ...]]:
    """What can be downloaded, by the names in the drop-down: "ImageReward: vocab.txt", "ImageReward: all"."""
    found: dict[str, tuple[Source, ...]] = {}
    for kind in VERIFIERS.values():
        sources = tuple(source for source in kind.sources if source.downloads)
        found |= {f"{kind.name}: {_place(source)}": (source,) for source in sources}
        if len(sources) > 1:
            found[f"{kind.name}: {ALL}"] = sources
    return found


def _place(source: Source) -> str:
    """The folder that a source fills, or its only file."""
    paths = [PurePosixPath(download.path) for download in source.downloads]
    return paths[0].as_posix() if len(paths) == 1 else paths[0].parent.as_posix()


class DownloadVerifierFiles(io.ComfyNode):
    """Official files into ComfyUI's models/verifiers."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NoiseSearchDownloadVerifier",
            display_name="Download Verifier Files",
            category=sockets.CATEGORY,
            description="Gets the files of a verifier from their official address and checks them. Nothing is ever "
            "downloaded without this node, and this node downloads nothing before its switch is on.",
            inputs=[
                io.Combo.Input("files", options=list(offers()), tooltip="Which verifier, and what of it. Queue it with "
                               "the switch off to read the size, the licence and the address."),
                io.Boolean.Input("i_accept_the_licence", default=False,
                                 tooltip="Off: nothing is downloaded, and the node says which files are there and what "
                                 "is missing. On: you have read the licence of the files."),
            ],
            outputs=[
                io.String.Output(display_name="paths", is_output_list=True, tooltip="Where the files are. What is "
                                 "wired to it does not run while the switch is off and one is missing."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, files: str = "", **_: Any) -> str:
        """The files that are there: a result is served again only as long as they stay."""
        return repr([(str(path), path.stat().st_size) for path in map(_found, _downloads(files)) if path])

    @classmethod
    def execute(cls, files: str = "", i_accept_the_licence: bool = False) -> io.NodeOutput:
        sources = offers().get(files)
        if not sources:
            raise SearchError(f"files: got {files!r}; expected one of {', '.join(offers())}; choose in the drop-down")
        if not i_accept_the_licence:
            return _looked_for(sources, cls.hidden.unique_id)
        bar = comfy.utils.ProgressBar(1, node_id=cls.hidden.unique_id)

        def progress(done: int, size: int | None) -> None:
            comfy.model_management.throw_exception_if_processing_interrupted()
            bar.update_absolute(done, max(1, size or done + 1))

        paths, said = [], []
        for download in _downloads(files):
            there = _found(download) is not None
            log.info("noise search: %s %s", "looking at" if there else "downloading", download.address)
            paths.append(fetch(download, _folder(download), progress))
            said.append(f"{paths[-1]}: {'was there already' if there else 'downloaded'}, {_size(paths[-1])}")
        return _told([str(path) for path in paths], said, cls.hidden.unique_id)


def _looked_for(sources: tuple[Source, ...], node_id: str) -> io.NodeOutput:
    """What the node gives without downloading: the paths, or, for whoever needs them, why there are none."""
    paths = {download: _found(download) for source in sources for download in source.downloads}
    said = [f"{path}: is there, {_size(path)}" for path in paths.values() if path]
    missing = [str(source) for source in sources if not all(paths[download] for download in source.downloads)]
    if not missing:
        return _told([str(path) for path in paths.values()], said, node_id)
    sentence = (
        f"i_accept_the_licence: it is off, so nothing was downloaded; {'; '.join(missing)}; or read the licence there, "
        "switch i_accept_the_licence on, and this node puts the files there itself"
    )
    return _told(ExecutionBlocker(sentence), [*said, sentence], node_id)


def _told(paths: Any, said: list[str], node_id: str) -> io.NodeOutput:
    """The node's output; what was said stands on the node too, where the page does not show a text output by itself."""
    server = getattr(PromptServer, "instance", None)
    if server is not None:
        server.send_progress_text("\n".join(said), node_id)
    return io.NodeOutput(paths, ui={"text": said})


def _found(download: Download) -> Path | None:
    """Where a file is, in any folder where the verifiers look for it."""
    path = folder_paths.get_full_path(FOLDER, download.path)
    return Path(path) if path else None


def _folder(download: Download) -> Path:
    """The folder that has the file, or else the first, where new files go."""
    found = _found(download)
    if found:
        return found.parents[len(Path(download.path).parts) - 1]
    return Path(folder_paths.get_folder_paths(FOLDER)[0])


def _downloads(files: str) -> list[Download]:
    return list(dict.fromkeys(download for source in offers().get(files, ()) for download in source.downloads))


def _size(path: Path) -> str:
    size = path.stat().st_size
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size} bytes"
