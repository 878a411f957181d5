"""Rollover budget forcing: who is accepted, what is rolled over, and what a round costs."""

from collections import Counter
from itertools import pairwise

import pytest
import torch

from pack.search import Budget, Evaluation, SearchError, SearchReport, algorithm
from pack.search.recipe import Recipe
from pack.search.rollover import Chain
from pack.search.smc import TRANSITIONS
from pack.search.types import Advance, Finish, Judge, Row
from pack.tests.search.worlds import Counting, Recorded, Scorer, columns, often_nan, search

NAN = float("nan")
KINDS = pytest.mark.parametrize("flow", [True, False], ids=["flow", "eps"])
PLAIN = {"chains": 1, "starts": 3, "quota": 3.0, "start": 0.2, "end": 0.8}


def replayed(report: SearchReport, starts: int, quota: float) -> tuple[list[int], list[int], int]:
    """A round of one chain by hand, from its ledger: children drawn at each step, ids accepted, and the last choice."""
    looks = report.evaluations[1 : 1 + starts]
    record, here = max(e.score for e in looks), max(looks, key=lambda e: e.score)
    later = report.evaluations[1 + starts :]
    drawn, accepted, allowance = [], [], 0.0
    while later and later[0].candidate is None:
        allowance += quota
        tried: list[Evaluation] = []
        while True:
            tried.append(later.pop(0))
            assert tried[-1].parent == here.id and tried[-1].sigma == tried[0].sigma
            allowance -= 1
            if tried[-1].score > record or allowance < 1:
                break
        here = max(tried, key=lambda e: e.score)
        if here.score > record:
            record = here.score
            accepted.append(here.id)
        drawn.append(len(tried))
    return drawn, accepted, here.id


@KINDS
@pytest.mark.parametrize("seed", range(6))
def test_the_first_child_above_the_record_is_accepted_and_the_quota_rolls_over(flow: bool, seed: int) -> None:
    sampler = Counting(flow, steps=10, means=torch.zeros(1, 12), spread=1.0)
    report = search(algorithm("rollover", **PLAIN), sampler, Budget(candidates=2), first_seed=seed, seed=seed)
    drawn, accepted, last = replayed(report, 3, 3.0)
    assert len(drawn) == 6 and accepted
    assert report.finished[1].parent == last
    assert sum(drawn) <= 3 * 6
    # the own seed, three noises and their looks, the children, the last steps
    assert report.nfe == 10 + 3 * 3 + sum(drawn) + 2


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("steps", [7, 10, 12, 20])
@pytest.mark.parametrize("quota", [3, 4, 5])
def test_where_no_child_beats_the_record_every_step_has_its_quota_of_them(quota: int, steps: int, order: int) -> None:
    flat = Scorer("flat", lambda clean: torch.zeros(len(clean), dtype=torch.float64))
    chosen = algorithm("rollover", chains=1, starts=1, quota=quota)
    report = search(chosen, Counting(order=order, steps=steps), Budget(candidates=2), flat)
    children = Counter(e.sigma for e in report.evaluations if e.candidate is None and e.sigma < 1)
    assert {*children.values()} == {quota} and len(children) == min(round(0.95 * steps), steps - 1)


def test_some_step_draws_more_than_its_quota_with_what_others_spared() -> None:
    numbers = []
    for seed in range(8):
        sampler = Counting(steps=10, means=torch.zeros(1, 12), spread=1.0)
        report = search(algorithm("rollover", **PLAIN), sampler, Budget(candidates=2), first_seed=seed, seed=seed)
        numbers += replayed(report, 3, 3.0)[0]
    assert min(numbers) == 1 and max(numbers) > 3


