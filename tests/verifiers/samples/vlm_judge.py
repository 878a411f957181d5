"""A judge with a stand-in for a vision-language model, whose answer depends on the image and the question."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

WORDS = {"Yes": [3, 5], "No": [4, 9]}


class RedIsYes:
    """Says Yes to red images, and leans to No with long questions; has 12 words."""

    name = "stand-in"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def next_token_logits(self, image: Tensor, question: str) -> Tensor:
        assert image.ndim == 4 and len(image) == 1 and image.shape[-1] == 3
        self.asked.append(question)
        logits = torch.linspace(-9, -7, 12)
        red, rest = image[..., 0].mean().cpu(), image[..., 1:].mean().cpu()
        logits[3], logits[5], logits[4], logits[9] = 2 * red, red - 1, 2 * rest + len(question) / 50, rest - 2
        return logits

    def tokens(self, word: str) -> Sequence[int]:
        return WORDS.get(word, [])


def settings(folder: Path) -> dict[str, Any]:
    return {"vlm": RedIsYes()}
