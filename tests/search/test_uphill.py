"""Moves uphill: x0 predictions move as far as said, and stay where nothing leads them."""

from __future__ import annotations

import math

import pytest
import torch

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


def test_a_recipe_says_from_where_to_where_it_was_guided() -> None:
    row = Row(Recipe.of_seed(1), 0.5)
    assert marked(row, 0.0, 0.1) is row
    [_, said] = marked(row, 0.3, 0.1).recipe.operations
    assert said == {"op": "uphill", "strength": 0.3, "from": 0.5, "to": 0.1}
