"""Depth-first search: who turns back, how far, what is compared with what, and what goes on in the end."""

import math
from itertools import pairwise

import pytest
import torch

from pack.search import Budget, Evaluation, SearchError, SearchReport, algorithm
from pack.search.depth_first import THRESHOLDS, looks, quantile_of
from pack.search.types import Advance, Finish, Judge, Renoise
from pack.tests.search.worlds import Counting, Recorded, Scorer, Veto, columns, first, often_nan, search

NAN = float("nan")
KINDS = pytest.mark.parametrize("flow", [True, False], ids=["flow", "eps"])
PLAIN = {"particles": 1, "start": 0.4, "end": 0.8, "every": 0.2, "back": 0.2, "backtracks": 3}


def passes(threshold: float) -> dict[str, object]:
    return {**PLAIN, "threshold": "absolute", "lowest": threshold, "highest": threshold}


def midway(report: SearchReport) -> list[Evaluation]:
    return [e for e in report.evaluations if e.candidate is None]


def test_what_passes_goes_straight_down_at_the_price_of_a_plain_candidate() -> None:
    recorded, sampler = Recorded("depth_first", **passes(-1e6)), Counting(steps=10)
    report = search(recorded.algorithm, sampler, Budget(nfe=50))
    assert [type(r) for r in recorded.requests[:8]] == [Finish, *[Advance, Judge] * 3, Finish]
    assert all(not r.fresh for r in recorded.requests if isinstance(r, Judge))
    assert report.nfe == sampler.rows == 50 and len(report.finished) == 5
    plain = search("random", Counting(steps=10), Budget(nfe=50))
    assert [e.recipe for e in report.finished] == [e.recipe for e in plain.finished]
    assert [e.score for e in report.finished] == pytest.approx([e.score for e in plain.finished])


@KINDS
def test_what_fails_is_renoised_by_its_share_of_the_steps_and_turns_back_so_often_at_most(flow: bool) -> None:
    recorded, sampler = Recorded("depth_first", **passes(1e6)), Counting(flow, steps=10)
    report = search(recorded.algorithm, sampler, Budget(candidates=2))
    # three times from step 4 up to step 2, then down without turning
    kinds = [Advance, Judge, *[Renoise, Advance, Judge] * 3, Advance, Judge, Advance, Judge]
    assert [type(r) for r in recorded.requests] == [Finish, *kinds, Finish]
    turns = [r for r in recorded.requests if isinstance(r, Renoise)]
    assert all(r.rows[0].sigma == sampler.sigmas[4] and r.sigma == sampler.sigmas[2] for r in turns)
    assert report.nfe == sampler.rows == 10 + 10 + 3 * 2
    assert len({e.score for e in report.evaluations}) == len(report.evaluations)


def test_the_best_state_at_the_step_goes_on_when_no_turn_is_left() -> None:
    chosen = 0
    for seed in range(6):
        report = search(
            algorithm("depth_first", **passes(1e6)),
            Counting(steps=10),
            Budget(candidates=2),
            first_seed=seed,
            seed=seed,
        )
        at_first, after = midway(report)[:4], midway(report)[4]
        best = max(at_first, key=lambda e: e.score)
        assert after.parent == best.id and after.recipe == best.recipe
        chosen += best is not at_first[-1]
    assert chosen > 0


def test_each_state_is_the_parent_of_the_one_that_its_renoising_led_to() -> None:
    report = search(algorithm("depth_first", **passes(1e6)), Counting(steps=10), Budget(candidates=2))
    for before, after in pairwise(midway(report)[:4]):
        assert after.parent == before.id
        assert after.recipe[:-1] == before.recipe and after.recipe[-1]["op"] == "renoise"


def test_all_the_way_up_is_a_fresh_noise() -> None:
    recorded = Recorded("depth_first", **{**passes(1e6), "back": 1.0})
    report = search(recorded.algorithm, Counting(steps=10), Budget(candidates=2))
    assert not any(isinstance(r, Renoise) for r in recorded.requests)
    assert [e.parent for e in midway(report)[:4]] == [None] * 4
    assert len({e.seed for e in midway(report)[:4]} - {None}) == 4
    assert report.nfe == 10 + 10 + 3 * 4


def test_a_particle_is_judged_again_at_every_look_that_it_passes_on_its_way_down() -> None:
    """It fails at the last look alone, and goes up above the first."""
    settings = {**PLAIN, "threshold": "absolute", "lowest": -1e6, "highest": 1e6, "back": 0.6, "backtracks": 1}
    sampler = Counting(steps=10)
    settings |= {"every": 0.4}  # looks at 4 and 8
    report = search(algorithm("depth_first", **settings), sampler, Budget(candidates=2))
    assert [e.sigma for e in midway(report)] == [sampler.sigmas[i] for i in (4, 8, 4, 8)]
    assert report.nfe == 10 + 10 + 6


