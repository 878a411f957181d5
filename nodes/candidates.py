"""Noise Candidate and Noise From Recipe: which noises a search tries, and how to have one again."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comfy_api.latest import io
from comfy_extras import nodes_custom_sampler

from ..search.errors import SearchError
from ..search.recipe import MIDWAY, Operation, Recipe
from ..search.space import Candidates
from . import sockets
from .noise import RecipeNoise

#: What each operation of MIDWAY did to a candidate.
ON_THE_WAY = {
    "renoise": "it was re-noised",
    "step": "it took random steps of the search's own",
    "guide": "it was corrected by lookaheads",
    "uphill": "it was moved along the gradient of its score",
    "pause": "its sampler was stopped and began anew from there",
}


@dataclass(frozen=True)
class WiredCandidates:
    """What flows on a NOISE_CANDIDATES socket: the candidates, and the NOISE that their recipes start from."""

    candidates: Candidates
    given: Any = None


def candidates_around(noise: Any, seed: int, cosine: float | None) -> WiredCandidates:
    """Candidates that start with a NOISE object; with a `cosine`, the later ones are its neighbours."""
    if isinstance(noise, RecipeNoise) and not noise.recipe.ascended:
        return WiredCandidates(Candidates(noise.recipe, seed, cosine), noise.given)
    if _is_random_noise(noise):
        return WiredCandidates(Candidates(Recipe.of_seed(noise.seed), seed, cosine))
    return WiredCandidates(Candidates(Recipe.of_given(int(noise.seed)), seed, cosine), noise)


def _is_random_noise(noise: Any) -> bool:
    """Whether a NOISE is of the host's own Random Noise, and no other pack's class of that name.

    The host loads the file of its nodes under a path, and whoever imports it has the class once more: the file decides.
    """
    file = getattr(sys.modules.get(type(noise).__module__), "__file__", None)
    named = type(noise).__name__ == nodes_custom_sampler.Noise_RandomNoise.__name__
    return named and file is not None and Path(file).samefile(nodes_custom_sampler.__file__)


class NoiseCandidate(io.ComfyNode):
    """Where the noises of a search come from."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NoiseSearchNoiseCandidate",
            display_name="Noise Candidate",
            category=sockets.CATEGORY,
            description="Where the noises of a search come from: fresh seeds after your own, or, with a NOISE wired, "
            "the neighbourhood of a noise that you already like.",
            inputs=[
                io.Int.Input(
                    "seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True,
                    tooltip="Candidate 0 is exactly this seed, as KSampler uses it. With a NOISE wired it chooses the "
                    "neighbours instead.",
                ),
                io.Float.Input(
                    "cosine", default=0.9, min=-1.0, max=1.0, step=0.01, optional=True,
                    tooltip="Only with a NOISE wired: how close the candidates stay to it. 1 = the same noise, "
                    "0.95 = same layout, 0 = unrelated.",
                ),
                io.Noise.Input("noise", optional=True, tooltip="Search around this noise. It is candidate 0."),
            ],
            outputs=[sockets.NoiseCandidates.Output(display_name="candidates", tooltip="For candidates of a search.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, seed: int = 0, cosine: float = 0.9, noise: Any = None) -> io.NodeOutput:
        if noise is None:
            return io.NodeOutput(WiredCandidates(Candidates.of_seed(seed)))
        return io.NodeOutput(candidates_around(noise, seed, cosine))


class NoiseFromRecipe(io.ComfyNode):
    """A NOISE from the recipe in a report."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NoiseSearchNoiseFromRecipe",
            display_name="Noise From Recipe",
            category=sockets.CATEGORY,
            description="Makes the noise of a candidate again from the recipe in a search report, for "
            "SamplerCustomAdvanced or for a new search around it.",
            inputs=[
                io.String.Input("recipe", multiline=True, default="", tooltip='For example [{"op": "seed", "seed": 7}]')
            ],
            outputs=[io.Noise.Output(tooltip="For SamplerCustomAdvanced, or noise of Noise Candidate.")],
        )

    @classmethod
    def execute(cls, recipe: str = "") -> io.NodeOutput:
        read = Recipe.from_json(recipe)
        if read.beside:
            raise SearchError(
                "recipe: the search changed this candidate's cfg, guidance or conditioning too, so its noise alone "
                "does not make it again; use Candidate From Recipe"
            )
        return io.NodeOutput(noise_of(read))


def noise_of(recipe: Recipe) -> RecipeNoise:
    """The noise of a recipe that was read from a text. Raises SearchError where it takes more than the text."""
    kinds = {operation["op"] for operation in all_operations(recipe.operations)}
    if "given" in kinds:
        raise SearchError(
            "recipe: it starts from a NOISE of another node, which the text cannot make again; "
            "wire that NOISE to Noise Candidate and search around it"
        )
    if "ascent" in kinds:
        raise SearchError(
            "recipe: the search moved this noise along a gradient, which the text does not hold; use the LATENT or "
            "the NOISE output of that search"
        )
    if kinds & MIDWAY:
        what = " and ".join(text for kind, text in ON_THE_WAY.items() if kind in kinds)
        raise SearchError(
            f"recipe: the search acted on this candidate on its way ({what}), so no start noise makes it again; "
            "use the LATENT of the search"
        )
    return RecipeNoise(recipe)


def all_operations(operations: Sequence[Operation]) -> Iterator[Operation]:
    """The operations of a recipe and of the recipes in it."""
    for operation in operations:
        yield operation
        yield from all_operations(operation.get("with", ()))
