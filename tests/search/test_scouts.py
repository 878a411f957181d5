"""Scouts: rows that are judged at their end, cost what they take, and never become candidates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pack.search import Algorithm, Budget, SearchError
from pack.search.agreement import Scouting, scouting
from pack.search.types import Plan, Row, Search, advance, finish, judge, renoise
from pack.tests.search.test_early import Steady
from pack.tests.search.worlds import Counting, Pairs, Scorer, columns, first, search


def scouted(count: int, steps: int, then: Callable[[list[Row], Plan], Any] | None = None) -> Algorithm:
    """The user's own, then scouts for ever; `then` goes on with them."""

    def rounds(space: Any, plan: Plan) -> Search:
        yield from finish(space.fresh(1))
        while True:
            rows = yield from advance(space.scouts(count), plan.coarse(steps))
            rows = yield from judge(rows, fresh=False)
            if then:
                yield from then(rows, plan)

    return Algorithm("scouted", rounds)


@pytest.mark.parametrize("flow", [True, False])
@pytest.mark.parametrize("order", [1, 2])
def test_a_scout_is_judged_on_its_own_end_for_its_own_steps(flow: bool, order: int) -> None:
    sampler = Counting(flow, order, steps=12)
    report = search(scouted(3, 4), sampler, Budget(nfe=61), batch=2)
    each = 4 if order == 1 else 7
    scouts = [e for e in report.evaluations if e.scout]
    assert len(scouts) == 3 * ((61 - (12 if order == 1 else 23)) // (3 * each))
    assert report.nfe == sampler.rows == (12 if order == 1 else 23) + each * len(scouts)
    assert all(e.candidate is None and e.sigma == 0 and e.verdict == "judged" for e in scouts)
    for e in scouts:  # the score is that of a run of 4 steps, which a sampler with such a schedule makes alone
        alone = Counting(flow, order, steps=4)
        assert alone.sigmas == pytest.approx(Plan(sampler.sigmas, *[abs] * 3, None).coarse(4))  # type: ignore[arg-type]
        whole = search("random", alone, Budget(candidates=1), first_seed=e.recipe[0]["seed"])
        assert whole.best is not None and whole.best.evaluation.score == pytest.approx(e.score, abs=1e-5)


def test_a_scout_never_wins_and_is_never_finished_with_what_is_left() -> None:
    best_unless_whole = Scorer("cheap is best", lambda clean: clean[:, 0])
    for nfe in range(12, 60):  # stops in every phase of a round
        report = search(scouted(4, 2), Counting(steps=10), Budget(nfe=nfe), best_unless_whole, batch=3, top_k=5)
        assert len(report.finished) == 1 and [kept.evaluation.id for kept in report.top] == [0]
        assert report.nfe <= nfe


@pytest.mark.parametrize("limits", [{"seconds": 0.05}, {"candidates": 3, "nfe": 200}, {"patience": 2, "nfe": 200}])
def test_no_other_limit_lets_one_through_either(limits: dict[str, Any]) -> None:
    report = search(scouted(4, 2), Counting(steps=10), Budget(**limits))
    assert all(e.candidate is None for e in report.evaluations if e.scout)
    assert len(report.finished) == 1


def test_a_scout_that_was_re_noised_is_not_finished_either() -> None:
    def again(rows: list[Row], plan: Plan) -> Any:
        rows = yield from renoise(rows, plan.sigmas[3], [5] * len(rows))
        assert all(row.scout for row in rows)
        yield from advance(rows, plan.sigmas[3:6])

    report = search(scouted(2, 2, again), Counting(steps=10), Budget(nfe=40))
    assert len(report.finished) == 1


def test_asking_to_finish_a_scout_is_an_error_of_the_algorithm() -> None:
    with pytest.raises(SearchError, match="asked to finish a scout"):
        search(scouted(2, 2, lambda rows, plan: finish(rows)), Counting(), Budget(nfe=100))


def test_even_a_fresh_judgement_of_a_scout_at_its_end_costs_nothing() -> None:
    def again(rows: list[Row], plan: Plan) -> Any:
        scored = yield from judge(rows)
        assert [row.score for row in scored] == [row.score for row in rows]

    sampler = Counting(steps=10)
    report = search(scouted(5, 2, again), sampler, Budget(nfe=35))
    assert report.nfe == sampler.rows == 10 + 2 * 10
    judgements = [e for e in report.evaluations if e.scout]
    assert [e.nfe for e in judgements[5:10]] == [20] * 5


def test_a_verifier_that_wants_early_images_sees_those_of_scouts() -> None:
    report = search(scouted(3, 5), Counting(steps=10), Budget(nfe=41), Steady(), batch=2)
    assert all(e.verdict == "judged" for e in report.evaluations) and sum(e.scout for e in report.evaluations) == 6


def test_a_batch_of_latents_is_one_scout() -> None:
    sampler = Pairs(steps=10)
    report = search(scouted(3, 4), sampler, Budget(nfe=50), batch=2)
    assert report.nfe == sampler.rows == 20 + 3 * 4 * 2 and sum(e.scout for e in report.evaluations) == 3


def test_scouts_take_the_next_fresh_noises() -> None:
    report = search(scouted(3, 2), Counting(), Budget(nfe=30))
    plain = search("random", Counting(), Budget(candidates=4))
    assert [e.seed for e in report.evaluations[:4]] == [e.seed for e in plain.evaluations]
    told = columns(report.evaluations)
    assert [line["scout"] for line in told[:4]] == [False, True, True, True]


def test_the_report_ranks_scouts_against_the_candidates_that_grew_from_them() -> None:
    def render(rows: list[Row], plan: Plan) -> Any:
        yield from finish([Row(row.recipe, plan.sigmas[0], parent=row.id) for row in rows[:3]])

    report = search(scouted(5, 3, render), Counting(steps=12), Budget(nfe=12 + 2 * (15 + 36)), first())
    assert report.scouting is not None and report.scouting.scouts == 10 and report.scouting.rendered == 6
    pairs = [(report.evaluations[e.parent].score, e.score) for e in report.finished if e.parent is not None]
    ranks = [[sorted(side).index(value) for value in side] for side in zip(*pairs, strict=True)]
    squares = sum((a - b) ** 2 for a, b in zip(*ranks, strict=True))
    assert report.scouting.correlation == pytest.approx(1 - 6 * squares / (6 * 35))  # Spearman's own formula
    told = report.to_dict()["scouting"]
    assert told == {"scouts": 10, "rendered": 6, "correlation": report.scouting.correlation}


def test_a_search_without_scouts_says_nothing_of_them() -> None:
    report = search("random", Counting(), Budget(candidates=4))
    assert report.scouting is None and report.to_dict()["scouting"] is None
    only = search(scouted(3, 2), Counting(), Budget(nfe=30))
    assert only.scouting is None and scouting(only.evaluations) is None
    assert Scouting(3, 2, 0.5) == Scouting(3, 2, 0.5)
