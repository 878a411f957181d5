"""Two-fidelity search: cheap scouts, the best of them in full, and how many of each."""

from __future__ import annotations

import math

import pytest
import torch

from pack.search import Budget, Recipe, SearchError, algorithm
from pack.search.two_fidelity import LARGEST_ROUND, split
from pack.search.types import Finish, Judge, Plan
from pack.tests.search.worlds import Clock, Counting, Recorded, Scorer, Timed, first, search


def plan(steps: int) -> Plan:
    sampler = Counting(steps=steps)
    return Plan(sampler.sigmas, sampler.time, sampler.sigma, sampler.coefficients, steps)


@pytest.mark.parametrize("steps", [1, 2, 7, 20, 30])
def test_a_coarse_schedule_keeps_both_ends_and_only_known_sigmas(steps: int) -> None:
    whole = plan(steps)
    for wanted in range(1, steps + 3):
        coarse = whole.coarse(wanted)
        assert len(coarse) == min(wanted, steps) + 1 and set(coarse) <= set(whole.sigmas)
        assert coarse[0] == whole.sigmas[0] and coarse[-1] == 0 and sorted(set(coarse), reverse=True) == [*coarse]
        gaps = [whole.sigmas.index(b) - whole.sigmas.index(a) for a, b in zip(coarse, coarse[1:], strict=False)]
        assert max(gaps) - min(gaps) <= 1
    assert whole.coarse(steps) == whole.sigmas


@pytest.mark.parametrize("budget", [1, 1.5, 2, 3, 7, 15, 63])
@pytest.mark.parametrize("cost", [0.1, 0.3, 0.5])
@pytest.mark.parametrize("agreement", [0.0, 0.5, 0.9, 1.0])
def test_a_split_costs_no_more_than_the_budget(budget: float, cost: float, agreement: float) -> None:
    scouts, renders = split(budget, cost, agreement)
    assert renders >= 1 and scouts * cost + renders <= budget + 1e-6
    assert scouts == 0 or scouts > renders


def test_what_scouts_know_decides_how_many_are_rendered() -> None:
    assert split(16, 0.3, 0.0) == (0, 16)  # nothing: best of N
    renders = [split(16, 0.3, agreement)[1] for agreement in (0.5, 0.7, 0.9, 1.0)]
    assert renders == sorted(renders, reverse=True) and renders[-1] == 1 < renders[0]


def test_a_split_is_the_best_there_is_by_an_independent_count() -> None:
    budget, cost, agreement = 12.0, 0.25, 0.8
    generator = torch.Generator().manual_seed(77)

    def mean_best(scouts: int, renders: int) -> float:
        z = torch.randn(20000, max(scouts, renders), generator=generator)
        if not scouts:
            return float(z.amax(1).mean())
        seen = agreement * z + math.sqrt(1 - agreement**2) * torch.randn(z.shape, generator=generator)
        order = seen.argsort(dim=1, descending=True)[:, :renders]
        return float(z.gather(1, order).amax(1).mean())

    every = {(int((budget - k) / cost), k): mean_best(int((budget - k) / cost), k) for k in range(1, 10)}
    every[0, 12] = mean_best(0, 12)
    assert mean_best(*split(budget, cost, agreement)) > max(every.values()) - 0.03


def test_a_split_asks_no_random_generator_of_the_user() -> None:
    before = torch.get_rng_state()
    split.cache_clear()
    one = split(10, 0.3, 0.7)
    split.cache_clear()
    assert split(10, 0.3, 0.7) == one and torch.equal(torch.get_rng_state(), before)


def test_the_best_scouts_are_rendered_whole_and_the_budget_is_spent() -> None:
    recorded = Recorded("two_fidelity", effort=0.3, agreement=0.8)
    sampler = Counting(steps=10)
    report = search(recorded.algorithm, sampler, Budget(nfe=200), batch=4)
    scouts, renders = split(19, 0.3, 0.8)
    assert scouts > renders > 0
    [judged] = [reply for q, reply in zip(recorded.requests, recorded.replies, strict=False) if isinstance(q, Judge)]
    assert len(judged) == scouts
    own, chosen = (q for q in recorded.requests[:4] if isinstance(q, Finish))
    assert len(own.rows) == 1 and [row.parent for row in chosen.rows] == [
        row.id for row in sorted(judged, key=lambda row: -row.score)[:renders]
    ]
    assert all(row.x is None and not row.scout and row.sigma == 1.0 for row in chosen.rows)
    assert report.nfe == sampler.rows > 200 - 10


