"""Pick From Report: any of a search's best candidates, with what makes it again."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..search.errors import SearchError
from ..search.report import Kept, SearchReport
from . import sockets
from .decoder import Decoder


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
                io.Float.Output(display_name="score", tooltip="What the verifier of its search said of it."),
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
