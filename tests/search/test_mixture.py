"""The exact sampler against what is known in closed form."""

import math

import pytest
import torch
from torch import Tensor

from pack.search import Recipe, Row
from pack.search.mixture import MixtureSampler
from pack.search.recipe import gaussian
from pack.tests.search.worlds import Counting, Pairs, forwards

MEAN = torch.tensor([[0.7, -1.2, 0.4]], dtype=torch.float64)


class Tally:
    """A meter that only counts."""

    def __init__(self) -> None:
        self.rows = 0

    def forward(self, rows: int) -> None:
        self.rows += rows

    def model_rows(self, rows: int) -> None:
        pass


def start(seed: int, sampler: MixtureSampler) -> Row:
    return Row(Recipe.of_seed(seed), sampler.sigmas[0])


def state(row: Row) -> Tensor:
    assert row.x is not None
    return row.x


@pytest.mark.parametrize("flow", [True, False])
@pytest.mark.parametrize("sigma", [0.05, 0.4, 0.95])
def test_the_denoiser_of_one_gaussian_is_the_closed_form(flow: bool, sigma: float) -> None:
    spread = 0.3
    sampler = MixtureSampler(MEAN, spread=spread, flow=flow)
    a, b = (1 - sigma, sigma) if flow else (1.0, sigma)
    x = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    precision = 1 / spread**2 + a**2 / b**2  # Bayes with a Gaussian prior: the precisions add
    expected = (MEAN / spread**2 + a * x / b**2) / precision
    assert torch.allclose(sampler.denoise(x, sigma), expected, atol=1e-12)


@pytest.mark.parametrize("flow", [True, False])
def test_the_denoiser_of_a_mixture_is_the_score_by_tweedies_formula(flow: bool) -> None:
    means = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    sampler = MixtureSampler(means, spread=0.5, flow=flow)
    sigma = 0.6
    a, b = sampler.coefficients(sigma)
    x = torch.randn(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3), requires_grad=True)
    variance = (a * 0.5) ** 2 + b**2
    density = torch.logsumexp(-((x[:, None] - a * means) ** 2).sum(-1) / (2 * variance), dim=1)
    [score] = torch.autograd.grad(density.sum(), x)
    assert torch.allclose(sampler.denoise(x, sigma), (x + b**2 * score) / a, atol=1e-10)


@pytest.mark.parametrize("flow", [True, False])
@pytest.mark.parametrize("order", [1, 2])
def test_the_ode_takes_noise_to_the_data_as_steps_grow(flow: bool, order: int) -> None:
    spread, errors = 0.3, []
    for steps in (10, 40, 160) if flow else (160, 640, 2560):  # eps: the same spacing relative to the data
        sampler = MixtureSampler(MEAN.float(), spread=spread, steps=steps, flow=flow, order=order)
        row = start(5, sampler)
        noise = sampler.start(row) / sampler.coefficients(row.sigma)[1]
        [done] = sampler.advance([row], sampler.sigmas, Tally())
        # the exact flow of one Gaussian is affine: x0 = mean + spread * (x - a mean) / standard deviation of x
        a, b = sampler.coefficients(sampler.sigmas[0])
        exact = MEAN + spread * (b * noise - a * MEAN) / math.sqrt((a * spread) ** 2 + b**2)
        errors.append(float((state(done) - exact).abs().max() / (spread * noise.abs().max())))
    rate = {1: 2.5, 2: 8.0}[order]  # four times the steps: 4x and 16x in the limit
    assert errors[0] > rate * errors[1] > rate**2 * errors[2]
    assert errors[2] < {1: 0.06, 2: 0.002}[order]


@pytest.mark.parametrize("flow", [True, False])
def test_generated_vectors_have_the_mean_and_variance_of_the_data(flow: bool) -> None:
    spread, count = 0.3, 3000
    sampler = MixtureSampler(MEAN.float(), spread=spread, steps=60 if flow else 600, flow=flow, order=2)
    rows = [start(seed, sampler) for seed in range(count)]
    x = torch.cat([state(row) for row in sampler.advance(rows, sampler.sigmas, Tally())]).double()
    assert float((x.mean(0) - MEAN).abs().max()) < 5 * spread / math.sqrt(count)
    assert float((x.std(0) / spread - 1).abs().max()) < 5 / math.sqrt(2 * count) + 0.01


