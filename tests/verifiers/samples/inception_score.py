"""Inception Score over the classes of a random demo classifier."""

from pathlib import Path
from typing import Any

from pack.tests.verifiers.samples import demo_classifier


def settings(folder: Path) -> dict[str, Any]:
    return {"features": demo_classifier.settings(folder)["file"]}
