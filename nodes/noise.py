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

    `given` is the NOISE that a recipe with a "given" operation starts from, `ascended` the noise that its last "ascent"
    led to: no text holds them.
    """

    def __init__(self, recipe: Recipe, given: Any = None, ascended: torch.Tensor | None = None) -> None:
        self.recipe, self.given, self.ascended = recipe, given, ascended
        self.seed = recipe.step_seed

    def generate_noise(self, latent: dict[str, Any]) -> Any:
        """Unit noise shaped as latent["samples"], on the CPU."""
        samples = latent["samples"]
        given = packed(self.given.generate_noise(latent)) if self.given is not None else None
        if given is not None:  # stock seeds the global generator here, as `draw` does; some samplers go on from it
            torch.manual_seed(self.seed)

        def draw(seed: int) -> torch.Tensor:
            return packed(comfy.sample.prepare_noise(samples, seed, latent.get("batch_index")))

        noise = self.recipe.noise(draw, given, self.ascended)
        if any(operation["op"] == "step_noise" for operation in self.recipe.operations):
            torch.manual_seed(self.seed)  # for the same samplers: their noise has a seed of its own
        return unpacked(noise, samples)


def packed(samples: Any) -> torch.Tensor:
    """A latent as one tensor [B, ...]: nested parts flattened and joined, as ComfyUI's samplers see them."""
    return comfy.utils.pack_latents(samples.unbind())[0] if samples.is_nested else samples


def unpacked(tensor: torch.Tensor, like: Any) -> Any:
    """A packed tensor as a latent of the kind of `like`: nested where `like` is nested."""
    if not like.is_nested:
        return tensor
    shapes = [part.shape for part in like.unbind()]
    return comfy.nested_tensor.NestedTensor(comfy.utils.unpack_latents(tensor, shapes))
