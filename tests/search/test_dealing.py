"""Dealing: rounds that spend what is left of a budget in equal shares."""

import math

from pack.search.dealing import affordable, next_share
from pack.search.types import Plan


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
