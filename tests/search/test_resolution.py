"""Smaller noises: unit Gaussian exactly, and the low frequencies of the larger one."""

from __future__ import annotations

import pytest
import torch

from pack.search.bands import low_band
from pack.search.resolution import averaged, smaller_noise


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_a_smaller_noise_is_a_rotation_of_independent_numbers_cut_short(factor: int) -> None:
    """Its matrix has orthonormal rows, so it makes unit Gaussian noise of unit Gaussian noise, exactly."""
    side = 2 * factor
    basis = torch.eye(side * side, dtype=torch.float64).reshape(side * side, 1, side, side)
    matrix = smaller_noise(basis, factor).reshape(side * side, 4).T
    assert torch.allclose(matrix @ matrix.T, torch.eye(4, dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize(("shape", "smaller"), [((2, 4, 8, 12), (2, 4, 4, 6)), ((1, 16, 5, 6, 8), (1, 16, 5, 3, 4))])
def test_height_and_width_shrink_and_frames_stay(shape: tuple[int, ...], smaller: tuple[int, ...]) -> None:
    large = noise(*shape)
    assert smaller_noise(large, 2).shape == averaged(large, 2).shape == smaller
    assert torch.equal(smaller_noise(large, 1), large)
    block = large[0, 1, ..., 2:4, 4:6].mean(dim=(-2, -1))
    assert torch.allclose(averaged(large, 2)[0, 1, ..., 1, 2], block, atol=1e-6)
    assert torch.equal(smaller_noise(large, 2), 2 * averaged(large, 2))


def test_measured_moments_are_those_of_unit_noise() -> None:
    small = smaller_noise(noise(1, 16, 128, 128), 4)
    assert abs(float(small.std()) - 1) < 0.02 and abs(float(small.mean())) < 0.04
    neighbours = float((small[..., 1:] * small[..., :-1]).mean())
    assert abs(neighbours) < 0.04


def test_the_low_frequencies_are_those_of_the_larger_noise() -> None:
    large = noise(1, 8, 32, 32)
    small = smaller_noise(large, 2)
    ours, theirs = low_band(small, 4 / 16).flatten(), low_band(large, 4 / 32).flatten()  # 4 x 4 coefficients of each
    cosine = float(ours @ theirs / (ours.norm() * theirs.norm()))
    assert cosine > 0.97
    assert torch.allclose(low_band(small, 1 / 16), low_band(large, 1 / 32), atol=1e-5)  # the mean, exactly


def test_a_picture_shrinks_to_its_block_means_and_nothing_to_nothing() -> None:
    assert torch.equal(averaged(torch.zeros(1, 4, 8, 8), 2), torch.zeros(1, 4, 4, 4))
    assert torch.equal(averaged(torch.full((1, 4, 8, 8), 0.5), 4), torch.full((1, 4, 2, 2), 0.5))
