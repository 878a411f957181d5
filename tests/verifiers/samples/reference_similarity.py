"""The features of a DINOv2 with random weights, and two references."""

from pathlib import Path
from typing import Any

import torch

from pack.tests.verifiers.samples import towers


def settings(folder: Path) -> dict[str, Any]:
    references = torch.rand(2, 40, 56, 3, generator=torch.Generator().manual_seed(45))
    return {"file": str(towers.dinov2(folder) / "model.safetensors"), "references": references}
