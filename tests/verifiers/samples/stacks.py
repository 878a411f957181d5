"""AlexNet and VGG16 with random weights under torchvision's names, without the classifiers, which are large."""

from pathlib import Path

import torch
from torchvision import models


def write_stack(name: str, path: Path, seed: int = 3) -> None:
    """Write what a torchvision checkpoint of `alexnet` or `vgg16` holds of its feature layers."""
    with torch.device("meta"):
        shapes = getattr(models, name)(weights=None).features.state_dict()
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for key, empty in shapes.items():
        deviation = (2 / empty[0].numel()) ** 0.5 if key.endswith("weight") else 0.1
        weights[f"features.{key}"] = torch.randn(empty.shape, generator=generator) * deviation
    torch.save(weights, path)


def random_linear(name: str, seed: int = 4) -> dict[str, torch.Tensor]:
    """Linear layers of LPIPS for a stack: not negative, as they were trained."""
    channels = {"alexnet": (64, 192, 384, 256, 256), "vgg16": (64, 128, 256, 512, 512)}[name]
    generator = torch.Generator().manual_seed(seed)
    return {f"lin{k}.model.1.weight": torch.rand(1, c, 1, 1, generator=generator) for k, c in enumerate(channels)}


def random_alpha_beta(seed: int = 5) -> dict[str, torch.Tensor]:
    """The weights of DISTS: not negative, as they were trained."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(1, 1475, 1, 1, generator=generator) * 0.02 for name in ("alpha", "beta")}


def pictures(count: int, seed: int = 6) -> torch.Tensor:
    """Smooth random pictures [count, 48, 80, 3] in 0..1."""
    small = torch.rand(count, 3, 6, 10, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(small, scale_factor=8, mode="bilinear").movedim(1, -1)
