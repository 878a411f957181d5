"""The convolutional layers of AlexNet and VGG16, with torchvision's weights: what perceptual distances compare."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ..search.errors import SearchError
from .files import Download, Source, read_tensors, weights_at
from .fill import filled

ALEXNET = Source(
    file="alexnet-owt-7be5be79.pth",
    address="https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
    size="244 MB",
    licence="BSD-3-Clause (torchvision); trained on ImageNet, which is for research",
    put="ComfyUI's models/verifiers",
    downloads=(
        Download(
            "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth", "alexnet-owt-7be5be79.pth",
            "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
        ),
    ),
)
VGG16 = Source(
    file="vgg16-397923af.pth",
    address="https://download.pytorch.org/models/vgg16-397923af.pth",
    size="553 MB",
    licence="BSD-3-Clause (torchvision); trained on ImageNet, which is for research",
    put="ComfyUI's models/verifiers",
    downloads=(
        Download(
            "https://download.pytorch.org/models/vgg16-397923af.pth", "vgg16-397923af.pth",
            "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
        ),
    ),
)
#: The layers behind which features are read: the last ReLU before every pooling, and the last of all.
TAPS = {"alexnet": (1, 4, 7, 9, 11), "vgg16": (3, 8, 15, 22, 29)}
CHANNELS = {"alexnet": (64, 192, 384, 256, 256), "vgg16": (64, 128, 256, 512, 512)}


class FeatureStack(nn.Module):
    """The layers of one of torchvision's classifiers before its head, and where features are read."""

    def __init__(self, name: str) -> None:
        super().__init__()
        from torchvision import models

        self.name, self.taps, self.channels = name, TAPS[name], CHANNELS[name]
        whole = {"alexnet": models.alexnet, "vgg16": models.vgg16}[name](weights=None)
        self.features: nn.Sequential = whole.features

    def forward(self, x: Tensor) -> list[Tensor]:
        """Normalised pixels [B, 3, H, W] -> features at the taps, each [B, channels, h, w]."""
        taken = []
        for index, layer in enumerate(self.features[: self.taps[-1] + 1]):
            x = layer(x)
            if index in self.taps:
                taken.append(x)
        return taken


def load_stack(file: str, source: Source) -> FeatureStack:
    """The stack whose weights are in `file`; which of the two it is, its first layer tells.

    The checkpoint's classifier head is left where it is. Raises SearchError when the file is missing, damaged or
    neither of the two; `source` is what the user is told to get.
    """
    path = weights_at(file, source)
    with torch.inference_mode(False):
        tensors = {name: t for name, t in read_tensors(path, source).items() if name.startswith("features.")}
        with torch.device("meta"):
            stack = FeatureStack(_name(path, tensors, source))
        filled(stack, tensors, path, f"{stack.name} of torchvision", source)
    return stack


def _name(path: Path, tensors: dict[str, Tensor], source: Source) -> str:
    first = tensors.get("features.0.weight")
    shape = None if first is None else tuple(first.shape)
    names = {(64, 3, 11, 11): "alexnet", (64, 3, 3, 3): "vgg16"}
    if shape not in names:
        raise SearchError(
            f"file: {path.name} is neither AlexNet nor VGG16 of torchvision: its features.0.weight is "
            f"{shape or 'missing'}; expected one of {', '.join(map(str, names))}; {source}"
        )
    return names[shape]
