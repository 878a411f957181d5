"""Beam search: what its rounds ask for, whose children go on, and its schedules."""

import math
from itertools import pairwise

import pytest
import torch

from pack.search import Budget, Recipe, SearchError, SearchReport, algorithm
from pack.search.beam import EXPANSION, SHRINKING, cost, replaced, scaled, schedule
from pack.search.smc import TRANSITIONS, Spread
from pack.search.space import Candidates, Space
from pack.search.types import Advance, Finish, Judge, Plan, Predict, Row
from pack.tests.search.worlds import Counting, Recorded, often_nan, search

NAN = float("nan")
KINDS = pytest.mark.parametrize("flow", [True, False], ids=["flow", "eps"])
PLAIN = {"beams": 2, "width": 3, "oversample": 1, "start": 0.2, "end": 0.8}


def plan_of(steps: int, nfe: int = 0) -> Plan:
    sampler = Counting(steps=steps)
    return Plan(sampler.sigmas, sampler.time, sampler.sigma, sampler.coefficients, steps, nfe)


def generations(report: SearchReport) -> list[list[int]]:
    """Ids of the evaluations of one round after the user's own candidate, grouped by their sigma, in order."""
    groups: list[list[int]] = []
    for before, now in pairwise(report.evaluations):
        if before.sigma != now.sigma:
            groups.append([])
        groups[-1].append(now.id)
    return groups


def test_a_round_goes_by_the_sampler_then_by_children_then_by_the_sampler() -> None:
    recorded, sampler = Recorded("beam", **PLAIN), Counting(steps=10)
    report = search(recorded.algorithm, sampler, Budget(candidates=3))
    kinds = [type(request) for request in recorded.requests]
    assert kinds == [Finish, Advance, Judge, *[Judge] * 6, Finish]
    assert [len(request.rows) for request in recorded.requests] == [1, 2, 2, *[6] * 6, 2]
    sigmas = [request.rows[0].sigma for request in recorded.requests if isinstance(request, Judge)]
    assert sigmas == list(sampler.sigmas[2:9])
    # the own seed; the way down and a look; three children of two beams at six steps, each one call; the last steps
    assert report.nfe == sampler.rows == 10 + 2 * 3 + 2 * 3 * 6 + 2 * 2


@KINDS
def test_each_beam_goes_on_as_the_best_of_its_own_children(flow: bool) -> None:
    report = search(algorithm("beam", **PLAIN), Counting(flow, steps=10), Budget(candidates=3))
    groups, of = generations(report), report.evaluations
    assert [len(group) for group in groups] == [2, *[6] * 6, 2]
    for before, after in pairwise(groups):
        parents = {of[i].parent for i in after}
        families = [[j for j in before if of[j].parent == beam] for beam in {of[j].parent for j in before}]
        best = {max(family, key=lambda j: of[j].score) for family in families}
        assert parents == (best if None not in {of[j].parent for j in before} else set(before))
        assert len({of[i].score for i in after}) == len(after)  # children part


def test_a_childs_only_model_call_is_the_one_that_judges_it() -> None:
    """With a width of 1 a beam is one way of ancestral steps: the sampler's own count, and one look at the end."""
    settings = {"beams": 2, "width": 1, "oversample": 1, "start": 0.2, "end": 0.8}
    recorded, sampler = Recorded("beam", **settings), Counting(steps=10)
    report = search(recorded.algorithm, sampler, Budget(candidates=3))
    assert report.nfe == 10 + 2 * 11
    assert not any(isinstance(request, Predict) for request in recorded.requests)


@KINDS
@pytest.mark.parametrize("inner", [1, 2, 5])
@pytest.mark.parametrize("transition", TRANSITIONS)
def test_the_planned_cost_is_what_is_spent(flow: bool, transition: str, inner: int) -> None:
    for nfe in (60, 100, 170, 400):
        sampler = Counting(flow, steps=10)
        chosen = algorithm("beam", **{**PLAIN, "oversample": 2}, transition=transition, inner=inner)
        report = search(chosen, sampler, Budget(nfe=nfe))
        assert report.nfe == sampler.rows <= nfe
        # what is left is less than one more child of every beam at one step, or one more image
        assert report.nfe > nfe - 4 * 5 and len(report.finished) >= 2


