"""What makes the outputs of a search from a candidate: LATENT always, NOISE and seed where it has them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import comfy.model_management
import torch
from comfy_execution.graph_utils import ExecutionBlocker

from ..search.recipe import Recipe, describe
from ..search.report import Kept
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
        return self.put_out(kept), self._noise(kept, called), _seed(kept, called), kept.evaluation.score

    def put_out(self, kept: Kept) -> dict[str, Any]:
        """The LATENT of a candidate."""
        samples = self.samples(kept).to(comfy.model_management.intermediate_device())
        return {**self.latent, "samples": samples if self.dtype is None else samples.to(self.dtype)}

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
