"""One small node per search algorithm."""

from __future__ import annotations

from comfy_api.latest import io

from .. import search
from . import sockets


def _schema(name: str, title: str, description: str, inputs: list[io.Input]) -> io.Schema:
    return io.Schema(
        node_id=f"NoiseSearchAlgorithm{name}",
        display_name=f"Search: {title}",
        category=f"{sockets.CATEGORY}/algorithms",
        description=description,
        inputs=inputs,
        outputs=[sockets.SearchAlgorithm.Output(display_name="algorithm")],
    )


class RandomSearch(io.ComfyNode):
    """Best of N."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema("Random", "Random", "Best of N fresh noises: simple, diverse, hard to beat.", [])

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(search.algorithm("random"))


class ZeroOrderSearch(io.ComfyNode):
    """ZO-N."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "ZeroOrder", "Zero-Order",
            "Walks from a noise to better neighbours, and starts afresh when none is better. Stays close to what it "
            "found: good for refining a liked image.",
            [
                io.Int.Input("neighbours", default=4, min=1, max=256, tooltip="Neighbours per round (N of ZO-N)."),
                io.Float.Input("cosine", default=0.95, min=-1.0, max=1.0, step=0.01,
                               tooltip="How close neighbours are to the pivot: 1 = the same noise, 0 = unrelated."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, neighbours: int = 4, cosine: float = 0.95) -> io.NodeOutput:
        return io.NodeOutput(search.algorithm("zero_order", neighbours=neighbours, cosine=cosine))


class SearchOverPaths(io.ComfyNode):
    """Paths-N."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        share = "as a share of noise: sigma of a flow model, sigma / (1 + sigma) of others."
        return _schema(
            "Paths", "Paths",
            "Re-noises half-made images several ways and goes on with the best. Needs a sampler without memory, "
            "such as euler.",
            [
                io.Int.Input("paths", default=2, min=1, max=64, tooltip="Paths kept after each round (N)."),
                io.Int.Input("width", default=5, min=1, max=64, tooltip="Ways each path is re-noised per round (M)."),
                io.Float.Input("start", default=0.11, min=0.01, max=0.99, step=0.01,
                               tooltip=f"Where paths start, {share}"),
                io.Float.Input("forward", default=0.78, min=0.01, max=0.98, step=0.01,
                               tooltip=f"How far a round re-noises, {share}"),
                io.Float.Input("backward", default=0.81, min=0.02, max=0.99, step=0.01,
                               tooltip="How far a round denoises; must be larger than forward."),
                io.Int.Input("leg_steps", default=0, min=0, max=1000,
                             tooltip="Steps of each way down; 0 = the steps of the schedule."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, paths: int = 2, width: int = 5, start: float = 0.11, forward: float = 0.78, backward: float = 0.81,
        leg_steps: int = 0,
    ) -> io.NodeOutput:  # fmt: skip
        if backward <= forward:
            raise search.SearchError(
                f"Search: Paths: got forward={forward:g} and backward={backward:g}; expected backward larger than "
                "forward, or the paths would never reach an image"
            )
        settings = {"paths": paths, "width": width, "start": start, "forward": forward, "backward": backward}
        return io.NodeOutput(search.algorithm("paths", **settings, leg_steps=leg_steps))
