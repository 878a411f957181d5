"""The low-frequency band of a noise: its first cosine coefficients along every axis of space and time."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .errors import SearchError

LONGEST = 4096  # the transform is a matrix of this many columns at most


def low_band(noise: Tensor, fraction: float) -> Tensor:
    """The first `fraction` (0..1, at least one) of the orthonormal DCT-II coefficients along each axis of `noise`.

    noise [B, C, *space], or [B, N] -> [B, C, *k] or [B, k] in double precision. The transform is a rotation, so the
    coefficients of white noise are white noise themselves: independent and unit Gaussian.
    """
    band = noise.double()
    for axis, matrix in _bases(noise, fraction):
        band = torch.tensordot(matrix, band, dims=([1], [axis])).movedim(0, axis)
    return band


def with_low_band(noise: Tensor, fraction: float, band: Tensor) -> Tensor:
    """`noise` with that band in place of its own; all other frequencies stay as they are."""
    difference = band - low_band(noise, fraction)
    for axis, matrix in _bases(noise, fraction):
        difference = torch.tensordot(matrix, difference, dims=([0], [axis])).movedim(0, axis)
    return (noise.double() + difference).to(noise.dtype)


def _bases(noise: Tensor, fraction: float) -> list[tuple[int, Tensor]]:
    """(axis, rows of the DCT-II matrix [k, n]) of every axis behind batch and channels."""
    axes = range(2, noise.ndim) if noise.ndim > 2 else [noise.ndim - 1]
    longest = max(noise.shape[axis] for axis in axes)
    if longest > LONGEST:
        raise SearchError(
            f"got a latent with an axis of {longest} numbers; a low-frequency band is only known for axes of space and "
            f"time up to {LONGEST}: choose another search algorithm for latents of several parts"
        )
    return [(axis, _dct(noise.shape[axis], fraction)) for axis in axes]


def _dct(n: int, fraction: float) -> Tensor:
    k = min(n, max(1, round(fraction * n)))
    frequency, place = torch.arange(k, dtype=torch.float64)[:, None], torch.arange(n, dtype=torch.float64)
    matrix = math.sqrt(2 / n) * torch.cos(math.pi * frequency * (place + 0.5) / n)
    matrix[0] /= math.sqrt(2)
    return matrix