@pytest.mark.parametrize("order", [1, 2])
def test_a_winner_has_the_plain_seed_that_a_sampler_alone_makes_it_from(order: int) -> None:
    report = search("two_fidelity", Counting(order=order, steps=10), Budget(nfe=300))
    assert report.best is not None and report.scouting is not None
    for kept in [report.best]:
        assert kept.evaluation.seed is not None and Recipe(kept.evaluation.recipe).replayable
        alone = search("random", Counting(order=order, steps=10), Budget(candidates=1), first_seed=kept.evaluation.seed)
        assert alone.best is not None and torch.equal(alone.best.images, kept.images)


def test_a_large_budget_is_spent_in_rounds_and_the_rest_on_whole_candidates() -> None:
    recorded = Recorded("two_fidelity")
    report = search(recorded.algorithm, Counting(steps=10), Budget(nfe=10 * (2 * LARGEST_ROUND + 20)))
    looks = [request for request in recorded.requests if isinstance(request, Judge)]
    assert len(looks) >= 3 and report.nfe > 10 * (2 * LARGEST_ROUND + 19)


def test_too_little_for_scouts_is_best_of_n() -> None:
    report = search("two_fidelity", Counting(steps=10), Budget(nfe=22))
    assert [e.candidate for e in report.evaluations] == [0, 1] and report.nfe == 20


@pytest.mark.parametrize("limits", [{"seconds": 60.0, "candidates": 30}, {"candidates": 30}])
def test_without_a_limit_on_nfe_rounds_follow_each_other(limits: dict[str, float]) -> None:
    recorded = Recorded("two_fidelity")
    clock = Clock()
    sampler = Timed(clock, 0.0, 0.05, 0.01, steps=10)
    report = search(recorded.algorithm, sampler, Budget(**limits), clock=clock.monotonic)  # type: ignore[arg-type]
    assert len(report.finished) == 30 and report.stopped == {"candidates": 30}
    assert sum(isinstance(request, Judge) for request in recorded.requests) >= 2


def test_scouts_that_cannot_be_judged_are_rendered_last() -> None:
    half_blind = Scorer("half blind", lambda clean: torch.where(clean[:, 1] > 0, clean[:, 0], float("nan")))
    report = search("two_fidelity", Counting(steps=10), Budget(nfe=300), half_blind)
    rendered = [report.evaluations[e.parent] for e in report.finished if e.parent is not None]
    assert rendered and all(scout.verdict == "judged" for scout in rendered)
    blind = Scorer("blind", lambda clean: torch.where(clean[:, 0] == 9e9, 0.0, float("nan")))
    with pytest.raises(SearchError, match="no candidate can win"):
        search("two_fidelity", Counting(steps=10), Budget(nfe=300), blind)


def test_it_beats_best_of_n_where_scouts_tell_the_truth() -> None:
    gains = []
    for seed in range(30):
        means = torch.zeros(1, 12)
        found = [
            search(name, Counting(steps=20, means=means, spread=1.0), Budget(nfe=240), first(), first_seed=seed)
            for name in (algorithm("two_fidelity", effort=0.2, agreement=0.95), "random")
        ]
        ours, random = (report.best.evaluation.score for report in found if report.best)
        gains.append(ours - random)
    mean = sum(gains) / len(gains)
    error = math.sqrt(sum((g - mean) ** 2 for g in gains) / len(gains) / (len(gains) - 1))
    assert mean > 2 * error > 0


@pytest.mark.parametrize(
    "settings", [{"effort": 0.0}, {"effort": 1.0}, {"effort": 1.2}, {"shrink": 0}, {"agreement": 1.1}]
)
def test_settings_out_of_range_are_refused_before_anything_is_spent(settings: dict[str, float]) -> None:
    sampler = Counting()
    with pytest.raises(SearchError, match="two-fidelity: got"):
        search(algorithm("two_fidelity", **settings), sampler, Budget(nfe=100))
    assert sampler.rows == 0


def test_where_nothing_has_pixels_smaller_scouts_are_refused_before_anything_is_spent() -> None:
    sampler = Counting()
    with pytest.raises(SearchError, match="got shrink=2, but a Gaussian mixture has no pixels; set shrink to 1"):
        search(algorithm("two_fidelity", shrink=2, effort=1.0), sampler, Budget(nfe=100))
    assert sampler.rows == 0
