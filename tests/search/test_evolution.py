"""Evolution: what is mutated and where, that re-noised children keep the model's law, that a round fits a budget."""

import math

import pytest
import torch

from pack.search import Budget, Evaluation, Recipe, Row, SearchReport, algorithm
from pack.search.evolution import able, scheduled
from pack.search.types import Advance, Finish, Plan, Renoise
from pack.tests.search.test_zero_order import ONE_PEAK, noise
from pack.tests.search.worlds import Counting, RankMean, Recorded, Scorer, columns, first, search, second


def plan_of(sampler: Counting, nfe: int = 0, candidates: int = 0) -> Plan:
    cost = sampler.cost(sampler.sigmas)
    return Plan(sampler.sigmas, sampler.time, sampler.sigma, sampler.coefficients, cost, nfe, candidates)


def kinds(report: SearchReport) -> list[str]:
    """What made each candidate: fresh, near, or the noise share that it was re-noised to."""
    return [e.recipe[-1]["op"] if e.parent is not None else "fresh" for e in report.evaluations]


def flat(clean: torch.Tensor) -> torch.Tensor:
    return torch.zeros(len(clean))


@pytest.mark.parametrize("flow", [True, False])
def test_the_levels_are_sigmas_of_the_schedule_and_the_states_lie_below_them(flow: bool) -> None:
    plan = plan_of(Counting(flow, steps=20 if flow else 200))
    pairs = scheduled(plan, 3, 0.5, 0.2)
    assert len(pairs) == 3
    highest = plan.time(plan.sigmas[0])
    for i, (level, below) in enumerate(pairs):
        assert level in plan.sigmas and below in plan.sigmas and level > below > 0
        wanted = highest + (0.5 - highest) * (i + 1) / 3
        near = min(plan.sigmas[1:-1], key=lambda sigma: abs(plan.time(sigma) - wanted))
        assert level == near
        lower = [s for s in plan.sigmas[1:-1] if s < level]
        assert below == min(lower, key=lambda s: abs(plan.time(level) - 0.2 - plan.time(s)))


def test_a_schedule_too_short_for_states_leaves_the_start_noise_to_mutate() -> None:
    for steps in (1, 2):
        assert scheduled(plan_of(Counting(steps=steps)), 3, 0.5, 0.2) == []
        report = search("evolution", Counting(steps=steps), Budget(candidates=40))
        assert set(kinds(report)) == {"fresh", "near"} and len(report.finished) == 40


def test_generations_come_in_order_and_their_parents_are_the_best_that_passed_there() -> None:
    recorded = Recorded("evolution", fresh=0.5, elites=3, levels=2, lowest=0.5, strength=0.2)
    sampler = Counting(steps=10, means=ONE_PEAK, spread=1.0)
    report = search(recorded.algorithm, sampler, Budget(nfe=400))
    made = kinds(report)
    assert made[:20] == ["fresh"] * 20
    changes = [a for a, b in zip(made, [*made[1:], ""], strict=True) if a != b]
    assert changes[:3] == ["fresh", "near", "renoise"]
    starts = sorted(report.evaluations[:20], key=lambda e: -e.score)[:3]
    near = [e for e in report.evaluations if e.recipe[-1]["op"] == "near"]
    assert [e.parent for e in near] == [starts[i % 3].id for i in range(len(near))]
    levels = [request.sigma for request in recorded.requests if isinstance(request, Renoise)]
    assert levels[:2] == pytest.approx([0.8, 0.5])  # of 1.0, 0.9, ... the nearest to 0.75 and 0.5, the first of equals
    for level in levels[:2]:
        children = [e for e in report.evaluations if e.recipe[-1]["op"] == "renoise" and e.recipe[-1]["to"] == level]
        older = [e for e in report.evaluations if e.id < children[0].id]
        able = sorted((e for e in older if e.recipe[-1].get("to", 1.0) >= level), key=lambda e: -e.score)[:3]
        assert [e.parent for e in children] == [able[i % 3].id for i in range(len(children))]
        assert all(abs(e.recipe[-1]["from"] - (level - 0.2)) < 1e-6 for e in children)