def test_the_worst_beams_end_by_the_schedule_until_the_last_step() -> None:
    recorded = Recorded("beam", **{**PLAIN, "beams": 2, "oversample": 4, "width": 1, "shrinking": "linear"})
    report = search(recorded.algorithm, Counting(steps=10), Budget(candidates=3))
    assert schedule(2, 4, "linear", 6) == [8, 7, 6, 5, 4, 3, 2]
    sizes = [len(request.rows) for request in recorded.requests]
    assert sizes == [1, 8, 8, 8, 7, 6, 5, 4, 3, 2]
    of = report.evaluations
    for before, after in list(pairwise(generations(report)))[1:]:
        survivors = {of[i].parent for i in after}
        assert survivors == set(sorted(before, key=lambda i: -of[i].score)[: len(after)])


def test_shrinking_goes_from_all_to_the_beams_that_are_finished() -> None:
    for shrinking in SHRINKING:
        for oversample in (1, 2, 5):
            counts = schedule(4, oversample, shrinking, 10)
            assert len(counts) == 11 and counts[-1] == 4 and counts == sorted(counts, reverse=True)
            assert 4 * oversample - 1 <= counts[0] <= 4 * oversample
    assert schedule(1, 4, "constant", 4) == [4, 4, 4, 4, 1]
    assert schedule(1, 16, "exponential", 4) == [16, 8, 4, 2, 1]  # geometric
    assert schedule(1, 17, "quadratic", 4) == [17, 10, 5, 2, 1]
    assert schedule(3, 1, "linear", 0) == [3]


def test_expansion_gives_the_probabilities_of_dsearch() -> None:
    assert EXPANSION["exponential"](0.0, 50) == 0 and EXPANSION["exponential"](1.0, 50) == pytest.approx(1 - math.e**-3)
    assert [EXPANSION["linear"](i / 50, 50) for i in (0, 10, 45)] == pytest.approx([10 / 50, 20 / 50, 1.0])
    assert [EXPANSION["early"](u, 10) for u in (0.0, 0.4, 0.5, 0.9)] == [1, 1, 0, 0]


@pytest.mark.parametrize("expansion, wide_steps", [("never", []), ("always", [0, 1, 2, 3, 4, 5]), ("early", [0, 1, 2])])
def test_wide_steps_have_more_children(expansion: str, wide_steps: list[int]) -> None:
    recorded = Recorded("beam", **{**PLAIN, "width": 2}, expansion=expansion, wide=3.0)
    search(recorded.algorithm, Counting(steps=10), Budget(candidates=3))
    sizes = [len(request.rows) for request in recorded.requests if isinstance(request, Judge)][1:]
    assert sizes == [2 * 2 * (3 if i in wide_steps else 1) for i in range(6)]


def test_a_wide_step_gives_the_calls_of_beams_that_ended_to_the_others() -> None:
    recorded = Recorded("beam", **{**PLAIN, "beams": 1, "oversample": 4, "width": 2}, expansion="always", wide=1.0)
    search(recorded.algorithm, Counting(steps=10), Budget(candidates=2))
    sizes = [len(request.rows) for request in recorded.requests if isinstance(request, Judge)][1:]
    counts = schedule(1, 4, "exponential", 6)
    assert counts == [4, 3, 3, 2, 2, 1, 1]
    assert all(6 <= size <= 9 for size in sizes) and sum(sizes) <= 8 * 6


def test_children_are_scaled_to_the_share_of_the_round() -> None:
    plan, stops = plan_of(10), [*range(2, 9)]
    counts, widths = [2] * 7, [3.0] * 6
    assert cost(plan, stops, counts, widths) == 2 * 3 + 36 + 2 * 2
    assert scaled(plan, stops, counts, widths, 46) == [3] * 6
    assert scaled(plan, stops, counts, widths, 22) == [1] * 6
    for share in range(22, 90):
        found = scaled(plan, stops, counts, widths, share)
        assert 0 <= share - cost(plan, stops, counts, found) < 2 and max(found) - min(found) <= 1
    uneven = scaled(plan, stops, [4, 3, 3, 2, 2, 1, 1], [6.0, 1.0, 1.0, 1.0, 1.0, 1.0], 60)
    assert uneven[0] > 2 * max(uneven[1:]) and cost(plan, stops, [4, 3, 3, 2, 2, 1, 1], uneven) <= 60


