"""LPIPS with a random AlexNet and random linear layers, against two random pictures."""

from pathlib import Path
from typing import Any

import torch

from pack.tests.verifiers.samples.stacks import pictures, random_linear, write_stack


def settings(folder: Path) -> dict[str, Any]:
    write_stack("alexnet", folder / "alexnet.pth")
    torch.save(random_linear("alexnet"), folder / "alex.pth")
    return {
        "file": str(folder / "alexnet.pth"), "linear": str(folder / "alex.pth"), "references": pictures(2), "size": 64,
    }  # fmt: skip
