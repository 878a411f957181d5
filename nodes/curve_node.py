"""Measure Curve: how early the verifier sees the best, on the user's own model."""

from __future__ import annotations

import hashlib
import json
import math
from statistics import fmean
from typing import Any

from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..search.errors import SearchError
from ..search.measuring import FEWEST, Measured, Watching, looks_at
from ..search.report import SearchReport
from . import sockets
from .guided_sampler import GuidedSampler
from .live import FINISH
from .search_sampler import HIDDEN, SearchSampler, as_ksampler, search_as_ksampler, summary

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
                sockets.report_output(),
            ],
            hidden=HIDDEN,
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
        texts = _texts(watching, report, before, of_earlier(earlier))
        return io.NodeOutput(*texts, latent, image, report, ui={"noise_search": [summary(report)]})


def _texts(watching: Watching, report: SearchReport, before: Measured | None, parts: list[Any]) -> tuple[Any, Any]:
    """The measurement as JSON and as a table; blocked where the candidates tell nothing. The report says that, too.

    `parts` are what `earlier` was put together from; a measurement that is among them does not count once more.
    """
    try:
        measured = watching.measured([e.parts for e in report.judged])
    except SearchError as error:
        report.note(str(error))
        return ExecutionBlocker(str(error)), ExecutionBlocker(str(error))
    own = identity(report)
    if before is not None and any(is_same(own, part) for part in parts):
        report.note(
            "earlier: it has candidates of this prompt and seed already, so only the larger of the two measurements is "
            f"given ({max(before.candidates, measured.candidates)} candidates): change the prompt or the seed"
        )
        larger = before.candidates >= measured.candidates
        measured, parts = (before, parts) if larger else (measured, [own])
    else:
        measured, parts = measured if before is None else measured.with_earlier(before), [*parts, own]
    return json.dumps({**json.loads(measured.to_json()), "of": parts}), measured.table()


def identity(report: SearchReport) -> dict[str, Any]:
    """What tells one measurement from another: its first candidates, as many as the smallest one has."""
    first = report.judged[:FEWEST]
    scores = [score for e in first for score in e.parts.values() if math.isfinite(score)]
    text = json.dumps([report.settings["prompt"], [e.seed for e in first]])
    return {"candidates": hashlib.sha256(text.encode()).hexdigest()[:16], "mean": fmean(scores)}


def is_same(one: dict[str, Any], other: Any) -> bool:
    """Whether two identities are of one measurement. A GPU does not make every digit of a score again."""
    try:
        alike = math.isclose(one["mean"], other["mean"], rel_tol=1e-3)
        return bool(one["candidates"] == other["candidates"] and alike)
    except (KeyError, TypeError):  # of a text that somebody has changed
        return False


def of_earlier(text: str) -> list[Any]:
    """The identities in a text of Measure Curve; none in an empty one, and in those of older versions."""
    parts = json.loads(text).get("of") if text.strip() else None
    return parts if isinstance(parts, list) else []