def test_an_absolute_threshold_rises_linearly_in_steps() -> None:
    def turned(score: float) -> list[float]:
        settings = {**PLAIN, "threshold": "absolute", "lowest": 0.0, "highest": 4.0, "backtracks": 100}
        recorded = Recorded("depth_first", **settings)
        sampler, verifier = Counting(steps=10), Scorer("constant", lambda clean: clean[:, 0] * 0 + score)
        search(recorded.algorithm, sampler, Budget(nfe=60), verifier)
        return [r.rows[0].sigma for r in recorded.requests if isinstance(r, Renoise)]

    sigmas = Counting(steps=10).sigmas
    assert set(turned(-1.0)) == {sigmas[4]}
    assert set(turned(1.0)) == {sigmas[6]}
    assert set(turned(3.0)) == {sigmas[8]}
    assert turned(4.0) == []


@KINDS
@pytest.mark.parametrize("quantile", [0.0, 0.3, 0.5, 0.9])
def test_the_relative_threshold_is_a_quantile_of_all_scores_at_that_step_so_far(flow: bool, quantile: float) -> None:
    recorded = Recorded("depth_first", **{**PLAIN, "backtracks": 10**6}, quantile=quantile)
    search(recorded.algorithm, Counting(flow, steps=10), Budget(candidates=12))
    seen: dict[float, list[float]] = {}
    pairs = list(zip(recorded.requests, recorded.replies, strict=False))
    turns = 0
    for (request, reply), following in zip(pairs, recorded.requests[1:], strict=False):
        if isinstance(request, Judge):
            scores = seen.setdefault(reply[0].sigma, [])
            scores.append(reply[0].score)
            ordered = sorted(scores)
            place = quantile * (len(ordered) - 1)
            low = ordered[math.floor(place)]
            demanded = low + (ordered[math.ceil(place)] - low) * (place - math.floor(place))
            assert isinstance(following, Renoise) == (reply[0].score < demanded - 1e-12)
            turns += isinstance(following, Renoise)
    assert (turns == 0) == (quantile == 0)


def test_the_scale_of_a_verifier_changes_nothing_under_a_quantile() -> None:
    def found(factor: float) -> list[object]:
        verifier = Scorer("first", lambda clean: factor * clean[:, 0] + 8 * (factor - 1))
        report = search(algorithm("depth_first", **PLAIN), Counting(steps=10), Budget(nfe=210), verifier)
        return [e.recipe for e in report.evaluations]

    assert found(1.0) == found(1024.0)


@KINDS
def test_particles_side_by_side_share_calls_wherever_they_are_at_the_same_step(flow: bool) -> None:
    recorded = Recorded("depth_first", **{**PLAIN, "particles": 6})
    report = search(recorded.algorithm, Counting(flow, steps=10), Budget(candidates=13))
    sizes = [len(r.rows) for r in recorded.requests if isinstance(r, Advance)]
    assert max(sizes) == 6 and min(sizes) < 6
    finishes = [r for r in recorded.requests if isinstance(r, Finish)]
    assert [len(r.rows) for r in finishes] == [1, 6, 6]
    assert len({e.score for e in report.finished}) == 13


@KINDS
@pytest.mark.parametrize("particles", [1, 4])
def test_nobody_turns_back_who_could_not_be_finished_then(flow: bool, particles: int) -> None:
    for nfe in range(20, 90, 3):
        sampler = Counting(flow, steps=10)
        report = search(algorithm("depth_first", **{**PLAIN, "particles": particles}), sampler, Budget(nfe=nfe))
        assert report.nfe == sampler.rows <= nfe
        # a particle that had to stop on its way left no image: none did, or there was no room for one
        spent = max(e.nfe for e in report.finished)
        assert nfe - spent < 10


def test_looks_are_shares_of_the_steps_and_never_at_an_end() -> None:
    assert looks(20, 0.4, 0.8, 0.2) == [8, 12, 16]
    assert looks(10, 0.5, 0.5, 0.1) == [5]
    assert looks(10, 0.0, 1.0, 0.0) == [*range(1, 10)]
    assert looks(20, 0.25, 0.9, 0.3) == [5, 11, 17]
    assert looks(1, 0.4, 0.8, 0.2) == []
    assert looks(2, 0.4, 0.8, 0.2) == [1]


