"""Transitions: the law of the states that they lead to, against the mixture's own, and their closed forms."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pack.search import Recipe, Row
from pack.search.mixture import MixtureSampler
from pack.search.recipe import gaussian
from pack.search.transitions import FRESH, ancestral, ddim, glass, parted, random_step, step_noise, stepped, transit
from pack.search.types import Plan, Predict, Reply

MEANS = torch.tensor([[1.2, -0.4, 0.3], [-0.8, 0.9, 0.0], [0.1, -0.6, -1.0]], dtype=torch.float64)
SPREAD, COUNT = 0.4, 20_000
FLOW = pytest.mark.parametrize("flow", [True, False], ids=["flow", "eps"])


def world(flow: bool) -> tuple[MixtureSampler, Plan]:
    sampler = MixtureSampler(MEANS, spread=SPREAD, flow=flow)
    return sampler, Plan(sampler.sigmas, sampler.time, sampler.sigma, sampler.coefficients, None)


def drawn(sampler: MixtureSampler, sigma: float, seed: int = 1) -> Tensor:
    """States [COUNT, 3] of the exact law at a sigma."""
    generator = torch.Generator().manual_seed(seed)
    a, b = sampler.coefficients(sigma)
    clean = MEANS[torch.randint(3, (COUNT,), generator=generator)]
    clean = clean + SPREAD * torch.randn(COUNT, 3, generator=generator, dtype=torch.float64)
    return a * clean + b * torch.randn(COUNT, 3, generator=generator, dtype=torch.float64)


def errors(sampler: MixtureSampler, x: Tensor, sigma: float) -> tuple[float, float]:
    """Largest error of the mean, and of the covariance, in units of the exact standard deviations."""
    a, b = sampler.coefficients(sigma)
    unit = torch.eye(3, dtype=torch.float64)
    covariance = a**2 * (SPREAD**2 * unit + torch.cov(MEANS.T, correction=0)) + b**2 * unit
    deviation = covariance.diag().sqrt()
    mean_error = (x.mean(0) - a * MEANS.mean(0)) / deviation
    covariance_error = (torch.cov(x.T) - covariance) / torch.outer(deviation, deviation)
    return float(mean_error.abs().max()), float(covariance_error.abs().max())


def served(sampler: MixtureSampler, work: Reply, asked: list[Row] | None = None) -> list[Row]:
    """What a generator returns whose predictions are the exact denoiser's."""
    try:
        request = next(work)
        while True:
            assert isinstance(request, Predict)
            if asked is not None:
                asked += request.rows
            request = work.send([replace(r, x0=sampler.denoise(state(r), r.sigma)) for r in request.rows])
    except StopIteration as end:
        rows: list[Row] = end.value
        return rows


def state(row: Row) -> Tensor:
    assert row.x is not None
    return row.x


def at(sampler: MixtureSampler, sigma: float, seed: int = 1) -> Row:
    """Exact states as one row, with random steps of its own and its clean estimate."""
    recipe = Recipe.of_seed(seed).then(op="step", seed=seed, **{"from": sigma})
    x = drawn(sampler, sigma, seed)
    return Row(recipe, sigma, x, sampler.denoise(x, sigma))


def ladder(sampler: MixtureSampler, steps: int) -> list[float]:
    """Sigmas evenly spaced in noise share, over the part of the schedule that a search takes random steps in."""
    high, low = (0.95, 0.25) if sampler.flow else (0.92, 0.25)
    return [sampler.sigma(high + (low - high) * i / steps) for i in range(steps + 1)]


def walked(sampler: MixtureSampler, plan: Plan, kind: str, eta: float, steps: int) -> Row:
    sigmas = ladder(sampler, steps)
    row = at(sampler, sigmas[0])
    for sigma in sigmas[1:]:
        row = random_step(row, plan, sigma, kind, eta)
        row = replace(row, x0=sampler.denoise(state(row), sigma))
    return row


STATISTICAL = 0.04  # four standard errors of a covariance, five and a half of a mean, over 20,000 states


@FLOW
@pytest.mark.parametrize(
    "kind, eta", [("ode", 0.0), ("ddim", 1.0), ("ddim", 0.5), ("ancestral", 1.0), ("ancestral", 0.5)]
)
def test_random_steps_keep_mean_and_covariance_as_steps_grow(flow: bool, kind: str, eta: float) -> None:
    sampler, plan = world(flow)
    few, many = (errors(sampler, state(walked(sampler, plan, kind, eta, n)), ladder(sampler, 1)[1]) for n in (20, 100))
    assert few[1] < 0.1 + STATISTICAL and many[0] < STATISTICAL  # at 20 steps Euler's own error dominates
    assert many[1] < 0.02 + STATISTICAL  # a fifth of it


