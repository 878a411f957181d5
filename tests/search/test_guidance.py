"""Guidance by lookaheads, against autograd, closed forms and its own invariances."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pack.search import Recipe, Row
from pack.search.guidance import LookaheadGuide, guide_of, judged, standardised

FLOW, EPS = (0.35, 0.65), (1.0, 2.5)  # a and b of x = a * x0 + b * noise


def randn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scored(latents: Tensor, scores: list[float]) -> list[Row]:
    return [Row(Recipe.of_seed(i), 0.0, z, score=s) for i, (z, s) in enumerate(zip(latents, scores, strict=True))]


@pytest.mark.parametrize("at", [FLOW, EPS])
def test_it_is_the_papers_correction_of_the_noise_estimate(at: tuple[float, float]) -> None:
    a, b = at
    latents, rewards = randn(7, 1, 6), standardised(randn(7, seed=2).tolist())
    x, x0 = randn(1, 6, seed=3).requires_grad_(), randn(1, 6, seed=4)
    guide = LookaheadGuide(latents, rewards, scale=2.0, strength=1.7, until=0.1)

    def log_density(weights: Tensor) -> Tensor:
        return torch.logsumexp(weights - (x - a * latents.flatten(1)).square().sum(1) / (2 * b**2), 0)

    # eps' = eps - scale * b * grad log (density of rewarded lookaheads / density of lookaheads), then back to x0
    ratio = log_density(1.7 * torch.tensor(rewards, dtype=torch.float64)) - log_density(torch.zeros(7))
    [gradient] = torch.autograd.grad(ratio, x)
    eps = (x.detach() - a * x0) / b - 2.0 * b * gradient
    expected = (x.detach() - b * eps) / a
    assert torch.allclose(guide.correct(x.detach(), x0, 0.5, at), expected, atol=1e-12)


@pytest.mark.parametrize("at", [FLOW, EPS])
@pytest.mark.parametrize("strength", [0.0, 0.3, 0.6])
def test_with_all_of_a_gaussian_for_lookaheads_it_is_the_denoiser_of_the_tilted_one(
    at: tuple[float, float], strength: float
) -> None:
    a, b = at
    mean, spread = 0.7, 0.8
    shares = (torch.arange(40001, dtype=torch.float64) + 0.5) / 40001
    samples = mean + spread * math.sqrt(2) * torch.erfinv(2 * shares - 1)
    guide = guide_of(scored(samples.reshape(-1, 1, 1), samples.tolist()), 1.0, strength, 0.0)
    assert guide is not None
    for state in (-1.0, 0.4, 2.0):
        x = torch.tensor([[state]], dtype=torch.float64)
        # Bayes with a Gaussian prior: the precisions add; exp(strength * (x0 - mean) / spread) moves the prior's mean
        precision = 1 / spread**2 + a**2 / b**2
        plain, tilted = ((prior / spread**2 + a * x / b**2) / precision for prior in (mean, mean + strength * spread))
        assert torch.allclose(guide.correct(x, plain, 1.0, at), tilted, atol=2e-3)


def test_at_pure_noise_all_lookaheads_are_equally_near() -> None:
    latents = randn(4, 1, 5)
    guide = LookaheadGuide(latents, (0.0, 1.0, 0.0, 0.0), scale=1.0, strength=100.0, until=0.0)
    moved = guide.correct(randn(1, 5, seed=2), torch.zeros(1, 5, dtype=torch.float64), 1.0, (0.0, 1.0))
    assert torch.allclose(moved, latents[1] - latents.mean(0), atol=1e-12)


def test_large_latents_lose_no_digits_in_single_precision() -> None:
    latents = 3.0 + randn(9, 1, 4, 64, 64)
    x, x0 = randn(1, 4, 64, 64, seed=2), randn(1, 4, 64, 64, seed=3)
    rewards = standardised(randn(9, seed=4).tolist())
    double = LookaheadGuide(latents, rewards, 1.0, 5000.0, 0.0).correct(x, x0, 0.9, (0.1, 0.9))
    single = LookaheadGuide(latents.float(), rewards, 1.0, 5000.0, 0.0).correct(x.float(), x0.float(), 0.9, (0.1, 0.9))
    assert single.dtype == torch.float32 and torch.allclose(single.double(), double, atol=1e-3)


def test_scale_zero_and_sigmas_below_the_limit_change_no_bit() -> None:
    x, x0 = randn(1, 6), randn(1, 6, seed=2)
    latents, rewards = randn(3, 1, 6, seed=3), (-1.0, 0.0, 1.0)
    assert torch.equal(LookaheadGuide(latents, rewards, 0.0, 3.0, 0.0).correct(x, x0, 0.5, FLOW), x0)
    guide = LookaheadGuide(latents, rewards, 1.0, 3.0, 0.4)
    assert guide.correct(x, x0, 0.4, FLOW) is x0
    assert not torch.equal(guide.correct(x, x0, 0.41, FLOW), x0)


def test_a_batch_of_latents_is_one_lookahead() -> None:
    latents, x, x0 = randn(5, 2, 3), randn(2, 3, seed=2), randn(2, 3, seed=3)
    rewards = standardised([1.0, 2.0, 0.0, 5.0, 3.0])
    together = LookaheadGuide(latents, rewards, 1.0, 1.0, 0.0).correct(x, x0, 1.0, FLOW)
    as_one = LookaheadGuide(latents.reshape(5, 1, 6), rewards, 1.0, 1.0, 0.0)
    assert torch.equal(together, as_one.correct(x.reshape(1, 6), x0.reshape(1, 6), 1.0, FLOW).reshape(2, 3))


def test_rewards_are_in_units_of_their_own_spread() -> None:
    assert standardised([1.0, 3.0]) == (-1.0, 1.0)
    assert standardised([2.0, 2.0, 2.0]) == (0.0, 0.0, 0.0)
    latents, scores, x = randn(6, 1, 4), randn(6, seed=5).tolist(), randn(1, 4, seed=6)
    one, other = (guide_of(scored(latents, s), 1.0, 0.5, 0.0) for s in (scores, [40 * s - 7 for s in scores]))
    assert one is not None and other is not None
    assert torch.allclose(one.correct(x, x, 1.0, FLOW), other.correct(x, x, 1.0, FLOW), atol=1e-10)


def test_the_strength_is_per_number_of_the_latent() -> None:
    guides = [guide_of(scored(randn(3, 1, *shape), [0.0, 1.0, 2.0]), 1.0, 0.3, 0.2) for shape in ((4,), (4, 8, 8))]
    assert [guide.strength for guide in guides if guide] == [0.3 * 4, 0.3 * 256]


def test_lookaheads_that_tell_nothing_make_no_guide() -> None:
    latents = randn(3, 1, 4)
    assert guide_of([], 1.0, 1.0, 0.0) is None
    assert guide_of(scored(latents[:1], [3.0]), 1.0, 1.0, 0.0) is None
    assert guide_of(scored(latents, [2.0, 2.0, 2.0]), 1.0, 1.0, 0.0) is None
    rows = scored(latents, [math.nan, 1.0, -math.inf])
    assert judged(rows) == [rows[1]]
