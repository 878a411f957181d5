"""Search Prompts: one search per prompt."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

from comfy_api.latest import io

import nodes as host_nodes

from ..search.errors import SearchError
from ..search.report import SearchReport
from ..search.series import run_series
from . import sockets
from .live import FINISH
from .prompt_text import plain
from .search_sampler import HIDDEN, SearchSampler, search_as_ksampler, summary

_SHARED = (
    "latent_image", "steps", "cfg", "sampler_name", "scheduler", "denoise", "vae", "verifier",
    "max_candidates", "max_nfe", "max_seconds", "target_score", "patience", "batch_size", "algorithm", "held_out",
    "preview_vae",
)  # fmt: skip
_SEEDS = 1 << 64


class SearchPrompts(io.ComfyNode):
    """Search Sampler, once per line of a text."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        shared = {each.id: each for each in SearchSampler.define_schema().inputs}
        return io.Schema(
            node_id="NoiseSearchPrompts",
            display_name="Search Prompts",
            category=sockets.CATEGORY,
            description="Search Sampler for a list of prompts: the best image of each. With Oracle FID or Inception "
            "Score, each winner is the one that does most for the set of winners so far.",
            inputs=[
                io.Model.Input("model"),
                io.Clip.Input("clip", tooltip="Encodes the prompts."),
                io.String.Input("prompts", multiline=True, default="",
                                tooltip="One prompt per line. Empty lines and lines that start with # are left out. "
                                "The verifier gets them without weights such as (cat:1.2), brackets and embedding: "
                                "words."),
                io.String.Input("negative", multiline=True, default="",
                                tooltip="What to avoid, in every image."),
                io.Int.Input(
                    "seed", default=0, min=0, max=_SEEDS - 1, control_after_generate=True,
                    tooltip="Of the first prompt; each next one has the seed after it. KSampler makes a prompt's "
                    "candidate 0 from that seed.",
                ),
                *(shared[name] for name in _SHARED),
            ],
            outputs=[
                io.Image.Output(display_name="images", is_output_list=True, tooltip="The best image of every prompt."),
                io.Latent.Output(display_name="latents", is_output_list=True, tooltip="Their latents."),
                io.String.Output(display_name="prompts", is_output_list=True, tooltip="The prompts that were used."),
                io.Float.Output(display_name="scores", is_output_list=True, tooltip="Of the best images."),
                sockets.SearchReport.Output(display_name="reports", is_output_list=True,
                                            tooltip="One for each prompt."),
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
        cls, model: Any = None, clip: Any = None, prompts: str = "", negative: str = "", seed: int = 0,
        verifier: Any = None, held_out: Any = None, **settings: Any,
    ) -> io.NodeOutput:  # fmt: skip
        if clip is None:
            raise SearchError("clip: got nothing; wire the CLIP that belongs to the model")
        sockets.check_verifier("verifier", verifier)
        listed = lines(prompts)
        avoided = encoded(clip, negative)
        outputs: list[io.NodeOutput] = []

        def search_one(number: int, prompt: str) -> SearchReport:
            out = search_as_ksampler(
                cls, model=model, seed=(seed + number) % _SEEDS, positive=encoded(clip, prompt), negative=avoided,
                verifier=verifier, held_out=held_out, prompt=plain(prompt) or prompt, top_k=1,
                part=f"{number + 1:04}", **settings,
            )  # fmt: skip
            outputs.append(out)
            report: SearchReport = out.args[5]
            return report

        reports = list(run_series(listed, search_one, [verifier, held_out]))
        images, latents = [out.args[1] for out in outputs], [out.args[0] for out in outputs]
        scores = [out.args[4] for out in outputs]
        return io.NodeOutput(
            images, latents, listed, scores, reports, ui={"noise_search": [together(reports)]}
        )


def lines(text: str) -> list[str]:
    """The prompts of a text: its lines, without empty ones and those that start with #."""
    stripped = (line.strip() for line in text.splitlines())
    return [line for line in stripped if line and not line.startswith("#")]


def encoded(clip: Any, text: str) -> Any:
    """CONDITIONING of a text, as CLIPTextEncode makes it."""
    [conditioning] = host_nodes.CLIPTextEncode().encode(clip, text)
    return conditioning


def together(reports: Sequence[SearchReport]) -> dict[str, Any]:
    """What the node shows of all its searches: their sums, the means of the best scores, and each one's warnings."""
    each = [summary(report) for report in reports]
    sums = {key: sum(one[key] for one in each) for key in ("nfe", "model_rows", "seconds", "candidates")}
    bests = [one["best"] for one in each]
    held_out = {name: mean(best["held_out"].get(name) for best in bests) for best in bests for name in best["held_out"]}
    warnings = [f"prompt {number}: {text}" for number, one in enumerate(each, 1) for text in one["warnings"]]
    notes = list(dict.fromkeys(note for one in each for note in one["notes"]))
    count = f"best score, mean of {len(each)} prompts" if len(each) > 1 else "best score of 1 prompt"
    return {
        **sums,
        "best": {"score": mean(best["score"] for best in bests), "held_out": held_out},
        "first": None,
        "stopped": {reason: limit for one in each for reason, limit in one["stopped"].items()},
        "gains": mean_gains([gain for one in each for gain in one["gains"]]),
        "warnings": warnings,
        "notes": [count, *notes],
    }


def mean_gains(gains: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One gain per held-out verifier: the mean of its gains in all searches, and what is left of the searched one."""
    made = []
    for name in dict.fromkeys(gain["held_out_name"] for gain in gains):
        # the two means are of the same searches, or their ratio would say nothing
        whole = [g for g in gains if g["held_out_name"] == name and None not in (g["searched"], g["held_out"])]
        searched, held_out = mean(g["searched"] for g in whole), mean(g["held_out"] for g in whole)
        ratio = held_out / searched if whole and searched > 0 else None
        made.append({"held_out_name": name, "searched": searched, "held_out": held_out, "ratio": ratio})
    return made


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of those that are numbers; None where there is none."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
