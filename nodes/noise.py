"""NOISE objects that ComfyUI's own samplers take: a recipe's noise, replayed."""

from __future__ import annotations

from typing import Any

import comfy.nested_tensor
import comfy.sample
import comfy.utils
import torch

from ..search.recipe import Recipe


class RecipeNoise:
    """The start noise of a recipe, for SamplerCustomAdvanced: `seed` drives the step noise, as in the search.

    `given` is the NOISE that a recipe with a "given" operation starts from.
    """

    def __init__(self, recipe: Recipe, given: Any = None) -> None:
        self.recipe, self.given = recipe, given
        self.seed = recipe.step_seed

    def generate_noise(self, latent: dict[str, Any]) -> Any:
        """Unit noise shaped as latent["samples"], on the CPU."""
        samples = latent["samples"]
        given = packed(self.given.generate_noise(latent)) if self.given is not None else None
        # stock seeds the global generator here, and some samplers go on drawing from it
        torch.manual_seed(self.seed)

        def draw(seed: int) -> torch.Tensor:
            return packed(comfy.sample.prepare_noise(samples, seed, latent.get("batch_index")))

        return unpacked(self.recipe.noise(draw, given), samples)


def packed(samples: Any) -> torch.Tensor:
    """A latent as one tensor [B, ...]: nested parts flattened and joined, as ComfyUI's samplers see them."""
    return comfy.utils.pack_latents(samples.unbind())[0] if samples.is_nested else samples


def unpacked(tensor: torch.Tensor, like: Any) -> Any:
    """A packed tensor as a latent of the kind of `like`: nested where `like` is nested."""
    if not like.is_nested:
        return tensor
    shapes = [part.shape for part in like.unbind()]
    return comfy.nested_tensor.NestedTensor(comfy.utils.unpack_latents(tensor, shapes))