@FLOW
@pytest.mark.parametrize("rho", [0.0, 0.4, 0.8, 0.99])
def test_glass_keeps_mean_and_covariance_at_every_correlation(flow: bool, rho: float) -> None:
    sampler, plan = world(flow)
    sigmas = ladder(sampler, 3)
    found = {}
    for inner in (4, 40):
        row = at(sampler, sigmas[0])
        for sigma in sigmas[1:]:
            [row] = served(sampler, glass([row], plan, sigma, rho, inner))
            row = replace(row, x0=sampler.denoise(state(row), sigma))
        found[inner] = errors(sampler, state(row), sigmas[-1])
    assert found[40][0] < STATISTICAL and found[40][1] < 0.03 + STATISTICAL
    assert found[40][1] < 0.5 * found[4][1] + STATISTICAL


@FLOW
def test_glass_forgets_as_the_correlation_says(flow: bool) -> None:
    """The noises of the two states: what x0 does not explain of them correlates by rho."""
    sampler, plan = world(flow)
    sampler = MixtureSampler(torch.zeros(1, 3, dtype=torch.float64), spread=1e-4, flow=flow)  # x is all noise
    high, low = sampler.sigma(0.8), sampler.sigma(0.5)
    x = sampler.coefficients(high)[1] * torch.randn(COUNT, 3, generator=torch.Generator().manual_seed(2))
    for rho in (0.0, 0.3, 0.7, 1.0):
        row = Row(Recipe.of_seed(1).then(op="step", seed=9, **{"from": high}), high, x.double())
        row = replace(row, x0=sampler.denoise(state(row), high))
        [moved] = served(sampler, glass([row], plan, low, rho, 6))
        both = torch.stack([state(row).flatten(), state(moved).flatten()])
        assert float(torch.corrcoef(both)[0, 1]) == pytest.approx(rho, abs=4.5 / math.sqrt(3 * COUNT))
        assert float(state(moved).std()) == pytest.approx(sampler.coefficients(low)[1], rel=0.01)


@FLOW
def test_glass_asks_for_one_prediction_less_than_its_steps_within_the_schedule(flow: bool) -> None:
    sampler, plan = world(flow)
    sigmas = ladder(sampler, 3)
    for inner in (1, 2, 7):
        asked: list[Row] = []
        served(sampler, glass([at(sampler, sigmas[0]), at(sampler, sigmas[0], 2)], plan, sigmas[1], 0.4, inner), asked)
        assert len(asked) == 2 * (inner - 1)
        levels = [row.sigma for row in asked[::2]]
        assert levels == sorted(levels, reverse=True) and all(level <= sigmas[0] for level in levels)


@FLOW
def test_glass_in_one_step_is_a_random_step(flow: bool) -> None:
    sampler, plan = world(flow)
    high, low = ladder(sampler, 3)[:2]
    row, rho = at(sampler, high), 0.4
    [moved] = served(sampler, glass([row], plan, low, rho, 1))
    noise = step_noise(row, state(row), high)
    levels = sampler.coefficients(high), sampler.coefficients(low)
    assert row.x0 is not None
    expected = stepped(state(row), row.x0, *levels, math.sqrt(1 - rho**2), noise)
    assert torch.allclose(state(moved), expected, atol=1e-12)


@FLOW
def test_glass_starts_from_pure_noise_too(flow: bool) -> None:
    sampler, plan = world(flow)
    first, low = sampler.sigmas[0], sampler.sigma(0.6)
    [moved] = served(sampler, glass([at(sampler, first)], plan, low, 0.4, 60))
    mean, covariance = errors(sampler, state(moved), low)
    assert mean < STATISTICAL and covariance < 0.06 + STATISTICAL


@FLOW
def test_no_fresh_noise_is_the_samplers_own_euler_step(flow: bool) -> None:
    sampler, plan = world(flow)
    row = at(sampler, sampler.sigmas[3])
    assert row.x0 is not None
    moved = random_step(row, plan, sampler.sigmas[4], "ode", 1.0)
    expected = sampler.step(state(row), row.x0, sampler.sigmas[3], sampler.sigmas[4])
    assert torch.allclose(state(moved), expected, atol=1e-12)
    assert torch.allclose(state(random_step(row, plan, sampler.sigmas[4], "ancestral", 0.0)), expected, atol=1e-12)


@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize("high, low", [(14.0, 11.0), (2.0, 0.7), (0.5, 0.49)])
def test_ddim_of_eps_models_is_the_published_ancestral_step(eta: float, high: float, low: float) -> None:
    """Karras' x = z + sigma e: sigma_up and sigma_down as in k-diffusion."""
    up = min(low, eta * (low**2 * (high**2 - low**2) / high**2) ** 0.5)
    down = (low**2 - up**2) ** 0.5
    x, x0, noise = (gaussian(torch.empty(50, dtype=torch.float64), seed) for seed in (1, 2, 3))
    expected = x + (x - x0) / high * (down - high) + up * noise
    for share in (ddim, ancestral):
        fresh = share((1.0, high), (1.0, low), eta)
        assert torch.allclose(stepped(x, x0, (1.0, high), (1.0, low), fresh, noise), expected, atol=1e-12)


