"""The features of a DINOv2 with random weights."""

from pathlib import Path
from typing import Any

from pack.tests.verifiers.samples import towers


def settings(folder: Path) -> dict[str, Any]:
    return {"file": str(towers.dinov2(folder) / "model.safetensors")}
