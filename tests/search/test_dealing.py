"""Dealing: rounds that spend what is left of a budget in equal shares."""

import math

import pytest

from pack.search import Budget
from pack.search.dealing import affordable, call, next_share, price
from pack.search.types import Plan
from pack.tests.search.worlds import Counting, Pairs, forwards, search


def plan_of(nfe: int, candidate_nfe: int | None, steps: int = 10) -> Plan:
    sigmas = tuple(1 - i / steps for i in range(steps + 1))
    return Plan(sigmas, lambda s: s, lambda t: t, lambda s: (1 - s, s), candidate_nfe, nfe)


def test_a_budget_pays_for_steps_of_one_candidate() -> None:
    assert affordable(plan_of(80, 10)) == 80
    assert affordable(plan_of(80, 19)) == 80 / 19 * 10  # a second-order sampler
    assert affordable(plan_of(80, 20)) == 40  # a latent that is a batch of two
    assert affordable(plan_of(0, 10)) == affordable(plan_of(80, None)) == math.inf


def test_equal_shares_as_near_to_the_wanted_as_their_number_allows() -> None:
    assert next_share(100, 30) == 100 / 3
    assert next_share(100, 45) == 50
    assert next_share(100, 500) == 100
    assert next_share(math.inf, 30) == next_share(0, 30) == next_share(-5, 30) == 30


def test_what_one_round_spares_is_dealt_to_the_others() -> None:
    left, shares = 100.0, []
    for spent in (20.0, 40.0, 40.0):
        shares.append(next_share(left, 30))
        left -= spent
    assert shares == [100 / 3, 80 / 3, 40] and left == 0


@pytest.mark.parametrize("sampler", [Counting(order=1), Counting(order=2), Pairs(order=2)])
def test_steps_and_calls_are_priced_by_the_model_calls_that_they_make(sampler: Counting) -> None:
    rows, whole = sampler.rows_per_candidate, forwards(sampler.sigmas, sampler.order)
    plan = Plan(
        sampler.sigmas, sampler.time, sampler.sigma, sampler.coefficients, rows * whole,
        cost=lambda sigmas: rows * sampler.cost(sigmas), call_nfe=rows,
    )  # fmt: skip
    assert price(plan, 0, 6) == 6 and call(plan) == 6 / whole
    for first in range(7):
        for last in range(first, 7):
            assert price(plan, first, last) == forwards(sampler.sigmas[first : last + 1], sampler.order) * 6 / whole


@pytest.mark.parametrize("name", ["smc", "guided", "beam", "rollover", "depth_first"])
def test_with_two_calls_a_step_no_round_is_begun_that_cannot_be_finished(name: str) -> None:
    for steps, budgets in ((10, (170, 333, 485, 551)), (20, (273, 382))):
        for nfe in budgets:
            report = search(name, Counting(order=2, steps=steps), Budget(nfe=nfe))
            assert report.nfe - max(e.nfe for e in report.finished) <= 1.5 * (2 * steps - 1)
