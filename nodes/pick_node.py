"""Pick From Report: any of a search's best candidates, with what makes it again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import comfy.model_management
import torch
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..search.errors import SearchError
from ..search.recipe import Recipe, describe
from ..search.report import Kept, SearchReport
from . import sockets
from .decoder import Decoder
from .noise import RecipeNoise, unpacked


@dataclass(frozen=True)
class Origin:
    """What a search's candidates share: with the row of one, a node's outputs. A report carries it, so it holds no
    model.

    `latent` is the user's LATENT with shapes for samples, `given` the NOISE that recipes with a "given" operation start
    from, `dtype` that of the LATENT that goes out (None = as it was sampled).
    """

    latent: dict[str, Any]
    given: Any
    dtype: torch.dtype | None

    @classmethod
    def of(cls, latent: dict[str, Any], given: Any, dtype: torch.dtype | None) -> Origin:
        """Of the LATENT that a search starts from."""
        return cls({**latent, "samples": latent["samples"].to("meta")}, given, dtype)

    def outputs(self, kept: Kept, called: str = "this candidate") -> tuple[Any, Any, Any, float]:
        """LATENT, NOISE, seed and score. What the candidate does not have (a seed, a NOISE) is blocked, with a reason.

        `called`: what the reason calls it.
        """
        samples = self.samples(kept).to(comfy.model_management.intermediate_device())
        latent = {**self.latent, "samples": samples if self.dtype is None else samples.to(self.dtype)}
        return latent, self._noise(kept, called), _seed(kept, called), kept.evaluation.score

    def samples(self, kept: Kept) -> Any:
        """The latent of a candidate, as it was sampled; nested where the user's own is."""
        return unpacked(kept.row.x, self.latent["samples"])

    def _noise(self, kept: Kept, called: str) -> Any:
        recipe = Recipe(kept.evaluation.recipe)
        if recipe.replayable:
            return RecipeNoise(recipe, self.given, kept.row.noise)
        return ExecutionBlocker(
            f"more than its start noise makes {called} ({describe(recipe.operations)}): use its LATENT, or "
            "Candidate From Recipe"
            if recipe.beside
            else f"the search acted on {called} on its way, so no start noise makes it again: use its LATENT"
        )


def _seed(kept: Kept, called: str) -> Any:
    recipe = Recipe(kept.evaluation.recipe)
    if recipe.seed is not None:
        return recipe.seed
    return ExecutionBlocker(
        f"KSampler does not make {called} from a seed alone ({describe(recipe.operations)}): use its LATENT, or "
        "Candidate From Recipe"
        if recipe.beside
        else f"{called}'s noise is no plain seed: use NOISE with SamplerCustomAdvanced, or its LATENT"
    )


class PickFromReport(io.ComfyNode):
    """One of the top k of a search."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NoiseSearchPick",
            display_name="Pick From Report",
            category=sockets.CATEGORY,
            description="Any of the best candidates of a search by its rank, with what makes it again: LATENT always, "
            "NOISE and seed where it has them. Renders nothing.",
            inputs=[
                sockets.SearchReport.Input("report", tooltip="From a Search Sampler: it holds as many as its top_k."),
                io.Int.Input("rank", default=1, min=1, max=256, optional=True,
                             tooltip="1 = the best, 2 = the one after it, as in images and on the Contact Sheet."),
                io.Vae.Input("vae", optional=True,
                             tooltip="Only for videos and latent batches: of a candidate after the best the report "
                             "holds one image, and this decodes all of them. The VAE of the search."),
            ],
            outputs=[
                io.Latent.Output(display_name="latent", tooltip="The candidate."),
                io.Image.Output(display_name="image", tooltip="The candidate; of a video or a latent batch, all of "
                                "its images."),
                io.Noise.Output(display_name="noise", tooltip="Its start noise, for SamplerCustomAdvanced."),
                io.Int.Output(display_name="seed", tooltip="Its seed, for KSampler, where it has one."),
                io.Float.Output(display_name="score"),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, report: Any = None, rank: int = 1, vae: Any = None) -> io.NodeOutput:
        kept = picked(report, rank)
        latent, noise, seed, score = report.origin.outputs(kept)
        return io.NodeOutput(latent, all_images(report, kept, vae), noise, seed, score)


def picked(report: SearchReport | None, rank: int) -> Kept:
    """The candidate of that rank, from 1. Raises SearchError where the report does not hold it."""
    if report is None or report.origin is None:
        raise SearchError(
            "report: it holds scores of images and not what made them, as that of Score Images does; wire the report "
            "of a Search Sampler, or wire latent to Score Images, which sorts it with the images"
        )
    if not 1 <= rank <= len(report.top):
        raise SearchError(
            f"rank: got {rank}; the report holds the best {len(report.top)} of {len(report.judged)} candidates: choose "
            f"1 to {len(report.top)}, or raise top_k on the Search Sampler (Search Prompts and Measure Curve keep the "
            "best alone)"
        )
    return report.top[rank - 1]


def all_images(report: SearchReport, kept: Kept, vae: Any) -> Any:
    """The images of a candidate [N, H, W, 3]; blocked where the report holds one of several and no `vae` is wired."""
    images = kept.images
    if not kept.whole:
        if vae is None:
            return ExecutionBlocker(
                "the report holds one image of this candidate, which has several: wire vae, or decode its LATENT"
            )
        samples = report.origin.samples(kept)
        images = Decoder("vae", vae).images(samples.unbind()[0] if samples.is_nested else samples)
    return images.reshape(-1, *images.shape[-3:])