@pytest.mark.parametrize("flow, low, high", [(True, 0.2, 0.9), (True, 0.5, 0.6), (False, 0.3, 6.0), (False, 2.0, 2.1)])
def test_re_noising_has_the_moments_of_the_forward_process(flow: bool, low: float, high: float) -> None:
    sampler = MixtureSampler(torch.zeros(1, 30_000), flow=flow)
    (a, b), (c, d) = sampler.coefficients(low), sampler.coefficients(high)
    clean = torch.full((1, 30_000), 1.5)
    noise = torch.randn(1, 30_000, generator=torch.Generator().manual_seed(4))
    row = Row(Recipe.of_seed(1), low, a * clean + b * noise)
    moved = sampler.renoise(row, high, seed=9)
    x = state(moved).double()
    assert abs(float(x.mean()) - c * 1.5) < 5 * d / math.sqrt(30_000)
    assert abs(float(x.std()) / d - 1) < 5 / math.sqrt(60_000)
    # what was kept of the noise that was there
    old, new = state(row).double() - a * 1.5, x - c * 1.5
    kept = float((old * new).sum() / (old.norm() * new.norm()))
    assert abs(kept - c / a * b / d) < 5 / math.sqrt(30_000)
    assert moved.sigma == high and moved.recipe.step_seed == 9
    assert moved.recipe.operations[-1] == {"op": "renoise", "seed": 9, "from": low, "to": high}


def test_re_noised_copies_part_and_equal_seeds_do_not() -> None:
    sampler = Counting()
    [row] = sampler.advance([start(1, sampler)], sampler.sigmas[:5], Tally())
    one, two, same = (sampler.renoise(row, 0.8, seed) for seed in (1, 2, 1))
    assert torch.equal(state(one), state(same)) and not torch.equal(state(one), state(two))


@pytest.mark.parametrize("flow", [True, False])
@pytest.mark.parametrize("order", [1, 2])
def test_advancing_in_two_parts_is_advancing_at_once(flow: bool, order: int) -> None:
    sampler = Counting(flow, order, steps=9)
    [whole] = sampler.advance([start(1, sampler)], sampler.sigmas, Tally())
    for k in range(1, 9):
        [part] = sampler.advance([start(1, sampler)], sampler.sigmas[: k + 1], Tally())
        assert part.sigma == sampler.sigmas[k]
        [joined] = sampler.advance([part], sampler.sigmas[k:], Tally())
        assert torch.equal(state(joined), state(whole))
        assert joined.x0 is not None and whole.x0 is not None and torch.equal(joined.x0, whole.x0)


@pytest.mark.parametrize("flow", [True, False])
@pytest.mark.parametrize("order", [1, 2])
def test_a_row_is_bit_for_bit_the_same_in_any_batch(flow: bool, order: int) -> None:
    sampler = Counting(flow, order)
    rows = [start(seed, sampler) for seed in range(17)]
    together = sampler.advance(rows, sampler.sigmas, Tally())
    for row, among in zip(rows, together, strict=True):
        [alone] = sampler.advance([row], sampler.sigmas, Tally())
        assert torch.equal(state(alone), state(among))


@pytest.mark.parametrize("flow", [True, False])
@pytest.mark.parametrize("order", [1, 2])
def test_cost_is_the_count_of_calls_on_every_part_of_the_schedule(flow: bool, order: int) -> None:
    sampler = Counting(flow, order, steps=7)
    for i in range(8):
        [row] = sampler.advance([start(1, sampler)], sampler.sigmas[: i + 1], Tally())
        for j in range(i, 8):
            sigmas, tally, before = sampler.sigmas[i : j + 1], Tally(), sampler.rows
            sampler.advance([row, row], sigmas, tally)
            assert sampler.cost(sigmas) == forwards(sigmas, order)
            assert tally.rows == sampler.rows - before == 2 * forwards(sigmas, order)


@pytest.mark.parametrize("flow", [True, False])
def test_a_prediction_is_one_call_and_the_denoisers_answer(flow: bool) -> None:
    sampler, tally = Counting(flow), Tally()
    rows = sampler.advance([start(s, sampler) for s in (1, 2)], sampler.sigmas[:4], Tally())
    predicted = sampler.predict(rows, tally)
    assert tally.rows == 2
    for row, answer in zip(rows, predicted, strict=True):
        assert answer.x is row.x and answer.x0 is not None
        assert torch.equal(answer.x0, sampler.denoise(state(row), row.sigma))
    fresh = start(3, sampler)
    [answer] = sampler.predict([fresh], tally)
    assert torch.equal(answer.x, sampler.start(fresh))  # a row that has not moved gets its state


