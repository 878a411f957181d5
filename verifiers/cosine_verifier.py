"""What most verifiers of the CLIP family are: the cosine of an image and a prompt, in units of the verifier's own."""

from __future__ import annotations

from torch import Tensor

from .dual_tower import DualTower
from .images import scored


class CosineVerifier:
    """`times * cosine + bias` of the unit embeddings of an image and of its prompt.

    Which tower, geometry and units make which verifier is said where it is loaded.
    """

    differentiable = True
    needs_prompt = True

    def __init__(
        self,
        name: str,
        towers: DualTower,
        times: float = 1.0,
        bias: float = 0.0,
        scale: tuple[float, float] | None = None,
    ) -> None:
        self.name, self.towers, self.module = name, towers, towers.module
        self.times, self.bias, self.scale = times, bias, scale
        self.notes = towers.notes

    def score(self, images: Tensor, prompt: str) -> Tensor:
        """images [B, H, W, 3] in 0..1 -> scores float32 [B] on the CPU."""
        text = self.towers.prompt(prompt)
        return scored(images, lambda pixels: self.times * self.towers.dot(pixels, text) + self.bias)

    def features(self, images: Tensor) -> Tensor:
        """The tower's unit embeddings float32 [B, D] on the CPU of images [B, H, W, 3] in 0..1."""
        return self.towers.features(images)