@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize("high, low", [(1.0, 0.9), (0.7, 0.5), (0.3, 0.29)])
def test_ancestral_of_flow_models_is_the_rectified_flow_step(eta: float, high: float, low: float) -> None:
    """Euler to a level below the target, scaled up and re-noised: the published formula, written out."""
    down = low * (1 + (low / high - 1) * eta)
    x, x0, noise = (gaussian(torch.empty(50, dtype=torch.float64), seed) for seed in (1, 2, 3))
    below = down / high * x + (1 - down / high) * x0
    scale = (1 - low) / (1 - down)
    expected = scale * below + (low**2 - down**2 * scale**2) ** 0.5 * noise
    levels = (1 - high, high), (1 - low, low)
    assert torch.allclose(stepped(x, x0, *levels, ancestral(*levels, eta), noise), expected, atol=1e-12)


@pytest.mark.parametrize("beta_high, beta_low", [(0.02, 0.1), (0.3, 0.6), (0.9, 0.99)])
def test_ddim_is_the_formula_of_its_paper_for_variance_preserving_models(beta_high: float, beta_low: float) -> None:
    """Song et al. 2021 (arXiv 2010.02502, equation 16), with alpha-bar at the two levels."""
    high, low = ((math.sqrt(bar), math.sqrt(1 - bar)) for bar in (beta_high, beta_low))
    for eta in (0.0, 0.5, 1.0):
        published = eta * math.sqrt((1 - beta_low) / (1 - beta_high)) * math.sqrt(1 - beta_high / beta_low)
        assert low[1] * ddim(high, low, eta) == pytest.approx(published, abs=1e-12)


class Louder(MixtureSampler):
    """A flow model of data 8 times as large, which multiplies its noise by 8."""

    def __init__(self) -> None:
        super().__init__(8 * MEANS, spread=8 * SPREAD)

    def coefficients(self, sigma: float) -> tuple[float, float]:
        return 1 - sigma, 8 * sigma

    def time(self, sigma: float) -> float:
        return sigma


@pytest.mark.parametrize("kind", [*FRESH, "glass"])
def test_a_model_that_scales_its_noise_takes_the_same_steps_at_its_scale(kind: str) -> None:
    (plain, plan), louder = world(True), Louder()
    scaled = Plan(louder.sigmas, louder.time, louder.sigma, louder.coefficients, None)
    assert [p.noise_scale for p in (plan, world(False)[1], scaled)] == [1.0, 1.0, 8.0]  # to the last bit
    rows = [at(plain, 0.8), replace(at(plain, 0.8), x=8 * state(at(plain, 0.8)))]
    for sigma in (0.7, 0.5, 0.2):
        rows = [replace(rows[0], x0=plain.denoise(state(rows[0]), rows[0].sigma)),
                replace(rows[1], x0=louder.denoise(state(rows[1]), rows[1].sigma))]  # fmt: skip
        [rows[0]] = served(plain, transit(rows[:1], plan, sigma, kind, 1.0, 0.4, 3))
        [rows[1]] = served(louder, transit(rows[1:], scaled, sigma, kind, 1.0, 0.4, 3))
        assert torch.allclose(state(rows[1]), 8 * state(rows[0]), rtol=0, atol=1e-9)


@FLOW
@pytest.mark.parametrize("kind", [*FRESH, "glass"])
def test_a_sigma_that_the_schedule_names_twice_moves_nothing(flow: bool, kind: str) -> None:
    sampler, plan = world(flow)
    row = at(sampler, sampler.sigmas[0])
    [moved] = served(sampler, transit([row], plan, row.sigma, kind, 1.0, 0.4, 2))
    assert torch.equal(state(moved), state(row))


@FLOW
def test_fresh_shares_grow_with_eta_from_none(flow: bool) -> None:
    sampler, _ = world(flow)
    for high, low in zip(sampler.sigmas, sampler.sigmas[1:-1], strict=False):
        levels = sampler.coefficients(high), sampler.coefficients(low)
        for kind in ("ddim", "ancestral", "renoise"):
            shares = [FRESH[kind](*levels, eta) for eta in (0.0, 0.25, 0.5, 1.0)]
            assert shares[0] == pytest.approx(0, abs=1e-6) and shares == sorted(shares) and 0 < shares[-1] <= 1


def test_copies_with_seeds_of_their_own_part_and_others_do_not() -> None:
    sampler, plan = world(True)
    row = at(sampler, 0.8)
    one, two, same, own = (random_step(parted(row, seed), plan, 0.7, "ancestral", 1.0) for seed in (5, 6, 5, None))
    assert torch.equal(state(one), state(same)) and not torch.equal(state(one), state(two))
    assert not torch.equal(state(own), state(one)) and own.recipe == row.recipe
    assert one.recipe.operations[-1] == {"op": "step", "seed": 5, "from": 0.8} and not one.recipe.replayable
    # the steps of one seed are unrelated to each other
    noises = [step_noise(one, state(one), sigma).double().flatten() for sigma in (0.8, 0.7, 0.6)]
    for i in range(3):
        for j in range(i):
            assert abs(float(noises[i] @ noises[j])) / (3 * COUNT) < 4.5 / math.sqrt(3 * COUNT)
