"""Replay: recorded rewards through the real search, measured against the exact best of N."""

from __future__ import annotations

import numpy as np
import pytest

from pack.benchmarks.replay import BUDGETS, REWARDS, TABLES, Replay, row, slope
from pack.search.curves import curve_of
from pack.search.halving_plan import halving_plan

PROMPTS, SEEDS, STEPS = 6, 200, 20
HALF = list(range(PROMPTS // 2)), list(range(PROMPTS // 2, PROMPTS))


def replay(told: float, orders: int) -> Replay:
    """Rewards whose early scores correlate that much with the last one."""
    generator = np.random.default_rng(3)
    shape = PROMPTS, SEEDS, STEPS
    data = {}
    for reward in REWARDS:
        scores = generator.normal(size=shape)
        data[f"flux_{reward}"] = told * scores[:, :, -1:] + (1 - told**2) ** 0.5 * scores
        data[f"flux_{reward}"][:, :, -1] = scores[:, :, -1]
    return Replay(data, "flux", orders)


def test_where_early_scores_say_nothing_the_search_is_best_of_n_and_its_factor_one_whatever_the_luck() -> None:
    played, blind = replay(0.0, 2), ((0.2, 0.0), (0.95, 0.0), (1.0, 1.0))
    for budget in BUDGETS:
        effective, error, held_out = played.measure("hps_v2", budget, blind, 0.0, False, HALF[1])
        assert effective == pytest.approx(1, abs=1e-6) and error == pytest.approx(0, abs=1e-6)
        assert set(held_out) == {"image_reward", "pick_score"}


def test_where_early_scores_say_all_pruning_multiplies_the_compute_unless_looks_are_dear() -> None:
    played = replay(1.0, 2)
    seen = played.curve("hps_v2", HALF[0])
    assert min(value for _, value in seen) == 1.0
    free, error, _ = played.measure("hps_v2", 100, seen, 0.0, False, HALF[1])
    dear, _, _ = played.measure("hps_v2", 100, seen, 19.0, False, HALF[1])
    assert free > 2 and error < 0.2 and dear == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("cost", [0.0, 0.25, 0.8, 3.0])
@pytest.mark.parametrize("budget", BUDGETS)
def test_looks_are_spent_once_and_what_an_unfinished_round_takes_is_charged(cost: float, budget: int) -> None:
    played = replay(0.7, 1)
    seen = played.curve("hps_v2", HALF[0])
    plan = halving_plan(curve_of(seen), STEPS, budget, cost)
    played.curves[plan, cost] = seen
    found = played.pick("hps_v2", budget, plan, cost, False, 3, 0)
    assert plan.cost(STEPS, cost) <= found.spent < 1.03 * budget
    assert found.begun >= plan.first


@pytest.mark.parametrize("budget", BUDGETS)
def test_by_the_clock_a_search_ends_when_the_time_is_over_and_what_it_takes_longer_is_charged(budget: int) -> None:
    played = replay(1.0, 2)
    seen = played.curve("hps_v2", HALF[0])
    plan = halving_plan(curve_of(seen), STEPS, budget, 0.5)
    played.curves[plan, 0.5] = seen
    found = played.pick("hps_v2", budget, plan, 0.5, True, 3, 0)
    seconds = played.paid(budget, 0.5, True)
    assert seconds == pytest.approx(budget * (STEPS + 0.5) / STEPS)
    assert seconds - STEPS - 1 < found.spent < seconds + STEPS + 1
    effective, _, _ = played.measure("hps_v2", budget, seen, 0.5, True, HALF[1])
    assert effective > 1


def test_smaller_budgets_are_played_in_more_orders_and_prompts_in_their_own() -> None:
    played = replay(1.0, 3)
    assert played.count == {100: 24, 200: 12, 400: 6, 800: 3}
    assert all(sorted(order) == list(range(SEEDS)) for orders in played.orders for order in orders)
    assert len({tuple(order) for orders in played.orders for order in orders}) == PROMPTS * 24


def test_a_line_has_every_budget_and_says_how_sure_it_is() -> None:
    played = replay(0.7, 2)
    line, error = row(played, "flux", "hps_v2", 2, TABLES["free"])
    assert line.count(" ± ") == len(BUDGETS) and line.endswith("NFE) |") and 0 < error < 1
    assert all(set(kind.costs) == {"flux", "sdxl"} for kind in TABLES.values())


def test_luck_counts_as_far_as_it_goes_with_what_is_found() -> None:
    luck = np.random.default_rng(1).normal(size=(5, 40))
    prompts = np.arange(5.0)[:, None]
    assert slope(luck, 0.7 * luck + prompts) == pytest.approx(0.7)
    assert slope(np.zeros((5, 40)), luck) == 0.0
