"""The low-frequency band is that of scipy's DCT, nothing but the band moves, and mixes of white noise are white."""

import math

import pytest
import torch
from scipy.fft import dctn
from torch import Tensor

from pack.search import Recipe, SearchError
from pack.search.bands import low_band, with_low_band
from pack.search.recipe import band_mixed, gaussian, mixed

SHAPES = [(1, 4, 8, 8), (2, 3, 7, 10), (1, 2, 5, 6, 4), (1, 8, 12), (2, 24)]
FRACTIONS = [0.01, 0.25, 0.5, 1.0]


def spectrum(noise: Tensor) -> Tensor:
    """All coefficients, by scipy."""
    axes = list(range(2, noise.ndim)) or [noise.ndim - 1]
    return torch.from_numpy(dctn(noise.double().numpy(), norm="ortho", axes=axes))


def inside(noise: Tensor, fraction: float) -> tuple[slice, ...]:
    """Where the band lies in `spectrum`."""
    first = min(2, noise.ndim - 1)
    counts = [max(1, round(fraction * n)) for n in noise.shape[first:]]
    return (*[slice(None)] * first, *map(slice, counts))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("fraction", FRACTIONS)
def test_the_band_is_the_corner_of_scipys_transform(shape: tuple[int, ...], fraction: float) -> None:
    noise = gaussian(torch.empty(shape), 1)
    assert (low_band(noise, fraction) - spectrum(noise)[inside(noise, fraction)]).abs().max() < 1e-12


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("fraction", FRACTIONS)
def test_only_the_band_changes_and_the_norm_is_kept(shape: tuple[int, ...], fraction: float) -> None:
    noise = gaussian(torch.empty(shape), 1) * 3
    moved = band_mixed(noise, fraction, 0.3, [5, 6], [0.8, -0.52])
    assert moved.dtype == noise.dtype and moved.shape == noise.shape
    assert abs(float(moved.double().norm() / noise.double().norm()) - 1) < 1e-6
    before, after = spectrum(noise), spectrum(moved)
    band = inside(noise, fraction)
    assert not torch.allclose(after[band], before[band], atol=0.1)
    before[band] = after[band] = 0
    assert (after - before).abs().max() < 2e-6


def test_a_noise_with_its_own_band_is_itself() -> None:
    noise = gaussian(torch.empty(1, 4, 8, 8), 1)
    assert (with_low_band(noise, 0.4, low_band(noise, 0.4)) - noise).abs().max() == 0
    assert (band_mixed(noise, 0.4, 1.0, [], []) - noise).abs().max() < 1e-6


@pytest.mark.parametrize("fraction", [0.25, 1.0])
def test_white_noise_with_a_mixed_band_is_white_noise(fraction: float) -> None:
    like, count = torch.empty(1, 2, 4, 4), 6000
    draws = [gaussian(like, 10 * i) for i in range(count)]
    moved = [band_mixed(noise, fraction, 0.6, [10 * i + 1, 10 * i + 2], [0.48, 0.64]) for i, noise in enumerate(draws)]
    flat = torch.stack(moved).double().flatten(1)
    # mean 0 and covariance I: 5 standard errors of every entry
    assert float(flat.mean(0).abs().max()) < 5 / math.sqrt(count)
    error = flat.T @ flat / count - torch.eye(32)
    assert float(error.abs().max()) < 5 * math.sqrt(2 / count)
    # fourth moment 3: Gaussian and not merely white; the standard error is sqrt(96 / (32 * count))
    assert abs(float((flat**4).mean()) - 3) < 5 * math.sqrt(96 / (32 * count))


@pytest.mark.parametrize("cosine", [0.9, 0.5, 0.0, -0.3])
def test_a_gaussian_mix_of_white_noise_is_white_noise_at_that_correlation(cosine: float) -> None:
    like, count = torch.empty(8), 8000
    before = torch.stack([gaussian(like, 2 * i) for i in range(count)]).double()
    after = torch.stack([mixed(gaussian(like, 2 * i), 2 * i + 1, cosine) for i in range(count)]).double()
    bound = 5 / math.sqrt(count)
    assert float(after.mean(0).abs().max()) < bound
    assert float((after.T @ after / count - torch.eye(8)).abs().max()) < bound * math.sqrt(2)
    assert float((before.T @ after / count - cosine * torch.eye(8)).abs().max()) < bound * math.sqrt(2)
    # the norm moves, as it does between independent noises: it is no point of the pivot's sphere
    ratio = (after.norm(dim=1) / before.norm(dim=1)).std()
    assert float(ratio) > 0.05


def test_mixing_leaves_global_randomness_alone_and_is_decided_by_its_seeds() -> None:
    noise = gaussian(torch.empty(1, 4, 8, 8), 1)
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    pairs = [(mixed(noise, 5, 0.9), band_mixed(noise, 0.5, 0.5, [5], [0.5])) for _ in range(2)]
    assert torch.equal(torch.rand(4), expected)
    assert all(torch.equal(a, b) for a, b in zip(*pairs, strict=True))
    assert not torch.equal(pairs[0][1], band_mixed(noise, 0.5, 0.5, [6], [0.5]))


def test_an_axis_too_long_for_a_band_is_refused() -> None:
    recipe = Recipe.of_seed(1).then(op="band", fraction=0.25, keep=0.0, seeds=[3], weights=[1.0])
    with pytest.raises(SearchError, match="axis of 5000 numbers"):
        recipe.noise(lambda seed: gaussian(torch.empty(1, 1, 5000), seed))


def test_shares_that_cancel_out_are_refused() -> None:
    noise = gaussian(torch.empty(1, 4, 8, 8), 1)
    for keep, seeds, weights in ((0.0, [], []), (0.0, [3, 3], [0.5, -0.5])):
        with pytest.raises(SearchError, match="leave nothing of the band"):
            band_mixed(noise, 0.5, keep, seeds, weights)
