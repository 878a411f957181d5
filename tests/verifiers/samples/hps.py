"""HPSv2 with random weights under OpenCLIP's names, one level down in a .pt file."""

from pathlib import Path
from typing import Any

from pack.tests.verifiers.tiny_clip import write_clip


def settings(folder: Path) -> dict[str, Any]:
    return {"file": write_clip(folder / "HPS_v2.1_compressed.pt")}