def test_a_mutated_start_noise_keeps_its_norm_at_the_cosine_of_the_mutation() -> None:
    report = search(algorithm("evolution", mutation=0.6), Counting(steps=3), Budget(candidates=60))
    near = [e for e in report.evaluations if e.recipe[-1]["op"] == "near"]
    assert len(near) >= 7
    for e in near:
        assert e.parent is not None
        pivot, own = noise(report.evaluations[e.parent]), noise(e)
        assert abs(float(own @ pivot / (own.norm() * pivot.norm())) - 0.8) < 1e-6
        assert abs(float(own.norm() / pivot.norm()) - 1) < 1e-5


@pytest.mark.parametrize("flow", [True, False])
def test_children_of_parents_chosen_blindly_follow_the_models_own_law(flow: bool) -> None:
    """One peak of deviation 0.5. The few steps of the sampler change that a little, for children as for fresh ones."""
    found: dict[str, list[torch.Tensor]] = {"fresh": [], "renoise": []}

    def keep(clean: torch.Tensor) -> torch.Tensor:
        seen.append(clean)
        return flat(clean)

    for seed in range(60):
        seen: list[torch.Tensor] = []
        sampler = Counting(flow, order=2, steps=40, means=ONE_PEAK, spread=0.5, batch=64)
        chosen = algorithm("evolution", fresh=0.5, lowest=0.5)
        report = search(chosen, sampler, Budget(candidates=24), Scorer("blind", keep), first_seed=seed, seed=seed)
        for kind, clean in zip(kinds(report), torch.cat(seen), strict=True):
            found.get(kind, []).append(clean)
    fresh, children = (torch.stack(found[kind]) for kind in ("fresh", "renoise"))
    assert len(fresh) == 720 and len(children) >= 400
    # Children of three parents share most of them: count 60 x 3 x 12 independent numbers of theirs. 4 standard errors.
    ratio = float((children**2).mean() / (fresh**2).mean())
    assert abs(ratio - 1) < 4 * math.sqrt(2 / 2160 + 2 / 8640) + 0.01
    assert abs(float(children.mean())) < 4 * 0.5 / math.sqrt(2160)
    if flow:
        assert abs(float((children**2).mean()) / 0.25 - 1) < 4 * math.sqrt(2 / 2160) + 0.01


@pytest.mark.parametrize("nfe", [60, 160, 320, 640])
def test_one_round_of_generations_fills_the_budget(nfe: int) -> None:
    report = search(algorithm("evolution", fresh=0.5), Counting(steps=10), Budget(nfe=nfe))
    made = kinds(report)
    again = next((i for i, kind in enumerate(made) if kind == "fresh" and "renoise" in made[:i]), len(made))
    spent = report.evaluations[again - 1].nfe
    assert nfe - 25 <= spent <= report.nfe <= nfe or again == len(made)
    assert abs(made[:again].count("fresh") - nfe / 20) <= 1
    assert report.nfe > nfe - 10


def test_states_are_cached_on_the_way_and_cost_nothing_more() -> None:
    recorded = Recorded("evolution")
    sampler = Counting(steps=10)
    search(recorded.algorithm, sampler, Budget(nfe=300))
    fresh = [request for request in recorded.requests if isinstance(request, Advance) and request.sigmas[0] == 1.0]
    assert fresh and all(request.sigmas[-1] > 0 for request in fresh)
    finished = [row for request in recorded.requests if isinstance(request, Finish) for row in request.rows]
    assert finished and not any(row.sigma == 1.0 for row in finished)


