"""Guidance without the model's gradient: x0 predictions are moved along the gradient of their score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .gradient_search import climbs
from .types import Plan, Row


def marked(row: Row, strength: float, end: float) -> Row:
    """The row with a word in its recipe that it is guided from here on to the sigma `end`; as it is without strength or
    way.
    """
    if strength == 0 or row.sigma <= end:
        return row
    return replace(row, recipe=row.recipe.then(op="uphill", strength=strength, **{"from": row.sigma, "to": end}))


def uphill(rows: Sequence[Row], moved: Sequence[Row], plan: Plan, strength: float) -> list[Row]:
    """`moved` as if they came from x0 predictions further up their gradients than those that `rows` carry (MPGD, He et
    al. 2024, arXiv 2311.16424).

    A prediction goes the length strength * n * |x0|, where n = b / sqrt(a^2 + b^2) for a state a * x0 + b * noise (b
    without the model's noise scale, so that it fades alike on all models); the noise stays what it was. One whose
    gradient is missing, zero or not finite stays where it is. In a latent that is a batch, each goes by itself.
    """
    a, b = plan.coefficients(rows[0].sigma)
    b /= plan.noise_scale
    share = strength * b / math.hypot(a, b)
    return [_uphill(row, new, plan, share) for row, new in zip(rows, moved, strict=True)]


def _uphill(row: Row, moved: Row, plan: Plan, share: float) -> Row:
    assert row.x0 is not None and moved.x is not None
    if row.gradient is None:
        return replace(moved, gradient=None)
    a, _ = plan.coefficients(moved.sigma)
    images = zip(moved.x, row.x0, row.gradient, strict=True)
    return replace(moved, x=torch.stack([_shifted(*image, a, share) for image in images]), gradient=None)


def _shifted(x: Tensor, x0: Tensor, gradient: Tensor, a: float, share: float) -> Tensor:
    """The state of one image [*latent] whose prediction goes `share` of its own length along the gradient."""
    if not climbs(gradient):
        return x
    length = share * torch.linalg.vector_norm(x0) / torch.linalg.vector_norm(gradient)
    shifted: Tensor = x + a * length * gradient.to(x)
    return shifted
