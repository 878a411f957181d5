"""The exact judge, which has no settings."""

from pathlib import Path
from typing import Any


def settings(folder: Path) -> dict[str, Any]:
    return {}
