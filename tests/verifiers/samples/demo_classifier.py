"""A demo classifier with random weights."""

from pathlib import Path
from typing import Any

import torch

from pack.demo import classifier


def settings(folder: Path) -> dict[str, Any]:
    torch.manual_seed(12)
    classifier.save(classifier.Classifier(), folder / "random.safetensors")
    return {"file": str(folder / "random.safetensors")}