def test_a_chain_that_beats_nothing_takes_the_best_child_and_keeps_its_record() -> None:
    rows = [Row(Recipe.of_seed(i), 0.5, score=s) for i, s in enumerate([1.0, 3.0, 2.0, NAN])]
    chain = Chain(rows[0], record=5.0, purse=3.5)
    assert chain.seeks(1)
    for row, left in zip(rows[1:], (2.5, 1.5, 0.5), strict=True):
        assert chain.seeks(1)
        chain.children.append(row)
        chain.purse = left
    assert not chain.seeks(1)
    moved = chain.moved()
    assert moved.row is rows[1] and moved.record == 5.0 and moved.purse == 0.5 and moved.children == []


def test_a_chain_stops_at_the_first_child_that_beats_its_record() -> None:
    chain = Chain(Row(Recipe.of_seed(0), 0.5), record=-float("inf"), purse=9.0)
    chain.children.append(Row(Recipe.of_seed(1), 0.5, score=NAN))
    assert chain.seeks(1)  # NaN beats nothing
    better = Row(Recipe.of_seed(2), 0.5, score=-7.0)
    chain.children.append(better)
    assert not chain.seeks(1)
    assert chain.moved() == Chain(better, -7.0, 9.0)
    blind = Chain(better, 1.0, 0.0, [Row(Recipe.of_seed(3), 0.5)])
    assert blind.moved().record == 1.0


@KINDS
def test_chains_share_calls_and_nothing_else(flow: bool) -> None:
    """A chain in company finds what it would find alone, had it the same noises: its own record and quota decide."""
    report = search(algorithm("rollover", **{**PLAIN, "chains": 3}), Counting(flow, steps=10), Budget(candidates=4))
    of = report.evaluations
    groups: dict[int, list[Evaluation]] = {}
    for e in of[1:10]:
        groups.setdefault((e.id - 1) % 3, []).append(e)
    assert len(report.finished) == 4
    for candidate in report.finished[1:]:
        line = [of[candidate.parent]]  # type: ignore[index]
        while line[-1].parent is not None:
            line.append(of[line[-1].parent])
        line.reverse()
        [start] = [group for group in groups.values() if line[0] in group]
        record, allowance = max(e.score for e in start), 0.0
        assert line[0].score == record
        for here, there in pairwise(line):
            tried = [e for e in of if e.parent == here.id and e.sigma == there.sigma and e.candidate is None]
            allowance += 3.0 - len(tried)
            assert all(e.score <= record for e in tried[:-1])
            assert there.score == max(e.score for e in tried)
            assert there.score > record or allowance < 1
            record = max(record, there.score)


def test_requests_carry_one_child_of_every_chain_that_still_seeks() -> None:
    recorded = Recorded("rollover", **{**PLAIN, "chains": 3})
    search(recorded.algorithm, Counting(steps=10), Budget(candidates=4))
    kinds = [type(request) for request in recorded.requests]
    assert kinds[:3] == [Finish, Advance, Judge] and set(kinds[3:-1]) == {Judge} and kinds[-1] == Finish
    sizes = [len(request.rows) for request in recorded.requests]
    assert sizes[:3] == [1, 9, 9] and sizes[-1] == 3 and max(sizes[3:]) == 3
    for before, after in pairwise(recorded.requests[3:-1]):
        if before.rows[0].sigma == after.rows[0].sigma:
            assert len(after.rows) <= len(before.rows)


@KINDS
@pytest.mark.parametrize("inner", [1, 2, 5])
@pytest.mark.parametrize("transition", TRANSITIONS)
def test_every_transition_stays_within_its_budget_and_uses_it(flow: bool, transition: str, inner: int) -> None:
    for nfe in (60, 100, 170, 400):
        sampler = Counting(flow, steps=10)
        report = search(algorithm("rollover", **PLAIN, transition=transition, inner=inner), sampler, Budget(nfe=nfe))
        assert nfe - 12 <= report.nfe == sampler.rows <= nfe and len(report.finished) >= 2


