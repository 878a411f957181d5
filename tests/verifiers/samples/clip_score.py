"""CLIPScore with the demo's own CLIP."""

from pathlib import Path
from typing import Any

from pack.demo import paths


def settings(folder: Path) -> dict[str, Any]:
    return {"file": str(paths.CLIP / "model.safetensors")}
