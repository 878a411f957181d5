"""What verifiers need of models that the host has loaded already, or that other libraries bring."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor


class ImageTower(Protocol):
    """A network that embeds images."""

    name: str  # what it is, for the verifier's name and messages: "CLIP ViT-L/14"
    family: str  # clip, siglip or dino: features of different families are not comparable
    size: int  # height and width of what it takes

    def embed(self, pixels: Tensor) -> Tensor:
        """Embeddings float32 [B, D], not normalised, of pixels [B, 3, size, size] in 0..1: it does mean and std."""


class TextTower(Protocol):
    """A network that embeds texts into the space of an image tower."""

    name: str
    width: int  # numbers in an embedding

    def embed(self, text: str, long_prompts: str = "chunk") -> Tensor:
        """The embedding float32 [D] of a text, not normalised.

        A text over the tower's limit is read in pieces whose embeddings are averaged ("chunk") or cut off ("truncate").
        """


class VisionLanguageModel(Protocol):
    """A language model that sees one image and is asked one question."""

    name: str

    def next_token_logits(self, image: Tensor, question: str) -> Tensor:
        """Logits float32 [vocabulary] of the first token of the answer. image [1, H, W, 3] in 0..1."""

    def tokens(self, word: str) -> Sequence[int]:
        """The ids of the single tokens that are `word`, capitalised or not, with or without a space before it.

        The first is `word` as it is written, if that is one token.
        """
