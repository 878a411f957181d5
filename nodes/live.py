"""What a user sees while a search runs: progress in NFE, the best image so far, files on disk, Finish now."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import comfy.utils
import folder_paths
import latent_preview
import numpy as np
import torch
from aiohttp import web
from comfy_execution.utils import get_executing_context
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from server import PromptServer

from ..search.report import Evaluation, SearchReport
from ..search.watcher import Watcher

PREVIEW_PIXELS = 512
log = logging.getLogger(__name__)


class FinishRequests:
    """Who asked which running search to finish now. One object per process: a web request reaches a running node."""

    def __init__(self) -> None:
        self._running: set[str] = set()
        self._asked: set[str] = set()
        self._ended_early: dict[str, int] = {}

    def start(self, node_id: str) -> None:
        """A search starts in this node."""
        self._running.add(node_id)
        self._asked.discard(node_id)

    def end(self, node_id: str) -> None:
        """It is over. A result that was cut short must not be served from the cache next time."""
        if node_id in self._asked:
            self._ended_early[node_id] = self._ended_early.get(node_id, 0) + 1
        self._running.discard(node_id)
        self._asked.discard(node_id)

    def ask(self, node_id: str | None) -> list[str]:
        """Ask one node, or every running one; returns those that were running."""
        asked = sorted(self._running if node_id is None else self._running & {node_id})
        self._asked.update(asked)
        return asked

    def asked(self, node_id: str) -> bool:
        """Whether this node should finish."""
        return node_id in self._asked

    def ended_early(self, node_id: str) -> int:
        """How often this node was cut short: part of its fingerprint."""
        return self._ended_early.get(node_id, 0)


FINISH = FinishRequests()


def register_routes() -> None:
    """POST /noise_search/finish {"node_id": "5"} ends that search with its best so far; without an id, all."""
    instance = getattr(PromptServer, "instance", None)
    if instance is None:  # ComfyUI is used as a library, without its server
        return

    @instance.routes.post("/noise_search/finish")
    async def finish(request: web.Request) -> web.Response:
        try:
            body = await request.json() if request.can_read_body else {}
        except ValueError:
            return web.json_response({"error": 'expected JSON such as {"node_id": "5"}'}, status=400)
        node_id = body.get("node_id") if isinstance(body, dict) else None
        return web.json_response({"finishing": FINISH.ask(None if node_id is None else str(node_id))})


class LiveSearch(Watcher):
    """Reports one running search to ComfyUI and keeps its best image on disk. A context manager.

    `part` names a folder in the node's own, for one of several searches of a node.
    """

    def __init__(self, node_id: str, part: str = "") -> None:
        context = get_executing_context()
        prompt_id = context.prompt_id if context else "no-prompt"
        self.node_id = node_id
        name = re.sub(r"[^\w.-]", "_", f"{prompt_id}-{node_id}")
        self.folder = Path(folder_paths.get_output_directory()) / "noise_search" / name / part
        self.bar = comfy.utils.ProgressBar(1, node_id=node_id)
        self.has_image = False

    def __enter__(self) -> LiveSearch:
        FINISH.start(self.node_id)
        return self

    def __exit__(self, *_: object) -> None:
        FINISH.end(self.node_id)

    def progress(self, nfe: int, expected: int | None) -> None:
        """ComfyUI's progress bar counts NFE. Raises the host's interrupt when the user cancels."""
        self.bar.update_absolute(nfe, max(nfe, expected or nfe + 1))

    def evaluated(self, evaluation: Evaluation, images: torch.Tensor, best: bool) -> None:
        """Show and save the new best image."""
        if best:
            self.has_image = True
            picture = to_picture(images.reshape(-1, *images.shape[-3:])[0])
            with _kept_going():
                save_picture(picture, self.folder / "best.png", {"noise_search": evaluation.record()})
            self.bar.update_absolute(self.bar.current, self.bar.total, ("JPEG", picture, PREVIEW_PIXELS))

    def previews(self, model: Any) -> Callable[[torch.Tensor], None] | None:
        """Shows clean estimates of a model on their way, as KSampler does, until there is an image: the best one is not
        painted over. None where ComfyUI's previews are switched off.
        """
        previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)
        if previewer is None:
            return None

        def show(x0: torch.Tensor) -> None:
            if not self.has_image:
                preview = previewer.decode_latent_to_preview_image("JPEG", x0)
                self.bar.update_absolute(self.bar.current, self.bar.total, preview)

        return show

    def finish_now(self) -> bool:
        """Whether the user pressed Finish now."""
        return FINISH.asked(self.node_id)

    def keep(self, report: SearchReport) -> None:
        """Put the finished report beside the ledger."""
        with _kept_going():
            (self.folder / "report.json").write_text(report.to_json(), encoding="utf-8")


@contextmanager
def _kept_going() -> Iterator[None]:
    """A full disk must not cost the user a result that is still in memory."""
    try:
        yield
    except OSError as error:
        log.warning("noise search: a file could not be written: %s", error)


def to_picture(image: torch.Tensor) -> Image.Image:
    """[H, W, 3] in 0..1 -> an 8-bit picture, as ComfyUI saves it."""
    return Image.fromarray(np.clip(255.0 * image.numpy(), 0, 255).astype(np.uint8))


def save_picture(picture: Image.Image, path: Path, texts: dict[str, Any]) -> None:
    """Write a PNG with JSON texts; the old file stays whole until the new one is."""
    metadata = PngInfo()
    for key, value in texts.items():
        metadata.add_text(key, json.dumps(value, allow_nan=False))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    picture.save(partial, format="PNG", pnginfo=metadata, compress_level=4)
    partial.replace(path)
