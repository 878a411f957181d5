"""Smaller noises: the start noise of a candidate as a latent of fewer numbers would have it."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import avg_pool2d


def averaged(latent: Tensor, factor: int) -> Tensor:
    """Means over blocks of `factor` by `factor` of the last two axes, which it divides: [..., H, W] -> [..., h, w]."""
    frames = latent.reshape(-1, 1, *latent.shape[-2:])
    means: Tensor = avg_pool2d(frames, factor)
    return means.reshape(*latent.shape[:-2], *means.shape[-2:])


def smaller_noise(noise: Tensor, factor: int) -> Tensor:
    """The low frequencies of unit Gaussian `noise` [..., H, W] as a unit Gaussian noise [..., H / factor, W / factor].

    A mean of factor^2 independent numbers has 1 / factor of their standard deviation, so block means times `factor` are
    independent and unit Gaussian again, exactly. They are the larger noise's own low frequencies: a model that lays out
    a picture by them lays out the small one alike.
    """
    return factor * averaged(noise, factor)
