"""Candidate From Recipe: all that makes a candidate of Search: Axes again in a stock graph."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..search.recipe import Recipe
from . import sockets
from .candidates import noise_of
from .guider_axes import positive_as


class CandidateFromRecipe(io.ComfyNode):
    """Noise, positive conditioning and cfg from the recipe in a report."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NoiseSearchCandidateFromRecipe",
            display_name="Candidate From Recipe",
            category=sockets.CATEGORY,
            description="Makes all of a candidate of Search: Axes again from the recipe in a search report: its noise, "
            "its positive conditioning and its cfg, for CFGGuider and SamplerCustomAdvanced.",
            inputs=[
                io.String.Input(
                    "recipe", multiline=True, default="",
                    tooltip='For example [{"op": "seed", "seed": 7}, {"op": "cfg", "scale": 4.5}]',
                ),
                io.Conditioning.Input("positive", tooltip="The positive that the search was given."),
                io.Float.Input("cfg", default=8.0, min=0.0, max=100.0, step=0.1, round=0.01, optional=True,
                               tooltip="The cfg of the search, for recipes that do not name one."),
            ],
            outputs=[
                io.Noise.Output(display_name="noise", tooltip="Its start noise, for SamplerCustomAdvanced."),
                io.Conditioning.Output(display_name="positive", tooltip="positive, as the search changed it."),
                io.Float.Output(display_name="cfg", tooltip="The search's own, or else cfg."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, recipe: str = "", positive: Any = None, cfg: float = 8.0) -> io.NodeOutput:
        read = Recipe.from_json(recipe)
        scales = [float(operation["scale"]) for operation in read.beside if operation["op"] == "cfg"]
        conds = [{**more, "cross_attn": embeddings} for embeddings, more in positive]
        made = [[cond.pop("cross_attn"), cond] for cond in positive_as(conds, read.beside)]
        # a search around this noise must not ask for once more what it is wired beside
        noise = noise_of(Recipe(tuple(operation for operation in read.operations if operation not in read.beside)))
        return io.NodeOutput(noise, made, scales[-1] if scales else cfg)
