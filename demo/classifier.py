"""The demo classifier: says which of the 24 "colour shape" classes a picture shows."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

from .scenes import CLASSES


def _stage(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]


class Classifier(nn.Module):
    """Pictures [B, 3, 64, 64] in 0..1 to one logit per class, [B, 24]; several classes may be present at once."""

    def __init__(self, classes: tuple[str, ...] = CLASSES) -> None:
        super().__init__()
        self.classes = tuple(classes)
        self.features = nn.Sequential(
            *_stage(3, 24, 2), *_stage(24, 48, 2), *_stage(48, 64, 1), *_stage(64, 96, 2), *_stage(96, 96, 1)
        )
        self.head = nn.Linear(2 * 96, len(self.classes))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        seen = self.features(images * 2 - 1)
        return self.head(torch.cat((seen.amax(dim=(2, 3)), seen.mean(dim=(2, 3))), dim=1))


def save(model: Classifier, path: str | Path) -> None:
    """Writes the weights (fp32) with the class names as JSON under "classes" in the file's metadata."""
    from safetensors.torch import save_file

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"format": "pt", "license": "Apache-2.0", "classes": json.dumps(list(model.classes))}
    weights = {name: value.detach().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, str(path), metadata=metadata)


def load(path: str | Path) -> Classifier:
    """The classifier of a weights file, in float32 and in evaluation mode; its `classes` come from the metadata.

    Raises ValueError when the file names no classes.
    """
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as stored:
        metadata = stored.metadata() or {}
        weights = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - not a dict
    if "classes" not in metadata:
        raise ValueError(f"{path} has no class names in its metadata")
    model = Classifier(tuple(json.loads(metadata["classes"])))
    model.load_state_dict(weights)
    return model.eval()