@pytest.mark.parametrize("flow", [True, False])
def test_noise_shares_and_sigmas_are_inverse_and_rise_together(flow: bool) -> None:
    sampler = Counting(flow)
    shares = [sampler.time(sigma) for sigma in sampler.sigmas]
    assert shares == sorted(shares, reverse=True) and shares[-1] == 0 and shares[0] <= 1
    for sigma, share in zip(sampler.sigmas, shares, strict=True):
        assert abs(sampler.sigma(share) - sigma) < 1e-12 * max(1, sigma)
    assert shares[0] == pytest.approx(1.0 if flow else 15 / 16)


def test_images_are_the_clean_vectors_in_0_to_1() -> None:
    sampler = Counting()
    [row] = sampler.advance([start(1, sampler)], sampler.sigmas, Tally())
    [image] = sampler.decode([row])
    assert image.shape == (1, 1, 4, 3) and image.dtype == torch.float32
    assert 0 < float(image.min()) and float(image.max()) < 1
    assert torch.allclose(torch.logit(image).flatten(), state(row).flatten(), atol=1e-4)


def test_a_wrapper_with_two_rows_a_candidate_moves_both_as_if_alone() -> None:
    pairs, single = Pairs(), Counting()
    [both] = pairs.advance([start(1, pairs)], pairs.sigmas, Tally())
    [alone] = single.advance([start(1, single)], single.sigmas, Tally())
    assert state(both).shape == (2, 12) and torch.equal(state(both)[:1], state(alone))


# cfg and conditioning noise


def ended(sampler: MixtureSampler, recipe: Recipe) -> Tensor:
    [moved] = sampler.advance([Row(recipe, sampler.sigmas[0])], sampler.sigmas, Tally())
    return state(moved)


@pytest.mark.parametrize("flow", [True, False])
def test_conditioning_noise_moves_every_end_as_it_moves_the_means(flow: bool) -> None:
    means = torch.randn(4, 12, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    recipe = Recipe.of_seed(5).then(op="conditioning", seed=9, strength=0.7)
    shift = 0.7 * means.std() * gaussian(means[0], 9)
    moved = MixtureSampler(means + shift, flow=flow, steps=7)
    out = ended(MixtureSampler(means, flow=flow, steps=7), recipe)
    assert torch.allclose(out, ended(moved, Recipe.of_seed(5)), atol=1e-6)
    assert not torch.allclose(out, ended(MixtureSampler(means, flow=flow, steps=7), Recipe.of_seed(5)), atol=1e-2)


@pytest.mark.parametrize("flow", [True, False])
def test_cfg_is_classifier_free_guidance_against_one_broad_gaussian(flow: bool) -> None:
    means = torch.randn(4, 12, generator=torch.Generator().manual_seed(2))
    sampler, x = MixtureSampler(means, spread=0.3, flow=flow), torch.randn(1, 12)
    variance = 0.3**2 + float((means - means.mean(dim=0)).square().mean())
    broad = MixtureSampler(means.mean(dim=0, keepdim=True), spread=variance**0.5, flow=flow)
    for sigma in sampler.sigmas[1:4]:
        wanted, plain = sampler.denoise(x, sigma), broad.denoise(x, sigma)
        for scale in (0.0, 1.0, 2.5):
            row = Row(Recipe.of_seed(1).then(op="cfg", scale=scale), sigma, x=x)
            [asked] = sampler.predict([row], Tally())
            assert asked.x0 is not None
            assert torch.allclose(asked.x0, plain + scale * (wanted - plain), atol=1e-5)


def test_rows_that_ask_in_different_ways_do_not_touch_each_other() -> None:
    sampler = MixtureSampler(torch.randn(3, 12, generator=torch.Generator().manual_seed(2)))
    recipes = [
        Recipe.of_seed(1), Recipe.of_seed(1).then(op="cfg", scale=2.0),
        Recipe.of_seed(2).then(op="conditioning", seed=3, strength=0.5),
    ]  # fmt: skip
    rows = sampler.advance([Row(recipe, sampler.sigmas[0]) for recipe in recipes], sampler.sigmas, Tally())
    for row in rows:
        assert torch.equal(state(row), ended(sampler, row.recipe))
