"""Networks that turn pictures into the numbers that FID and Inception Score count: Inception, or another one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..search.errors import SearchError
from .files import SAFETENSORS, read_tensors, weights_at
from .images import square
from .inception import CLASSES, INCEPTION, MARK, made_inception

_DEMO_SIZE = 64


@dataclass(frozen=True)
class FeatureSource:
    """A network and what is read from it: both functions take pixels [B, 3, H, W] in 0..1 and give float32.

    `features` is [B, D]; `logits`, where the network is a classifier, [B, classes].
    """

    name: str
    module: nn.Module
    features: Callable[[Tensor], Tensor]
    logits: Callable[[Tensor], Tensor] | None = None
    classes: int = 0
    half = False  # a distance of features to the third digit


def load_features(file: str) -> FeatureSource:
    """The feature source that `file` names: FID's Inception, the demo classifier, or any image tower (CLIP, DINO, ...).

    Which one it is, the names of the tensors tell. Raises SearchError when the file is missing, damaged or none of
    them.
    """
    path = weights_at(file, INCEPTION)
    with torch.inference_mode(False):
        tensors = read_tensors(path, INCEPTION)
    if MARK in tensors:
        network = made_inception(tensors, path)
        return FeatureSource("Inception", network, network, network.logits, CLASSES)
    if {"features.0.weight", "head.weight"} <= tensors.keys() and path.suffix == SAFETENSORS:
        return _demo_classifier(path)
    return _image_tower(file)


def _demo_classifier(path: Path) -> FeatureSource:
    from .demo_classifier import load_demo_classifier

    verifier = load_demo_classifier(str(path))
    network = verifier.module
    features, head = network.get_submodule("features"), network.get_submodule("head")

    def seen(pixels: Tensor) -> Tensor:
        weight = next(network.parameters())
        maps: Tensor = features(square(pixels, _DEMO_SIZE).to(weight) * 2 - 1)
        return torch.cat((maps.amax(dim=(2, 3)), maps.mean(dim=(2, 3))), dim=1)

    def logits(pixels: Tensor) -> Tensor:
        out: Tensor = head(seen(pixels))
        return out.float()

    return FeatureSource("Demo Classifier", network, lambda pixels: seen(pixels).float(), logits, len(verifier.classes))


def _image_tower(file: str) -> FeatureSource:
    from .image_towers import load_image_tower

    try:
        tower = load_image_tower(file)
    except SearchError as error:
        raise SearchError(f"{error}; for FID as it is published: {INCEPTION}") from error
    return FeatureSource(tower.name, tower.module, lambda pixels: tower.embed(tower.preprocessing.fit(pixels)))