def test_from_pure_noise_a_start_costs_one_call() -> None:
    recorded = Recorded("rollover", **{**PLAIN, "starts": 25, "start": 0.0})
    sampler = Counting(steps=10)
    report = search(recorded.algorithm, sampler, Budget(candidates=2))
    children = sum(len(request.rows) for request in recorded.requests if isinstance(request, Judge)) - 25
    assert report.nfe == 10 + 25 + children + 2
    assert [e.sigma for e in report.evaluations[1:26]] == [sampler.sigmas[0]] * 25


def test_what_a_round_spares_goes_to_the_rounds_after_it() -> None:
    report = search(algorithm("rollover", **PLAIN), Counting(steps=10), Budget(nfe=600))
    rounds = len(report.finished) - 1
    least, most = 9 + 6 + 2, 9 + 18 + 2
    assert rounds > 590 / most and rounds <= 590 / least
    assert report.nfe > 600 - 12


def test_small_budgets_take_fewer_chains_then_fewer_starts_then_fresh_candidates() -> None:
    def begun(nfe: int) -> int:
        recorded = Recorded("rollover", **{**PLAIN, "chains": 2})
        report = search(recorded.algorithm, Counting(steps=10), Budget(nfe=nfe))
        assert report.nfe <= nfe and len(report.finished) >= 2
        served = [request for request, _ in zip(recorded.requests, recorded.replies, strict=False)]
        return max((len(request.rows) for request in served if isinstance(request, Advance)), default=0)

    assert begun(20) == 0  # a chain of one start takes 3 + 6 + 2 steps, and 10 are left
    assert begun(21) == 1
    assert begun(27) == 3
    assert begun(44) == 6


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_schedules_of_a_few_steps_work(steps: int) -> None:
    for nfe in (2 * steps, 6 * steps, 20 * steps):
        report = search("rollover", Counting(steps=steps), Budget(nfe=nfe))
        assert report.nfe <= nfe and len(report.finished) >= 2 and report.evaluations[0].seed == 7


@KINDS
def test_what_cannot_be_judged_is_accepted_only_where_nothing_can(flow: bool) -> None:
    chosen = algorithm("rollover", **PLAIN)
    one, two = (search(chosen, Counting(flow, steps=10), Budget(nfe=400), often_nan()) for _ in range(2))
    of = one.evaluations
    for e in of:
        if e.candidate is None and e.parent is not None and of[e.parent].verdict == "not judged":
            parent = of[e.parent]
            family = [o for o in of if o.parent == parent.parent and o.sigma == parent.sigma and o.candidate is None]
            assert parent.parent is None or all(o.verdict == "not judged" for o in family)
    assert one.best is not None and one.best.evaluation.verdict == "judged"
    assert columns(one.evaluations) == columns(two.evaluations)


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"transition": "sde"}, "transition='sde'.*glass"),
        ({"chains": 0}, "chains=0; expected 1 or more"),
        ({"starts": 0}, "starts=0"),
        ({"quota": 0.5}, "quota=0.5"),
        ({"quota": NAN}, "quota=nan"),
        ({"start": 0.9, "end": 0.2}, "start <= end"),
        ({"eta": 1.5}, "eta=1.5; expected 0 to 1"),
        ({"inner": 0}, "inner=0"),
    ],
)
def test_settings_that_make_no_sense_are_refused_before_any_forward(settings: dict[str, object], said: str) -> None:
    sampler = Counting()
    with pytest.raises(SearchError, match=said):
        search(algorithm("rollover", **settings), sampler, Budget(nfe=100))
    assert sampler.rows == 0


def test_it_gains_over_best_of_n_on_a_landscape_that_it_can_climb() -> None:
    gains = []
    for seed in range(6):
        found = []
        for name in ("rollover", "random"):
            sampler = Counting(steps=20, means=torch.zeros(1, 12), spread=1.0)
            report = search(name, sampler, Budget(nfe=320), first_seed=seed, seed=seed)
            assert report.best is not None
            found.append(report.best.evaluation.score)
        gains.append(found[0] - found[1])
    assert sum(gains) / len(gains) > 1.0  # in standard deviations of the data
