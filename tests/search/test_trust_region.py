"""Trust region: the angle of the steps grows on success, shrinks on failure, and a collapsed region is left."""

import math

import pytest
import torch

from pack.search import Budget, Evaluation, SearchError, SearchReport, algorithm
from pack.tests.search.test_zero_order import ONE_PEAK, bumpy, noise
from pack.tests.search.worlds import Counting, RankMean, Scorer, first, search, second

SETTINGS = {"starts": 3, "neighbours": 4, "cosine": 0.8, "grow": 1.5, "shrink": 0.5, "smallest": 0.99}


def batches(report: SearchReport) -> list[list[Evaluation]]:
    """The requests of a search with SETTINGS: three fresh noises, or a ring of four."""
    out: list[list[Evaluation]] = []
    for e in report.evaluations:
        size = 3 if e.parent is None else 4
        if not out or (out[-1][0].parent is None) != (e.parent is None) or len(out[-1]) == size:
            out.append([])
        out[-1].append(e)
    return [batch for batch in out if len(batch) == (3 if batch[0].parent is None else 4)]


def angle(e: Evaluation) -> float:
    return math.acos(e.recipe[-1]["cosine"])


@pytest.mark.parametrize("grow, shrink, cosine", [(1.5, 0.5, 0.8), (1.2, 0.9, 0.5), (4.0, 0.3, 0.2)])
def test_the_angle_follows_success_and_failure_and_a_collapse_begins_anew(
    grow: float, shrink: float, cosine: float
) -> None:
    settings = {**SETTINGS, "grow": grow, "shrink": shrink, "cosine": cosine}
    report = search(algorithm("trust_region", **settings), Counting(steps=3), Budget(candidates=160), bumpy())
    expected, centre = 0.0, report.evaluations[0]
    seen = {"grown": 0, "shrunk": 0, "restarts": -1}
    for batch in batches(report):
        best = max(batch, key=lambda e: e.score)
        if batch[0].parent is None:
            assert expected < math.acos(0.99)  # the region before has collapsed
            expected, centre = math.acos(cosine), best
            seen["restarts"] += 1
            continue
        assert {e.parent for e in batch} == {centre.id} and expected >= math.acos(0.99)
        assert all(abs(angle(e) - expected) < 1e-9 for e in batch)
        grown = best.score > centre.score
        expected = min(expected * grow, math.pi / 2) if grown else expected * shrink
        centre = best if grown else centre
        seen["grown" if grown else "shrunk"] += 1
    assert seen["grown"] >= 3 and seen["shrunk"] >= 3 and seen["restarts"] >= 1


def test_neighbours_lie_at_the_angle_on_the_sphere_of_their_centre() -> None:
    report = search(algorithm("trust_region", **SETTINGS), Counting(steps=3), Budget(candidates=60), bumpy())
    ring = [e for e in report.evaluations if e.parent is not None]
    assert len(ring) > 30
    for e in ring:
        assert e.parent is not None
        centre, own = noise(report.evaluations[e.parent]), noise(e)
        assert abs(float(own @ centre / (own.norm() * centre.norm())) - math.cos(angle(e))) < 1e-6
        assert abs(float(own.norm() / centre.norm()) - 1) < 1e-5


def test_the_angle_never_exceeds_a_right_one() -> None:
    rising = iter(range(10_000))
    better = Scorer("better", lambda clean: torch.tensor([float(next(rising)) for _ in clean]))
    report = search(algorithm("trust_region"), Counting(steps=3), Budget(candidates=100), better, batch=1)
    cosines = [e.recipe[-1]["cosine"] for e in report.evaluations if e.parent is not None]
    assert min(cosines) >= 0 and abs(cosines[-1]) < 1e-12
    assert cosines == sorted(cosines, reverse=True)


def test_a_first_step_below_the_smallest_is_refused() -> None:
    with pytest.raises(SearchError, match="expected cosine below smallest"):
        search(algorithm("trust_region", cosine=0.995), Counting(), Budget(candidates=9))


def test_it_beats_random_search_at_equal_nfe_on_a_smooth_landscape() -> None:
    target = torch.linspace(-2, 2, 12, dtype=torch.float64)
    near = Scorer("near", lambda clean: -((clean - target) ** 2).sum(1))
    gains = []
    for seed in range(6):
        pair = []
        for name in ("trust_region", "random"):
            sampler = Counting(steps=3, means=ONE_PEAK, spread=1.0)
            report = search(name, sampler, Budget(nfe=360), near, first_seed=seed, seed=seed)
            assert report.best is not None and report.nfe == 360
            pair.append(report.best.evaluation.score)
        gains.append(pair[0] - pair[1])
    assert sum(gain > 0 for gain in gains) >= 5 and sum(gains) / 6 > 1.0


def test_a_centre_that_could_not_be_judged_gives_way_and_a_region_without_scores_collapses() -> None:
    nan = float("nan")
    scores = iter([nan, nan, nan] + [-5.0, nan, -7.0, nan] + [nan] * 100)
    shy = Scorer("shy", lambda clean: torch.tensor([next(scores) for _ in clean]))
    report = search(algorithm("trust_region", **SETTINGS), Counting(steps=3), Budget(candidates=40), shy, batch=1)
    assert [e.parent for e in report.evaluations[3:11]] == [0, 0, 0, 0, 3, 3, 3, 3]
    assert report.best is not None and report.best.evaluation.id == 3
    assert sum(e.parent is None for e in report.evaluations) >= 6


def test_under_a_pooled_ensemble_it_compares_scores_of_one_pool() -> None:
    # ranks of one verifier order as its scores do, so the search must be the same
    sampler = Counting(steps=3, means=ONE_PEAK, spread=1.0)
    pooled = search("trust_region", sampler, Budget(candidates=100), RankMean(first()), batch=4)
    alone = search("trust_region", sampler, Budget(candidates=100), first(), batch=4)
    assert [e.recipe for e in pooled.evaluations] == [e.recipe for e in alone.evaluations]
    both = search("trust_region", sampler, Budget(candidates=100), RankMean(first(), second()), batch=4)
    assert max(len(e.recipe) for e in both.evaluations) > 3
