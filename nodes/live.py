"""What a user sees while a search runs: progress in NFE, the best image so far, files on disk, Finish now."""

from __future__ import annotations

import json
import logging
import math
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import comfy.utils
import folder_paths
import latent_preview
import numpy as np
import safetensors.torch
import torch
from aiohttp import web
from comfy_execution.utils import get_executing_context
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from server import PromptServer

from ..search.report import Evaluation, Kept, SearchReport
from ..search.watcher import Watcher
from . import provenance
from .origin import Origin

PREVIEW_PIXELS = 512
NO_WINNER = "no_winner.png"
NEWS_SECONDS = 0.25  # the browser hears of a search no more often
log = logging.getLogger(__name__)


class FinishRequests:
    """Who asked which running search to finish now. One object per process: a web request reaches a running node."""

    def __init__(self) -> None:
        self._running: dict[str, Callable[[], dict[str, Any]]] = {}
        self._asked: set[str] = set()
        self._ended_early: dict[str, int] = {}

    def start(self, node_id: str, news: Callable[[], dict[str, Any]] = dict) -> None:
        """A search starts in this node; `news` says how it goes."""
        self._running[node_id] = news
        self._asked.discard(node_id)

    def end(self, node_id: str) -> None:
        """It is over. A result that was cut short must not be served from the cache next time."""
        if node_id in self._asked:
            self._ended_early[node_id] = self._ended_early.get(node_id, 0) + 1
        self._running.pop(node_id, None)
        self._asked.discard(node_id)

    def ask(self, node_id: str | None) -> list[str]:
        """Ask one node, or every running one; returns those that were running."""
        asked = sorted(self._running if node_id is None else self._running.keys() & {node_id})
        self._asked.update(asked)
        return asked

    def running(self) -> list[dict[str, Any]]:
        """What every running search has to tell."""
        return [news() for news in list(self._running.values())]  # a search may begin or end meanwhile

    def asked(self, node_id: str) -> bool:
        """Whether this node should finish."""
        return node_id in self._asked

    def ended_early(self, node_id: str) -> int:
        """How often this node was cut short: part of its fingerprint."""
        return self._ended_early.get(node_id, 0)


FINISH = FinishRequests()


def register_routes() -> None:
    """POST /noise_search/finish {"node_id": "5"} ends that search with its best so far; without an id, all.

    GET /noise_search/running says how the running searches go; with ?client_id=... only those that this client queued.
    """
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

    @instance.routes.get("/noise_search/running")
    async def running(request: web.Request) -> web.Response:
        foreign = request.query.get("client_id", instance.client_id) != instance.client_id
        return web.json_response({"running": [] if foreign else FINISH.running()})


