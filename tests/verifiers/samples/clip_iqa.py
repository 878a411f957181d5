"""CLIP-IQA with random weights."""

from pathlib import Path
from typing import Any

from pack.tests.verifiers.tiny_clip import write_clip


def settings(folder: Path) -> dict[str, Any]:
    return {"file": write_clip(folder / "model.safetensors")}