def test_a_mutated_start_noise_inherits_no_pause() -> None:
    """Operations behind a pause would not reach the start noise: the child would be its parent again."""
    sampler = Counting(steps=10)
    sampler.exact_pauses = False
    report = search("evolution", sampler, Budget(nfe=400))
    made = [[o["op"] for o in e.recipe] for e in report.evaluations]
    assert ["seed", "pause"] in made
    children = [operations for operations in made if "near" in operations]
    assert len(children) > 5 and all(operations[:2] == ["seed", "near"] for operations in children)
    starts = {tuple(noise(e).tolist()) for e in report.evaluations if "near" in [o["op"] for o in e.recipe][:2]}
    assert len(starts) > 5


def test_only_the_states_of_parents_are_kept() -> None:
    scores = [1.0, float("nan"), 3.0, 2.0, 5.0]
    rows = [Row(Recipe.of_seed(i), 0.0, id=i, score=score) for i, score in enumerate(scores)]
    states = {i: rows[i] for i in range(4)}
    assert [row.id for row in able(rows, states, 2)] == [2, 3] and set(states) == {2, 3}


def test_where_candidates_are_the_smaller_limit_they_are_planned_for_whatever_nfe_is_left() -> None:
    counted = search("evolution", Counting(steps=20), Budget(candidates=32))
    both = search("evolution", Counting(steps=20), Budget(candidates=32, nfe=10000))
    assert columns(both.evaluations) == columns(counted.evaluations)
    levels = {round(o["to"], 2) for e in both.finished for o in e.recipe if o["op"] == "renoise"}
    assert levels == {0.4, 0.6, 0.8}
    spent = search("evolution", Counting(steps=20), Budget(nfe=640))
    assert columns(search("evolution", Counting(steps=20), Budget(candidates=500, nfe=640)).evaluations) == columns(
        spent.evaluations
    )


def test_without_a_number_in_the_budget_it_plans_for_some() -> None:
    clock = search(algorithm("evolution", fresh=0.5), Counting(steps=3), Budget(patience=200))
    made = kinds(clock)
    assert made[:17] == ["fresh"] * 16 + ["near"]
    assert made.count("fresh") > 16  # and begins again


@pytest.mark.parametrize("settings, least", [({"levels": 0, "mutation": 0.5}, 0.5), ({"mutation": 0.5}, 0.5)])
def test_it_beats_random_search_at_equal_nfe_on_a_smooth_landscape(settings: dict[str, float], least: float) -> None:
    target = torch.linspace(-2, 2, 12, dtype=torch.float64)
    near = Scorer("near", lambda clean: -((clean - target) ** 2).sum(1))
    gains = []
    for seed in range(8):
        pair = []
        for chosen in (algorithm("evolution", **settings), algorithm("random")):
            sampler = Counting(steps=8, means=ONE_PEAK, spread=1.0)
            report = search(chosen, sampler, Budget(nfe=960), near, first_seed=seed, seed=seed)
            assert report.best is not None
            pair.append(report.best.evaluation.score)
        gains.append(pair[0] - pair[1])
    assert sum(gain > 0 for gain in gains) >= 6 and sum(gains) / 8 > least


def test_what_has_no_score_is_no_parent() -> None:
    nan = torch.tensor(float("nan"), dtype=torch.float64)
    half = Scorer("half", lambda clean: torch.where(clean[:, 1] > 0, nan, clean[:, 0]))
    report = search("evolution", Counting(steps=6), Budget(candidates=60), half)
    by_id: dict[int, Evaluation] = {e.id: e for e in report.evaluations}
    children = [e for e in report.evaluations if e.parent is not None]
    assert len(children) > 20
    assert all(by_id[e.parent].verdict == "judged" for e in children if e.parent is not None)


def test_under_a_pooled_ensemble_parents_are_ranked_in_one_pool() -> None:
    pooled = search("evolution", Counting(steps=6), Budget(candidates=60), RankMean(first()), batch=4)
    alone = search("evolution", Counting(steps=6), Budget(candidates=60), first(), batch=4)
    assert [e.recipe for e in pooled.evaluations] == [e.recipe for e in alone.evaluations]
    both = search("evolution", Counting(steps=6), Budget(candidates=60), RankMean(first(), second()), batch=4)
    assert "renoise" in kinds(both)
