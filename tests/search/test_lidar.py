"""LiDAR: lookaheads that never win, candidates that they guide, and where it leads."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from pack.search import Budget, Recipe, SearchError, SearchReport, algorithm
from pack.search.lidar import MOST, rounds
from pack.search.recipe import describe
from pack.search.types import Finish, Judge, Plan
from pack.tests.search.worlds import Counting, Pairs, Recorded, Scorer, search

EXACT = {"steps": 40, "share": 0.8, "scale": 1.0, "strength": 1 / 3, "until": 0.0}  # 3 numbers: strength 1 in all


def lidar(sampler: Counting, budget: Budget, verifier: Any = None, **settings: Any) -> SearchReport:
    return search(algorithm("lidar", **settings), sampler, budget, verifier, batch=8)


def plan(nfe: int = 0) -> Plan:
    sampler = Counting(steps=20)
    return Plan(sampler.sigmas, sampler.time, sampler.sigma, sampler.coefficients, 20, nfe)


@pytest.mark.parametrize("flow", [True, False])
@pytest.mark.parametrize("order", [1, 2])
def test_a_guide_of_scale_0_changes_no_bit_of_any_candidate(flow: bool, order: int) -> None:
    report = lidar(Counting(flow, order, steps=10), Budget(nfe=400), scale=0.0)
    guided = [e for e in report.finished if e.recipe[-1]["op"] == "guide"]
    assert len(guided) >= 5
    for e in guided:
        alone = search("random", Counting(flow, order, steps=10), Budget(candidates=1), first_seed=e.recipe[0]["seed"])
        assert alone.best is not None and alone.best.evaluation.score == e.score


@pytest.mark.parametrize("flow", [True, False])
def test_exact_lookaheads_of_a_gaussian_move_the_candidates_by_the_tilt(flow: bool) -> None:
    """Reward x0[0] at strength 1 moves the mean of that number by one standard deviation, and no other number."""
    sampler = Counting(flow, steps=40, means=torch.zeros(1, 3), spread=1.0)
    report = lidar(sampler, Budget(nfe=40 * 421), **EXACT)
    guided = [e for e in report.finished if e.recipe[-1]["op"] == "guide"]
    assert len(guided) >= 100
    shift = sum(e.score for e in guided) / len(guided)
    plain = sum(e.score for e in report.evaluations if e.scout) / sum(e.scout for e in report.evaluations)
    assert shift - plain == pytest.approx(1.0, abs=0.35)  # 256 lookaheads, and steps that end below their spread


@pytest.mark.parametrize("flow", [True, False])
def test_on_a_mixture_the_guided_mean_moves_towards_the_reward(flow: bool) -> None:
    gains = []
    for seed in range(6):
        sampler = Counting(flow, steps=20)
        report = search(
            algorithm("lidar", steps=20, scale=1.0, strength=1 / 12, until=0.1),
            sampler,
            Budget(nfe=2000),
            first_seed=seed,
        )
        guided = [e for e in report.finished if e.recipe[-1]["op"] == "guide"]
        for e in guided:
            alone = search("random", Counting(flow, steps=20), Budget(candidates=1), first_seed=e.recipe[0]["seed"])
            assert alone.best is not None
            gains.append(e.score - alone.best.evaluation.score)
    mean = sum(gains) / len(gains)
    error = math.sqrt(sum((g - mean) ** 2 for g in gains) / len(gains) / (len(gains) - 1))
    assert mean > 4 * error > 0


def test_the_users_own_is_first_and_untouched_and_lookaheads_never_win() -> None:
    report = lidar(Counting(steps=10), Budget(nfe=300))
    first = report.evaluations[0]
    assert first.seed == 7 and first.candidate == 0
    assert all(e.candidate is None for e in report.evaluations if e.scout) and any(e.scout for e in report.evaluations)
    assert all(not kept.evaluation.scout for kept in report.top)


def test_a_guided_candidate_names_its_lookaheads_and_claims_no_seed() -> None:
    report = lidar(Counting(steps=10), Budget(nfe=300), scale=2.0, steps=3)
    scouts = [e.seed for e in report.evaluations if e.scout]
    guided = [e for e in report.finished if e.candidate]
    for e in guided:
        assert [o["op"] for o in e.recipe] == ["seed", "guide"]
        assert e.recipe[1] == {
            "op": "guide", "seeds": scouts, "steps": 3, "scale": 2.0, "strength": 0.3, "until": 0.3,
        }  # fmt: skip
        recipe = Recipe(e.recipe)
        assert recipe.seed is None and not recipe.replayable and recipe.step_seed == e.recipe[0]["seed"]
        assert Recipe.from_json(recipe.to_json()) == recipe
        assert describe(e.recipe) == f"seed {e.recipe[0]['seed']}, guided by {len(scouts)} lookaheads"
    assert not {e.recipe[0]["seed"] for e in guided} & {*scouts}


@pytest.mark.parametrize("bad", ['"x"', "[-1]", "[1.5]", "[true]"])
def test_a_recipe_with_other_lookaheads_than_seeds_is_refused(bad: str) -> None:
    text = f'[{{"op":"seed","seed":1}},{{"op":"guide","seeds":{bad},"steps":5,"scale":1.0,"strength":1.0,"until":0.3}}]'
    with pytest.raises(SearchError, match="guide"):
        Recipe.from_json(text)


def test_lookaheads_take_their_share_of_the_budget() -> None:
    for share in (0.2, 0.5):
        sampler = Counting(steps=20)
        report = lidar(sampler, Budget(nfe=20 * 41), share=share)
        spent = 5 * sum(e.scout for e in report.evaluations)
        assert abs(spent - share * 800) <= 5 and report.nfe == sampler.rows == 20 * 41


def test_rounds_by_hand() -> None:
    planned = rounds(plan(nfe=20 * 21), 0.25, 0.4)
    assert [next(planned) for _ in range(3)] == [(32, 0), (0, 64), (0, 64)]
    assert next(rounds(plan(nfe=20 * 10000), 0.25, 0.4)) == (MOST, 0)
    assert next(rounds(plan(nfe=30), 0.25, 0.4)) == (0, 64)  # nothing would be left to guide
    assert next(rounds(plan(nfe=49), 0.25, 0.4)) == (0, 64)  # nor here beside the two that can be told apart
    assert [next(rounds(plan(nfe=50), 0.25, share)) for share in (0.05, 0.4, 0.95)] == [(2, 0)] * 3
    unknown = rounds(plan(), 0.25, 0.4)
    assert [next(unknown) for _ in range(MOST // 16 + 2)] == [*[(16, 6)] * (MOST // 16), (0, 6), (0, 6)]


@pytest.mark.parametrize("share", [0.05, 0.4, 0.6, 0.8, 0.95])
@pytest.mark.parametrize("nfe", [60, 100, 160, 320])
def test_a_large_share_makes_as_many_lookaheads_as_leave_one_candidate(share: float, nfe: int) -> None:
    report = lidar(Counting(steps=20), Budget(nfe=nfe), share=share)
    lookaheads = sum(e.scout for e in report.evaluations)
    room = (nfe - 40) // 5  # beside the user's own and one that is guided, at 5 of 20 steps
    assert lookaheads == min(max(2, round(share * (nfe - 20) / 5)), room)
    assert sum(e.recipe[-1]["op"] == "guide" for e in report.finished) == (nfe - 20 - 5 * lookaheads) // 20 >= 1


def test_later_rounds_are_guided_by_all_lookaheads_so_far() -> None:
    recorded = Recorded("lidar")
    report = search(recorded.algorithm, Counting(steps=10), Budget(candidates=30))
    counts = [len(e.recipe[1]["seeds"]) for e in report.finished if e.candidate]
    assert sorted(counts) == counts and {*counts} >= {16, 32} and all(count % 16 == 0 for count in counts)
    guides = [q.rows[0].guide for q in recorded.requests if isinstance(q, Finish)][1:]
    assert all(guide is not None and len(guide.latents) == len(guide.rewards) for guide in guides)


def test_lookaheads_that_could_not_be_judged_are_left_out() -> None:
    half_blind = Scorer("half blind", lambda clean: torch.where(clean[:, 1] > 0, clean[:, 0], float("nan")))
    report = lidar(Counting(steps=10), Budget(nfe=500), half_blind)
    known = [e.seed for e in report.evaluations if e.scout and e.verdict == "judged"]
    assert 0 < len(known) < sum(e.scout for e in report.evaluations)
    assert all(e.recipe[1]["seeds"] == known for e in report.finished if e.candidate)


def test_where_all_lookaheads_score_alike_it_is_best_of_n() -> None:
    flat = Scorer("flat", lambda clean: torch.zeros(len(clean)))
    report = lidar(Counting(steps=10), Budget(nfe=300), flat)
    assert all(e.seed is not None for e in report.finished) and len(report.finished) > 5


def test_a_batch_of_latents_is_guided_as_one() -> None:
    recorded = Recorded("lidar", scale=2.0)
    report = search(recorded.algorithm, Pairs(steps=10), Budget(nfe=400), batch=3)
    guides = {id(row.guide): row.guide for q in recorded.requests if isinstance(q, Finish) for row in q.rows}
    [guide] = [guide for guide in guides.values() if guide is not None]
    assert guide.latents.shape[1:] == (2, 12) and guide.strength == pytest.approx(0.3 * 24)
    assert any(e.recipe[-1]["op"] == "guide" for e in report.finished)


@pytest.mark.parametrize("order", [1, 2])
def test_guided_rows_are_the_same_in_any_micro_batch(order: int) -> None:
    found = []
    for batch in (1, 3, 8):
        report = search(
            algorithm("lidar", scale=4.0), Counting(order=order, steps=10), Budget(nfe=400), batch=batch, top_k=4
        )
        found.append([(kept.evaluation.recipe, kept.row.x) for kept in report.top])
    for other in found[1:]:
        for (recipe, x), (same, y) in zip(found[0], other, strict=True):
            assert recipe == same and x is not None and y is not None and torch.equal(x, y)


def test_a_prediction_of_a_guided_row_is_guided_too() -> None:
    recorded = Recorded("lidar", scale=2.0, until=0.0)
    search(recorded.algorithm, Counting(steps=10), Budget(nfe=300))
    row = next(q.rows[0] for q in recorded.requests if isinstance(q, Finish) and q.rows[0].guide)

    class Free:
        def forward(self, rows: int) -> None: ...
        def model_rows(self, rows: int) -> None: ...

    sampler = Counting(steps=10)
    [predicted] = sampler.predict([row], Free())
    [stepped] = sampler.advance([row], sampler.sigmas[:2], Free())
    assert predicted.x0 is not None and stepped.x0 is not None and torch.equal(predicted.x0, stepped.x0)
    assert predicted.x is not None and row.guide is not None
    clean = sampler.denoise(predicted.x, 1.0)
    assert torch.equal(predicted.x0, row.guide.correct(predicted.x, clean, 1.0, (0.0, 1.0)))
    assert not torch.equal(predicted.x0, clean)


@pytest.mark.parametrize("settings", [{"steps": 0}, {"share": 0.0}, {"share": 1.0}, {"until": 1.0}, {"scale": -1.0}])
def test_settings_out_of_range_are_refused_before_anything_is_spent(settings: dict[str, float]) -> None:
    sampler = Counting()
    with pytest.raises(SearchError, match="lidar: got"):
        lidar(sampler, Budget(nfe=100), **settings)
    assert sampler.rows == 0


def test_a_schedule_that_ends_in_noise_is_refused() -> None:
    sampler = Counting()
    sampler.sigmas = sampler.sigmas[:-1]
    with pytest.raises(SearchError, match="SIGMAS that end at"):
        lidar(sampler, Budget(nfe=100))


def test_looks_cost_no_forward_of_their_own() -> None:
    recorded = Recorded("lidar")
    search(recorded.algorithm, Counting(steps=10), Budget(nfe=300))
    assert all(not request.fresh for request in recorded.requests if isinstance(request, Judge))


@pytest.mark.parametrize("flow", [True, False])
def test_a_schedule_that_starts_where_nothing_is_guided_any_more_is_refused(flow: bool) -> None:
    for highest, refused in ((0.25, True), (0.3, True), (0.35, False)):
        sampler = Counting(flow)
        sampler.sigmas = tuple(sampler.sigma(highest) * (1 - i / 6) for i in range(7))
        if refused:
            with pytest.raises(SearchError, match="until=0.3.*nothing would be guided.*raise denoise"):
                search("lidar", sampler, Budget(nfe=200))
            assert sampler.rows == 0
        else:
            assert search("lidar", sampler, Budget(nfe=200)).best
