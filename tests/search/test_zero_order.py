"""Zero-order search: the walk of the paper, and that it pays on a smooth landscape."""

import pytest
import torch

from pack.search import Budget, Evaluation, Recipe, SearchReport, algorithm
from pack.search.recipe import gaussian
from pack.tests.search.worlds import Counting, RankMean, Scorer, first, search, second

LIKE = torch.empty(1, 12)
ONE_PEAK = torch.zeros(1, 12)


def noise(evaluation: Evaluation) -> torch.Tensor:
    return Recipe(evaluation.recipe).noise(lambda seed: gaussian(LIKE, seed)).double().flatten()


def rounds(report: SearchReport) -> list[list[Evaluation]]:
    """Runs of evaluations with the same parent; a pivot from fresh noise is a run of its own."""
    out: list[list[Evaluation]] = []
    for e in report.evaluations:
        if not out or e.parent is None or out[-1][0].parent != e.parent:
            out.append([])
        out[-1].append(e)
    return out


def bumpy() -> Scorer:
    """Rises and falls quickly enough that a round without improvement comes soon."""
    return Scorer("bumpy", lambda clean: torch.sin(9 * clean).mean(1))


@pytest.mark.parametrize("neighbours, cosine", [(1, 0.99), (4, 0.95), (7, 0.5)])
def test_every_ring_lies_at_the_cosine_and_keeps_norm_and_step_noise(neighbours: int, cosine: float) -> None:
    zero = algorithm("zero_order", neighbours=neighbours, cosine=cosine)
    report = search(zero, Counting(steps=3), Budget(candidates=80), bumpy())
    ring = [e for e in report.evaluations if e.parent is not None]
    assert len(ring) > 30
    for e in ring:
        assert e.parent is not None
        pivot, own = noise(report.evaluations[e.parent]), noise(e)
        assert abs(float(own @ pivot / (own.norm() * pivot.norm())) - cosine) < 1e-6
        assert abs(float(own.norm() / pivot.norm()) - 1) < 1e-5
        before = Recipe(report.evaluations[e.parent].recipe)
        assert Recipe(e.recipe).step_seed == before.step_seed == e.recipe[0]["seed"]


@pytest.mark.parametrize("neighbours", [2, 4])
def test_the_best_neighbour_becomes_the_pivot_and_a_round_without_improvement_restarts(neighbours: int) -> None:
    zero = algorithm("zero_order", neighbours=neighbours)
    report = search(zero, Counting(steps=3), Budget(candidates=120), bumpy())
    pivot, restarts, moves = report.evaluations[0], 0, 0
    walk = rounds(report)
    for before, ring in zip(walk, walk[1:-1], strict=False):
        if ring[0].parent is None:  # a fresh pivot: the ring before brought nothing
            assert len(ring) == 1 and max(e.score for e in before) <= pivot.score
            pivot, restarts = ring[0], restarts + 1
            continue
        assert len(ring) == neighbours
        best = max(before, key=lambda e: e.score)
        if before[0].parent is not None:
            assert best.score > pivot.score
            pivot, moves = best, moves + 1
        assert {e.parent for e in ring} == {pivot.id}
    assert restarts >= 2 and moves >= 2


def test_no_noise_is_ever_rendered_twice() -> None:
    sampler = Counting(steps=3)
    report = search("zero_order", sampler, Budget(candidates=200), bumpy())
    texts = [Recipe(e.recipe).to_json() for e in report.evaluations]
    assert len(set(texts)) == len(texts) == 200
    assert sampler.rows == 200 * 3


def test_it_beats_random_search_at_equal_nfe_on_a_smooth_landscape() -> None:
    target = torch.linspace(-2, 2, 12, dtype=torch.float64)
    near = Scorer("near", lambda clean: -((clean - target) ** 2).sum(1))
    wins, gain = 0, 0.0
    for seed in range(6):
        pair = []
        for name in ("zero_order", "random"):
            sampler = Counting(steps=3, means=ONE_PEAK, spread=1.0)
            report = search(name, sampler, Budget(nfe=360), near, first_seed=seed, seed=seed)
            assert report.best is not None and report.nfe == 360
            pair.append(report.best.evaluation.score)
        wins += pair[0] > pair[1]
        gain += (pair[0] - pair[1]) / 6
    assert wins >= 5 and gain > 1.0


def test_a_pivot_that_could_not_be_judged_gives_way_to_any_neighbour_that_could() -> None:
    calls = iter([float("nan")] + [float(-i) for i in range(100)])
    shy = Scorer("shy", lambda clean: torch.tensor([next(calls) for _ in clean]))
    report = search("zero_order", Counting(), Budget(candidates=9), shy, batch=1)
    assert report.evaluations[0].verdict == "not judged"
    assert [e.parent for e in report.evaluations] == [None, 0, 0, 0, 0, 1, 1, 1, 1]


def test_a_round_in_which_nothing_can_be_judged_restarts() -> None:
    def score(clean: torch.Tensor) -> torch.Tensor:
        nonlocal seen
        seen += len(clean)
        return torch.full((len(clean),), float("nan") if seen > 1 else 1.0)

    seen = 0
    report = search("zero_order", Counting(), Budget(candidates=11), Scorer("once", score), batch=1)
    assert [e.parent for e in report.evaluations] == [None, 0, 0, 0, 0, None, 5, 5, 5, 5, None]
    assert report.best is not None and report.best.evaluation.id == 0


def test_equal_scores_are_no_improvement() -> None:
    flat = Scorer("flat", lambda clean: torch.zeros(len(clean)))
    report = search("zero_order", Counting(), Budget(candidates=11), flat)
    assert [e.parent for e in report.evaluations] == [None, 0, 0, 0, 0, None, 5, 5, 5, 5, None]
    assert report.best is not None and report.best.evaluation.id == 0


def test_under_a_pooled_ensemble_the_walk_compares_scores_of_one_pool() -> None:
    # alone in the pool the pivot is at the top of the ranks: its score must be taken again among its neighbours
    sampler = Counting(steps=3, means=ONE_PEAK, spread=1.0)
    report = search("zero_order", sampler, Budget(candidates=100), RankMean(first()), batch=4)
    alone = search("zero_order", sampler, Budget(candidates=100), first(), batch=4)
    assert [e.parent for e in report.evaluations] == [e.parent for e in alone.evaluations]
    assert max(len(e.recipe) for e in report.evaluations) > 4
    both = search("zero_order", sampler, Budget(candidates=100), RankMean(first(), second()), batch=4)
    assert max(len(e.recipe) for e in both.evaluations) > 4
