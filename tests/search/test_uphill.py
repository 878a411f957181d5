"""Moves uphill: x0 predictions move as far as said, and stay where nothing leads them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pack.search import Recipe, Row
from pack.search.types import Plan
from pack.search.uphill import marked, uphill
from pack.tests.search.worlds import Counting


def plan_of(sampler: Counting) -> Plan:
    return Plan(sampler.sigmas, sampler.time, sampler.sigma, sampler.coefficients, 6)


@pytest.mark.parametrize("flow", [True, False])
def test_a_prediction_is_moved_by_its_share_of_the_noise_and_the_noise_stays(flow: bool) -> None:
    sampler = Counting(flow)
    plan, here, there = plan_of(sampler), sampler.sigmas[2], sampler.sigmas[3]
    a, b = plan.coefficients(here)
    rows, moved, slopes = [], [], []
    for seed in range(3):
        x0, gradient, x = (torch.randn(1, 12, generator=torch.Generator().manual_seed(3 * seed + i)) for i in range(3))
        rows.append(Row(Recipe.of_seed(1), here, x=x, x0=x0, gradient=gradient))
        moved.append(Row(Recipe.of_seed(1), there, x=x, x0=x0, gradient=gradient))
        slopes.append(gradient)
    for row, new, gradient in zip(rows, uphill(rows, moved, plan, 0.3), slopes, strict=True):
        assert row.x is not None and row.x0 is not None and new.x is not None and new.gradient is None
        shift = (new.x - row.x) / plan.coefficients(there)[0]
        assert float(shift.norm()) == pytest.approx(0.3 * b / math.hypot(a, b) * float(row.x0.norm()), rel=1e-5)
        assert float(torch.cosine_similarity(shift, gradient)) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.0, None])
def test_a_slope_that_leads_nowhere_moves_nothing(bad: float | None) -> None:
    x = torch.ones(1, 12)
    row = Row(Recipe.of_seed(1), 0.5, x=x, x0=x, gradient=None if bad is None else torch.full((1, 12), bad))
    [moved] = uphill([row], [Row(row.recipe, 0.4, x=x)], plan_of(Counting()), 0.3)
    assert torch.equal(moved.x, x)  # type: ignore[arg-type]


def test_images_of_a_latent_that_is_a_batch_go_each_their_own_way() -> None:
    """One with a gradient 100 times as large goes no further than beside nobody, and one without stays."""
    plan = plan_of(Counting())
    x, x0, gradient = (torch.randn(3, 12, generator=torch.Generator().manual_seed(i)) for i in range(3))
    gradient[1] *= 0.01
    gradient[2] = float("nan")

    def moved(x: Tensor, x0: Tensor, gradient: Tensor) -> Tensor:
        row = Row(Recipe.of_seed(1), 0.5, x=x, x0=x0, gradient=gradient)
        [new] = uphill([row], [Row(row.recipe, 0.4, x=x)], plan, 0.3)
        assert new.x is not None
        return new.x

    together = moved(x, x0, gradient)
    for i in range(3):
        assert torch.equal(together[i : i + 1], moved(x[i : i + 1], x0[i : i + 1], gradient[i : i + 1]))
    assert not torch.equal(together[1], x[1]) and torch.equal(together[2], x[2])
    # one image alone goes by the lengths of the whole latent, to the last bit
    share = 0.3 * 0.5 / math.hypot(0.5, 0.5)
    length = share * torch.linalg.vector_norm(x0[:1]) / torch.linalg.vector_norm(gradient[:1])
    assert torch.equal(together[:1], x[:1] + 0.6 * length * gradient[:1])


def test_guidance_fades_alike_where_a_model_scales_its_noise() -> None:
    plan = plan_of(Counting())
    louder = replace(plan, coefficients=lambda sigma: (1 - sigma, 8 * sigma))
    x, x0, gradient = (torch.randn(1, 12, generator=torch.Generator().manual_seed(i)) for i in range(3))
    row = Row(Recipe.of_seed(1), 0.5, x=x, x0=x0, gradient=gradient)
    [one], [two] = (uphill([row], [Row(row.recipe, 0.4, x=x)], each, 0.3) for each in (plan, louder))
    assert louder.noise_scale == 8.0 and torch.equal(one.x, two.x)  # type: ignore[arg-type]


def test_a_recipe_says_from_where_to_where_it_was_guided() -> None:
    row = Row(Recipe.of_seed(1), 0.5)
    assert marked(row, 0.0, 0.1) is row
    [_, said] = marked(row, 0.3, 0.1).recipe.operations
    assert said == {"op": "uphill", "strength": 0.3, "from": 0.5, "to": 0.1}
