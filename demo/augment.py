"""Picture augmentation for the demo's image verifiers: what generated pictures have and drawn ones lack."""

from __future__ import annotations

import torch
from torch.nn import functional


def augment(images: torch.Tensor) -> torch.Tensor:
    """Random blur, noise, gain and tint per picture; [B, 64, 64, 3] in 0..1 to the same; uses torch's generator."""
    rows = len(images)
    first = images.permute(0, 3, 1, 2)
    blurred = functional.avg_pool2d(functional.pad(first, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    mix = torch.rand(rows, 1, 1, 1) * (torch.rand(rows, 1, 1, 1) < 0.6)
    first = first + mix * (blurred - first)
    first = first * (1 + 0.06 * torch.randn(rows, 1, 1, 1)) + 0.03 * torch.randn(rows, 3, 1, 1)
    first = first + torch.rand(rows, 1, 1, 1) * 0.06 * torch.randn_like(first)
    return first.clamp(0, 1).permute(0, 2, 3, 1)
