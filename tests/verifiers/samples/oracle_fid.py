"""Oracle FID over the features of a random demo classifier, from the statistics of random pictures."""

from pathlib import Path
from typing import Any

import torch

from pack.tests.verifiers.samples import demo_classifier
from pack.verifiers.feature_sources import load_features
from pack.verifiers.fid_statistics import statistics_of, write_statistics


def settings(folder: Path) -> dict[str, Any]:
    file = demo_classifier.settings(folder)["file"]
    pictures = torch.rand(300, 3, 64, 64, generator=torch.Generator().manual_seed(7))
    write_statistics(folder / "reference.npz", statistics_of(load_features(file).features(pictures)))
    return {"features": file, "statistics": str(folder / "reference.npz")}
