"""CLIP Class with random weights and the classes of the demo world."""

from pathlib import Path
from typing import Any

from pack.demo.scenes import CLASSES
from pack.tests.verifiers.tiny_clip import write_clip


def settings(folder: Path) -> dict[str, Any]:
    return {"file": write_clip(folder / "model.safetensors"), "classes": "\n".join(CLASSES), "templates": "photo"}
