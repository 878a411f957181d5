"""A DINOv2 with random weights and a linear head, whose classes the tests' prompt names."""

from pathlib import Path
from typing import Any

from pack.tests.verifiers.samples import towers


def settings(folder: Path) -> dict[str, Any]:
    return {"file": str(towers.classifier(folder) / "model.safetensors")}