class LiveSearch(Watcher):
    """Reports one running search to ComfyUI and keeps its best image and latent on disk. A context manager.

    `hidden` is the node's; `part` names a folder in the node's own, for one of several searches of a node; `origin`
    makes of a candidate what the node puts out.
    """

    def __init__(self, hidden: Any, part: str, origin: Origin) -> None:
        context = get_executing_context()
        prompt_id = context.prompt_id if context else "no-prompt"
        self.hidden, self.part, self.origin = hidden, part, origin
        self.node_id = str(hidden.unique_id)
        name = re.sub(r"[^\w.-]", "_", f"{prompt_id}-{self.node_id}")
        self.folder = Path(folder_paths.get_output_directory()) / "noise_search" / name / part
        self.bar = comfy.utils.ProgressBar(1, node_id=self.node_id)
        self.best: Evaluation | None = None
        self.images = 0
        self.nfe = 0
        self.expected: int | None = None  # NFE in all, where a limit tells
        self.pace: float | None = None  # seconds per NFE; None while the end is not known
        self.untold, self.told = True, -math.inf

    def __enter__(self) -> LiveSearch:
        FINISH.start(self.node_id, self.news)
        self.tell()
        return self

    def __exit__(self, *_: object) -> None:
        FINISH.end(self.node_id)

    def progress(self, nfe: int, expected: int | None) -> None:
        """ComfyUI's progress bar counts NFE. Raises the host's interrupt when the user cancels."""
        self.nfe, self.expected = nfe, None if expected is None else max(nfe, expected)
        self.bar.update_absolute(nfe, self.expected or nfe + 1)
        self.untold = True  # the bar drops updates below 0.5 %, which stands still on a large budget
        self.tell()

    def evaluated(self, evaluation: Evaluation, images: torch.Tensor, best: bool) -> None:
        """Count the images and the time."""
        if evaluation.candidate is not None:
            self.images = evaluation.candidate + 1
        self.pace = evaluation.seconds / max(1, evaluation.nfe) if self.expected is not None else None
        self.untold = True
        self.tell()

    def tell(self) -> None:
        """Tell the browser that watches ComfyUI's progress what is new; later, if it has just been told something."""
        server = getattr(PromptServer, "instance", None)
        if server is None or not self.untold or time.monotonic() < self.told + NEWS_SECONDS:
            return
        self.untold, self.told = False, time.monotonic()
        with suppress(RuntimeError):  # a server that is going down takes no message
            server.send_sync("noise_search.news", self.news(), server.client_id)

    def news(self) -> dict[str, Any]:
        """How the search goes, JSON-ready."""
        return {
            "node_id": self.node_id,
            "part": self.part,
            "nfe": self.nfe,
            "expected": self.expected,
            "images": self.images,
            "best": self.best.score if self.best else None,
            "seconds_per_nfe": self.pace,
        }

    def leads(self, kept: Kept) -> None:
        """Show and save the new best."""
        self.best = kept.evaluation
        picture, texts = to_picture(kept.picture), provenance.texts(self.hidden, kept.evaluation)
        with _kept_going():
            save_picture(picture, self.folder / "best.png", texts)
            save_latent(self.origin.put_out(kept)["samples"], self.folder / "best.latent", texts)
            (self.folder / NO_WINNER).unlink(missing_ok=True)
        self.bar.update_absolute(self.bar.current, self.bar.total, ("JPEG", picture, PREVIEW_PIXELS))

    def nearest(self, kept: Kept) -> str | None:
        """Save what came nearest to winning, while nothing can win."""
        path = self.folder / NO_WINNER
        with _kept_going():
            save_picture(to_picture(kept.picture), path, provenance.texts(self.hidden, kept.evaluation))
            return f"output/{path.relative_to(folder_paths.get_output_directory()).as_posix()}"
        return None

    def previews(self, model: Any) -> Callable[[torch.Tensor], None] | None:
        """Shows clean estimates of a model on their way, as KSampler does, until there is an image: the best one is not
        painted over. None where ComfyUI's previews are switched off.
        """
        previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)
        if previewer is None:
            return None

        def show(x0: torch.Tensor) -> None:
            if self.best is None:
                preview = previewer.decode_latent_to_preview_image("JPEG", x0)
                self.bar.update_absolute(self.bar.current, self.bar.total, preview)

        return show

    def finish_now(self) -> bool:
        """Whether the user pressed Finish now."""
        return FINISH.asked(self.node_id)

    def keep(self, report: SearchReport) -> None:
        """Put the finished report beside the ledger."""
        if self.best is None or self.best.id != report.top[0].evaluation.id:  # newcomers have raised an older one
            self.leads(report.top[0])
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
    """Write a PNG with JSON texts."""
    metadata = PngInfo()
    for key, value in texts.items():
        metadata.add_text(key, json.dumps(value))
    with _replacing(path) as partial:
        picture.save(partial, format="PNG", pnginfo=metadata, compress_level=4)


def save_latent(samples: Any, path: Path, texts: dict[str, Any]) -> None:
    """Write what Load Latent reads, as Save Latent does; nothing of nested latents, which neither of them knows."""
    if samples.is_nested:
        return
    tensors = {"latent_tensor": samples.contiguous(), "latent_format_version_0": torch.tensor([])}
    metadata = {key: json.dumps(value) for key, value in texts.items()}
    with _replacing(path) as partial:
        partial.write_bytes(safetensors.torch.save(tensors, metadata))  # its own writer hides a full disk's OSError


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Where to write a file: the old one stays whole until the new one is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    yield partial
    partial.replace(path)