def test_small_budgets_take_fewer_beams_then_less_oversampling_then_fresh_candidates() -> None:
    def finished(nfe: int) -> tuple[int, int]:
        recorded = Recorded("beam", **{**PLAIN, "beams": 2, "oversample": 3})
        report = search(recorded.algorithm, Counting(steps=10), Budget(nfe=nfe))
        assert report.nfe <= nfe
        served = [request for request, _ in zip(recorded.requests, recorded.replies, strict=False)]
        begun = [len(request.rows) for request in served if isinstance(request, Advance)]
        return max(begun, default=0), len(report.finished)

    assert finished(20) == (0, 2)  # a beam would take 11 steps, and 10 are left
    assert finished(21) == (1, 2)
    assert finished(27)[0] == 2
    assert finished(60)[0] == 6
    sizes = [finished(nfe)[0] for nfe in range(20, 61, 4)]
    assert sizes == sorted(sizes)


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_schedules_of_a_few_steps_work(steps: int) -> None:
    for nfe in (2 * steps, 6 * steps, 20 * steps):
        report = search("beam", Counting(steps=steps), Budget(nfe=nfe))
        assert report.nfe <= nfe and len(report.finished) >= 2 and report.evaluations[0].seed == 7


def test_replacing_draws_from_the_others_by_score_and_never_loses_the_best() -> None:
    space = Space(Candidates.of_seed(7), 3, 1.0)
    rows = [Row(Recipe.of_seed(i), 0.5, score=s) for i, s in enumerate([3.0, 2.0, 1.0, -50.0])]
    assert replaced(rows, 0, Spread(), space) is rows
    drawn = [replaced(rows, 2, Spread(), space) for _ in range(300)]
    assert all(found[:2] == rows[:2] and all(row in rows[:2] for row in found[2:]) for found in drawn)
    unit = Spread().after([row.score for row in rows])
    share = sum(row is rows[0] for found in drawn for row in found[2:]) / 600
    assert share == pytest.approx(1 / (1 + math.exp(-1 / unit)), abs=0.06)
    assert [row.score for row in replaced(rows, 4, Spread(), space)] == [3.0] * 4
    blind = [Row(Recipe.of_seed(i), 0.5) for i in range(3)]
    assert len(replaced(blind, 1, Spread(), space)) == 3


def test_replaced_beams_part_from_their_twins() -> None:
    chosen = algorithm("beam", **{**PLAIN, "beams": 4, "replace": 0.25})
    report = search(chosen, Counting(steps=10), Budget(candidates=9))
    scores = [e.score for e in report.evaluations]
    assert len(set(scores)) == len(scores)


@KINDS
def test_what_could_not_be_judged_goes_on_only_where_nothing_could(flow: bool) -> None:
    report = search(algorithm("beam", **PLAIN), Counting(flow, steps=10), Budget(nfe=400), often_nan())
    of = report.evaluations
    for e in of:
        if e.parent is not None and of[e.parent].verdict == "not judged":
            siblings = [o for o in of if o.candidate is None and o.sigma == of[e.parent].sigma]
            family = [o for o in siblings if o.parent == of[e.parent].parent]
            assert of[e.parent].parent is None or all(o.verdict == "not judged" for o in family)
    assert report.best is not None and report.best.evaluation.verdict == "judged"


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"shrinking": "cubic"}, "shrinking='cubic'.*exponential"),
        ({"expansion": "sometimes"}, "expansion='sometimes'.*early"),
        ({"transition": "sde"}, "transition='sde'.*glass"),
        ({"beams": 0}, "beams=0; expected 1 or more"),
        ({"width": 0}, "width=0"),
        ({"wide": NAN}, "wide=nan"),
        ({"start": 0.9, "end": 0.2}, "start <= end"),
        ({"replace": 1.5}, "replace=1.5; expected 0 to 1"),
        ({"rho": NAN}, "rho=nan"),
    ],
)
def test_settings_that_make_no_sense_are_refused_before_any_forward(settings: dict[str, object], said: str) -> None:
    sampler = Counting()
    with pytest.raises(SearchError, match=said):
        search(algorithm("beam", **settings), sampler, Budget(nfe=100))
    assert sampler.rows == 0


def test_it_gains_over_best_of_n_on_a_landscape_that_it_can_climb() -> None:
    gains = []
    for seed in range(6):
        found = []
        for name in ("beam", "random"):
            sampler = Counting(steps=20, means=torch.zeros(1, 12), spread=1.0)
            report = search(name, sampler, Budget(nfe=320), first_seed=seed, seed=seed)
            assert report.best is not None
            found.append(report.best.evaluation.score)
        gains.append(found[0] - found[1])
    assert sum(gains) / len(gains) > 1.0  # in standard deviations of the data
