"""DISTS with a random VGG16 and random weights, against one random picture."""

from pathlib import Path
from typing import Any

import torch

from pack.tests.verifiers.samples.stacks import pictures, random_alpha_beta, write_stack


def settings(folder: Path) -> dict[str, Any]:
    write_stack("vgg16", folder / "vgg16.pth")
    torch.save(random_alpha_beta(), folder / "weights.pt")
    return {
        "file": str(folder / "vgg16.pth"), "weights": str(folder / "weights.pt"), "references": pictures(1), "size": 64,
    }  # fmt: skip
