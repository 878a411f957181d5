"""Gradient search: climb the verifier's score along its gradient by the start noise, through the whole sampler."""

from __future__ import annotations

from typing import TypeGuard

from torch import Tensor

from .errors import SearchError
from .settings import check_at_least, check_choice
from .space import Space
from .types import Plan, Search, finish, gradient

NORMS = ("sphere", "penalty", "free")


def gradient_search(
    space: Space,
    plan: Plan,
    lr: float = 10.0,
    momentum: float = 0.9,
    clip: float = 0.1,
    raw: bool = False,
    norm: str = "sphere",
    penalty: float = 0.01,
    patience: int = 10,
) -> Search:
    """Gradient ascent on the start noise: ReNO (Eyring et al. 2024, arXiv 2406.04312) on models of one step, the
    first-order search of Ma et al. 2025 (arXiv 2501.09732, appendix) on models of many.

    A step is `lr` times the Nesterov momentum (0..1) of the gradient, which is brought to the length `clip`, so that it
    means the same for every verifier; `raw` gradients are only cut to it, as ReNO does. Rows of a latent that is a
    batch are brought to it one by one. What becomes of the noise's `norm`, which in high dimensions tells Gaussian
    noise from all else: "sphere" keeps it, "penalty" pulls it to that of Gaussian noise by ReNO's regulariser,
    `penalty` * (|z|^2 / 2 - (d - 1) log |z|) off the score, and "free" leaves it alone.

    After `patience` images without a better one the next climb begins at a fresh noise (the driver keeps the best). So
    it does where there is no gradient: no score, a gradient that is not finite or zero, or no budget left for one.
    """
    check_choice("gradient", "norm", norm, NORMS)
    check_at_least("gradient", 0, penalty=penalty, patience=patience)
    if not (lr > 0 and clip > 0 and 0 <= momentum < 1):
        raise SearchError(
            f"gradient: got lr={lr:g}, clip={clip:g}, momentum={momentum:g}; expected lr and clip above 0, and "
            "momentum from 0 to less than 1"
        )
    while True:
        if patience == 0:  # a gradient would never be followed
            yield from finish(space.fresh(1))
            continue
        [row] = yield from gradient(space.fresh(1))
        best, stale = row.score, 0
        velocity: Tensor | float = 0.0
        while row.noise is not None and climbs(row.gradient) and stale < patience:
            z, slope = flat(row.noise), flat(row.gradient)
            if norm == "sphere":
                slope = slope - along(slope, z)
            if not raw:
                slope = clip * slope / length(slope).clamp(min=1e-30)
            if norm == "penalty":
                slope = slope - penalty * away(z)
            slope = slope * (clip / length(slope).clamp(min=clip))
            velocity = momentum * velocity + slope
            moved = z + lr * (slope + momentum * velocity)
            if norm == "sphere":
                moved = moved * (length(z) / length(moved))
            [row] = yield from gradient([space.moved(row, moved.reshape(row.noise.shape).to(row.noise.dtype))])
            stale = 0 if row.score > best else stale + 1
            best = max(best, row.score)


def climbs(slope: Tensor | None) -> TypeGuard[Tensor]:
    """Whether there is a gradient to follow."""
    return slope is not None and bool(slope.isfinite().all()) and bool(slope.any())


def flat(noise: Tensor) -> Tensor:
    """Noise [b, *latent] as vectors [b, d] in double precision."""
    return noise.double().flatten(1)


def length(vectors: Tensor) -> Tensor:
    """Norms [b, 1] of vectors [b, d]."""
    norms: Tensor = vectors.norm(dim=1, keepdim=True)
    return norms


def along(slope: Tensor, z: Tensor) -> Tensor:
    """The part of a gradient that points away from the origin, all [b, d]."""
    return z * ((slope * z).sum(dim=1, keepdim=True) / length(z) ** 2)


def away(z: Tensor) -> Tensor:
    """The gradient of |z|^2 / 2 - (d - 1) log |z|, the negative logarithm of the density of |z|; z [b, d]."""
    return z * (1 - (z.shape[1] - 1) / length(z) ** 2)
