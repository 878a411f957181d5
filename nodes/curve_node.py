"""Measure Curve: how early the verifier sees the best, on the user's own model."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..search.errors import SearchError
from ..search.measuring import FEWEST, Measured, Watching, looks_at
from ..search.report import SearchReport
from . import sockets
from .guided_sampler import GuidedSampler
from .live import FINISH
from .search_sampler import SearchSampler, as_ksampler, search_as_ksampler

_BEFORE = (
    "model", "seed", "steps", "cfg", "sampler_name", "scheduler", "positive", "negative", "latent_image", "denoise",
    "vae", "verifier", "prompt",
)  # fmt: skip


class MeasureCurve(io.ComfyNode):
    """A curve for Search: Pruned from a few finished candidates."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        shared = {each.id: each for each in SearchSampler.define_schema().inputs}
        return io.Schema(
            node_id="NoiseSearchMeasureCurve",
            display_name="Measure Curve",
            category=sockets.CATEGORY,
            description="Renders some candidates whole, scores them on the way too, and says how early the verifier "
            "sees the best on this model: Search: Pruned plans its cuts from it. The best candidate comes with it.",
            inputs=[
                *(shared[name] for name in _BEFORE),
                io.Int.Input("max_candidates", default=16, min=FEWEST, max=100000, optional=True,
                             tooltip="Finished images to measure on. Several prompts say more than more images of one: "
                             "chain nodes through earlier."),
                io.Int.Input("looks", default=8, min=1, max=20, optional=True,
                             tooltip="Places on the way, from 20 to 90 % of the steps, where every candidate is "
                             "decoded and scored too. No model calls, but that many more decodes and scores."),
                io.Int.Input("batch_size", default=4, min=0, max=1024, optional=True,
                             tooltip="Candidates per model call; all their looks are decoded before they are scored "
                             "(of videos, one at a time). 0 = what fits by ComfyUI's estimate, up to 4."),
                io.String.Input("earlier", default="", optional=True,
                                tooltip="What another Measure Curve gave, for another prompt: both are put together."),
                shared["preview_vae"],
            ],
            outputs=[
                io.String.Output(display_name="measured_curve", tooltip="For Search: Pruned. Keep the text to use it "
                                 "again: it holds for this model, verifier, sampler, steps and preview_vae."),
                io.String.Output(display_name="table", tooltip="The same for people."),
                io.Latent.Output(display_name="latent", tooltip="The best candidate."),
                io.Image.Output(display_name="image", tooltip="The best candidate."),
                sockets.SearchReport.Output(display_name="report"),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
            not_idempotent=True,
            has_intermediate_output=True,
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> int:
        return FINISH.ended_early(str(cls.hidden.unique_id))

    @classmethod
    def execute(
        cls, latent_image: Any = None, vae: Any = None, verifier: Any = None, max_candidates: int = 16,
        looks: int = 8, batch_size: int = 4, earlier: str = "", prompt: str = "", seed: int = 0,
        preview_vae: Any = None, **settings: Any,
    ) -> io.NodeOutput:  # fmt: skip
        sockets.check_verifier("verifier", verifier)
        before = Measured.from_json(earlier) if earlier.strip() else None
        guider, sampler, sigmas = as_ksampler(**settings)
        port = GuidedSampler(guider, sampler, sigmas, latent_image, vae)
        watching = Watching(verifier, looks_at(port.sigmas, port.time, looks))
        if before is not None:
            before.check(watching.name, watching.shares)
        out = search_as_ksampler(
            cls, seed=seed, latent_image=latent_image, vae=vae, verifier=watching, prompt=prompt,
            max_candidates=max_candidates, batch_size=batch_size, top_k=1, preview_vae=preview_vae, **settings,
        )  # fmt: skip
        latent, image, _, _, _, report = out.args
        return io.NodeOutput(*_texts(watching, report, before), latent, image, report, ui=out.ui)


def _texts(watching: Watching, report: SearchReport, before: Measured | None) -> tuple[Any, Any]:
    """The measurement as JSON and as a table; blocked, with the reason, where the candidates tell nothing."""
    try:
        measured = watching.measured([e.parts for e in report.judged])
    except SearchError as error:
        return ExecutionBlocker(str(error)), ExecutionBlocker(str(error))
    measured = measured if before is None else measured.with_earlier(before)
    return measured.to_json(), measured.table()
