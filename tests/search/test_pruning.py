"""Pruned best-of-N: plans are computed from a curve, cost what they say, and are carried out as they stand."""

from __future__ import annotations

import math

import pytest
import torch

from pack.search import Budget, Candidates, SearchError, algorithm
from pack.search.curves import CURVES, curve_of, measured_curve
from pack.search.halving_plan import MOST_STARTED, Curve, HalvingPlan, halving_plan
from pack.search.types import Advance, Finish, Judge
from pack.tests.search.worlds import Counting, Recorded, Scorer, search

SHARP = Curve(((0.2, 0.8), (0.4, 0.95), (0.6, 0.99)))
BLIND = Curve(((0.2, 0.02), (0.9, 0.02)))
MODELS = [name for name in CURVES if name != "cautious"]


def test_the_cost_of_a_plan_by_hand() -> None:
    # 9 candidates for 7 steps, 4 of them for 5 more, 2 of them for the last 8
    plan = HalvingPlan(9, ((7, 4), (12, 2)))
    assert plan.cost(20) == 9 * 7 + 4 * 5 + 2 * 8
    assert plan.cost(20, judge_cost=0.25) == plan.cost(20) + 0.25 * (9 + 4)


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize(
    ("steps", "budget", "judge_cost"), [(20, 80, 0.0), (20, 380, 0.25), (30, 1500, 0.0), (8, 64, 0.5)]
)
def test_a_plan_costs_no_more_than_the_budget_and_starts_no_more_than_allowed(
    name: str, steps: int, budget: int, judge_cost: float
) -> None:
    plan = halving_plan(curve_of(name), steps, budget, judge_cost)
    assert plan.cost(steps, judge_cost if plan.cuts else 0.0) <= budget
    assert plan.first <= MOST_STARTED * (budget // steps)
    kept = [plan.first, *(keep for _, keep in plan.cuts)]
    assert kept == sorted(kept, reverse=True) and kept[-1] >= 1
    assert all(0 < step < steps for step, _ in plan.cuts)


def test_what_can_be_seen_early_is_cut_early_and_what_cannot_is_not_cut() -> None:
    assert halving_plan(BLIND, 20, 400) == HalvingPlan(20)
    sharp, cautious = halving_plan(SHARP, 20, 400), halving_plan(curve_of("cautious"), 20, 400)
    assert sharp.first >= cautious.first >= 20
    assert sharp.cuts[0][0] < cautious.cuts[0][0]


def test_the_same_question_has_the_same_answer_and_leaves_random_generators_alone() -> None:
    before = torch.get_rng_state()
    halving_plan.cache_clear()
    one = halving_plan(SHARP, 20, 300)
    halving_plan.cache_clear()
    assert halving_plan(SHARP, 20, 300) == one and torch.equal(torch.get_rng_state(), before)


def test_too_little_to_cut_is_plain_best_of_n() -> None:
    assert halving_plan(SHARP, 20, 30) == HalvingPlan(1)
    assert halving_plan(SHARP, 3, 300) == HalvingPlan(100)


def test_a_gaussian_chain_gives_back_its_own_correlations() -> None:
    generator = torch.Generator().manual_seed(3)
    expected = [0.2, 0.5, 0.8, 1.0]
    scores = [torch.randn(300, 200, generator=generator, dtype=torch.float64)]
    for low, high in zip(expected[-2::-1], expected[:0:-1], strict=True):
        kept = low / high
        fresh = torch.randn(300, 200, generator=generator, dtype=torch.float64)
        scores.insert(0, kept * scores[0] + math.sqrt(1 - kept**2) * fresh)
    curve = measured_curve(torch.stack(scores, dim=-1))
    assert [share for share, _ in curve] == [0.25, 0.5, 0.75, 1.0]
    assert [seen for _, seen in curve] == pytest.approx(expected, abs=0.02)  # standard error below 0.01


def test_a_curve_knows_ranks_only() -> None:
    scores = torch.randn(5, 40, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert measured_curve(scores) == measured_curve(scores.exp() * 7 + 3)


@pytest.mark.parametrize("points", [(), ((0.5, 0.4), (0.2, 0.6)), ((0.0, 0.1),), ((0.5, 1.5),), ((1.2, 0.9),)])
def test_points_that_are_no_curve_are_refused(points: tuple[tuple[float, float], ...]) -> None:
    with pytest.raises(SearchError, match="curve"):
        Curve(points)


def test_an_unknown_curve_is_refused_with_the_known_names() -> None:
    with pytest.raises(SearchError, match="curve: got 'mine'; expected one of cautious"):
        search(algorithm("pruned", curve="mine"), Counting(), Budget(nfe=100))


@pytest.mark.parametrize("name", MODELS)
def test_curves_rise_and_the_cautious_one_lies_below_all(name: str) -> None:
    seen = [value for _, value in CURVES[name]]
    assert seen == sorted(seen)
    for share in (0.4, 0.6, 0.8, 0.9):
        assert curve_of("cautious").at(share) <= curve_of(name).at(share)


def test_a_search_begins_cuts_and_finishes_as_the_plan_says() -> None:
    sampler = Counting(steps=20)
    recorded = Recorded("pruned", curve=SHARP.points)
    report = search(recorded.algorithm, sampler, Budget(nfe=420), batch=16)
    plan = halving_plan(SHARP, 20, 420)
    asked = recorded.requests
    started = [len(r.rows) for r in asked if isinstance(r, Advance)]
    assert started[: len(plan.cuts)] == [plan.first, *(keep for _, keep in plan.cuts[:-1])]
    looks = [r for r in asked if isinstance(r, Judge)]
    assert all(not look.fresh for look in looks)
    assert report.nfe == sampler.rows <= 420
    assert report.nfe >= plan.cost(20)
    assert report.evaluations[0].recipe == ({"op": "seed", "seed": 7},)  # the user's own takes part


@pytest.mark.parametrize("limits", [{"seconds": 60.0}, {"seconds": 60.0, "nfe": 420}, {"candidates": 12}])
def test_where_a_clock_may_end_it_the_users_own_is_finished_first(limits: dict[str, float]) -> None:
    recorded = Recorded("pruned", curve=SHARP.points)
    search(recorded.algorithm, Counting(steps=20), Budget(**{"candidates": 12, **limits}), batch=16)  # type: ignore[arg-type]
    finished = next(i for i, request in enumerate(recorded.requests) if isinstance(request, Finish))
    assert all(len(request.rows) == 1 for request in recorded.requests[: finished + 1])
    looked = [isinstance(request, Judge) for request in recorded.requests[:finished]]
    assert looked == ([False, True] if "seconds" in limits else [])  # what a look takes shows too


def test_the_users_own_is_not_paused_for_a_look_where_it_would_not_end_as_stock_does() -> None:
    recorded, sampler = Recorded("pruned", curve=SHARP.points), Counting(steps=20)
    sampler.exact_pauses = False
    report = search(recorded.algorithm, sampler, Budget(seconds=60, candidates=12), batch=16)
    assert isinstance(recorded.requests[0], Finish) and report.evaluations[0].candidate == 0


def test_those_that_look_best_go_on() -> None:
    recorded = Recorded("pruned", curve=SHARP.points)
    search(recorded.algorithm, Counting(steps=20), Budget(nfe=420))
    for request, reply in zip(recorded.requests, recorded.replies, strict=False):
        if isinstance(request, Judge):
            follower = recorded.requests[recorded.requests.index(request) + 1]
            kept = sorted((row.score for row in reply), reverse=True)[: len(follower.rows)]
            assert [row.score for row in follower.rows] == kept


def test_it_beats_best_of_n_where_the_best_can_be_seen_early() -> None:
    gains = []
    for seed in range(30):
        found = [
            search(name, Counting(steps=20, means=torch.zeros(1, 12), spread=1.0), Budget(nfe=200), first_seed=seed)
            for name in (algorithm("pruned", curve=SHARP.points), "random")
        ]
        pruned, random = (report.best.evaluation.score for report in found if report.best)
        gains.append(pruned - random)
    mean = sum(gains) / len(gains)
    error = math.sqrt(sum((g - mean) ** 2 for g in gains) / len(gains) / (len(gains) - 1))
    assert mean > 2 * error > 0


def test_nothing_that_cannot_be_judged_on_the_way_goes_on_before_what_can() -> None:
    half_blind = Scorer("half blind", lambda clean: torch.where(clean[:, 1] > 0, clean[:, 0], float("nan")))
    recorded = Recorded("pruned", curve=SHARP.points)
    search(recorded.algorithm, Counting(steps=20), Budget(nfe=420), half_blind)
    for request, reply in zip(recorded.requests, recorded.replies, strict=False):
        if isinstance(request, Judge):
            follower = recorded.requests[recorded.requests.index(request) + 1]
            judged = sum(row.score == row.score for row in reply)
            assert sum(row.score == row.score for row in follower.rows) == min(judged, len(follower.rows))


def test_without_a_limit_on_nfe_rounds_follow_each_other() -> None:
    report = search("pruned", Counting(steps=20), Budget(candidates=12), candidates=Candidates.of_seed(5), batch=8)
    assert len(report.finished) == 12 and report.finished[0].seed == 5