def test_the_quantile_interpolates_and_ignores_what_is_not_finite() -> None:
    assert quantile_of([3.0, 1.0, 2.0, NAN], 0.5) == 2.0
    assert quantile_of([0.0, 1.0, -math.inf], 0.25) == 0.25
    assert quantile_of([], 0.5) == quantile_of([NAN], 0.5) == -math.inf


@KINDS
def test_what_cannot_be_judged_turns_back(flow: bool) -> None:
    recorded = Recorded("depth_first", **PLAIN)
    report = search(recorded.algorithm, Counting(flow, steps=10), Budget(nfe=400), often_nan())
    blind = [r for r in recorded.requests if isinstance(r, Renoise) and math.isnan(r.rows[0].score)]
    assert blind and report.best is not None and report.best.evaluation.verdict == "judged"
    again = search(algorithm("depth_first", **PLAIN), Counting(flow, steps=10), Budget(nfe=400), often_nan())
    assert columns(again.evaluations) == columns(report.evaluations)


@KINDS
@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_what_is_vetoed_turns_back_as_long_as_it_may(flow: bool, threshold: str) -> None:
    """The second number vetoes some; no score that counts is below the threshold."""
    settings = {**PLAIN, "quantile": 0.0, "lowest": -1e6, "highest": -1e6, "back": 0.3}
    recorded = Recorded("depth_first", **settings, threshold=threshold)
    search(recorded.algorithm, Counting(flow, steps=10), Budget(candidates=30), Veto(0.7))
    judged, turns, seen = set(), 0, []
    pairs = zip(recorded.requests, recorded.replies, recorded.requests[1:], strict=False)
    for request, reply, following in pairs:
        if isinstance(request, Finish):
            turns = 0
        if isinstance(request, Judge):
            [row] = reply
            judged |= {row.sigma} if math.isfinite(row.score) else set()
            if row.score == -math.inf and row.sigma in judged:
                seen.append(turns < 3)
                assert isinstance(following, Renoise) == (turns < 3)
            turns += isinstance(following, Renoise)
    assert sum(seen) > 5


@KINDS
@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("verifier", [Veto(1e6), Scorer("blind", lambda clean: clean[:, 0] * NAN)])
def test_a_step_at_which_nothing_could_be_judged_yet_sends_nobody_back(
    flow: bool, threshold: str, verifier: object
) -> None:
    recorded = Recorded("depth_first", **{**PLAIN, "particles": 4}, threshold=threshold)
    with pytest.raises(SearchError, match="no candidate can win"):
        search(recorded.algorithm, Counting(flow, steps=10), Budget(nfe=90), verifier)
    assert not any(isinstance(r, Renoise) for r in recorded.requests)
    assert sum(len(r.rows) for r in recorded.requests if isinstance(r, Finish)) == 9


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_schedules_of_a_few_steps_work(steps: int) -> None:
    for nfe in (2 * steps, 6 * steps, 20 * steps):
        report = search("depth_first", Counting(steps=steps), Budget(nfe=nfe), first())
        assert report.nfe <= nfe and len(report.finished) >= 2 and report.evaluations[0].seed == 7


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"threshold": "median"}, "threshold='median'; expected one of quantile, absolute"),
        ({"quantile": 1.5}, "quantile=1.5; expected 0 to 1"),
        ({"quantile": NAN}, "quantile=nan"),
        ({"start": 0.9, "end": 0.2}, "start <= end"),
        ({"back": -0.1}, "back=-0.1"),
        ({"particles": 0}, "particles=0; expected 1 or more"),
        ({"backtracks": -1}, "backtracks=-1; expected 0 or more"),
        ({"lowest": NAN}, "lowest=nan"),
    ],
)
def test_settings_that_make_no_sense_are_refused_before_any_forward(settings: dict[str, object], said: str) -> None:
    sampler = Counting()
    with pytest.raises(SearchError, match=said):
        search(algorithm("depth_first", **settings), sampler, Budget(nfe=100))
    assert sampler.rows == 0


def test_it_gains_over_best_of_n_where_early_looks_tell_something() -> None:
    gains = []
    for seed in range(24):
        found = []
        for name in ("depth_first", "random"):
            sampler = Counting(steps=20, means=torch.zeros(1, 12), spread=1.0)
            report = search(name, sampler, Budget(nfe=320), first_seed=seed, seed=seed)
            assert report.best is not None
            found.append(report.best.evaluation.score)
        gains.append(found[0] - found[1])
    assert sum(gains) / len(gains) > 0.05  # in standard deviations of the data
