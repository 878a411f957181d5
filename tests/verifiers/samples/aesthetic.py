"""LAION's aesthetic predictor with random weights, on an image tower alone."""

from pathlib import Path
from typing import Any

import torch

from pack.tests.verifiers.conftest import random_clip
from pack.tests.verifiers.tiny_clip import write_clip


def head(width: int = 48) -> torch.nn.Module:
    """The five layers of the published file, with dropout between them as there."""
    torch.manual_seed(21)
    sizes = [(width, 1024), (1024, 128), (128, 64), (64, 16)]
    layers = [layer for size in sizes[:3] for layer in (torch.nn.Linear(*size), torch.nn.Dropout(0.2))]
    network = torch.nn.Module()
    network.layers = torch.nn.Sequential(*layers, torch.nn.Linear(*sizes[3]), torch.nn.Linear(16, 1))
    return network.eval().requires_grad_(False)


def settings(folder: Path) -> dict[str, Any]:
    tower = {k: v for k, v in random_clip().state_dict().items() if k.startswith("vis")}
    torch.save(head().state_dict(), folder / "head.pth")
    return {"file": write_clip(folder / "tower.safetensors", tower), "head": str(folder / "head.pth")}
