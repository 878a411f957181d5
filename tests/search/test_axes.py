"""Axes: the user's own first, candidates that differ on the axes that are on and on no other, and refinements."""

from __future__ import annotations

import math
import re
import statistics
from typing import Any

import pytest
import torch

from pack.search import Budget, Candidates, SearchError, algorithm
from pack.search.axes import CLOSE
from pack.search.recipe import Recipe, describe
from pack.tests.search.worlds import Counting, columns, first, search


class Offering(Counting):
    """A world that offers other axes."""

    def __init__(self, **axes: float) -> None:
        super().__init__()
        self.axes = axes


def run(sampler: Counting | None = None, budget: int = 40, **settings: Any) -> Any:
    return search(algorithm("axes", **settings), sampler or Counting(), Budget(candidates=budget))


def operations(report: Any, name: str) -> list[dict[str, Any]]:
    return [o for e in report.evaluations for o in e.recipe if o["op"] == name]


def test_the_users_own_candidate_is_first_and_untouched() -> None:
    for settings in ({}, {"noise": False}, {"cfg": 0.5, "refine": 1.0}):
        assert run(**settings).evaluations[0].recipe == ({"op": "seed", "seed": 7},)


def test_candidates_differ_on_the_axes_that_are_on_and_on_no_other() -> None:
    cases: list[tuple[dict[str, Any], list[str]]] = [
        ({"conditioning": 0.0}, ["seed"]),
        ({}, ["seed", "conditioning"]),
        ({"conditioning": 0.0, "cfg": 0.5}, ["seed", "cfg"]),
        ({"cfg": 0.5}, ["seed", "conditioning", "cfg"]),
        ({"noise": False, "cfg": 0.5}, ["seed", "conditioning", "cfg"]),
    ]
    for settings, kinds in cases:
        report = run(**settings)
        assert {tuple(o["op"] for o in e.recipe) for e in report.evaluations[1:]} == {tuple(kinds)}
        seeds = {e.recipe[0]["seed"] for e in report.evaluations}
        assert len(seeds) == (1 if settings.get("noise") is False else 40)
        assert len({str(e.recipe) for e in report.evaluations}) == 40


def test_with_all_other_axes_off_it_is_random_search() -> None:
    plain = search("random", Counting(), Budget(candidates=40))
    assert columns(run(conditioning=0.0).evaluations) == columns(plain.evaluations)


def test_strengths_and_scales_fill_their_ranges_evenly_at_any_budget() -> None:
    for budget in (9, 33, 65):
        report = run(Offering(cfg=4.0, conditioning=0.0), budget, conditioning=0.8, cfg=0.25)
        strengths = sorted(o["strength"] / 0.8 for o in operations(report, "conditioning"))
        scales = sorted((o["scale"] - 3.2) / 1.8 for o in operations(report, "cfg"))
        for values in (strengths, scales):
            assert len(values) == budget - 1 and 0 <= values[0] and values[-1] <= 1
            gaps = [b - a for a, b in zip([0, *values], [*values, 1], strict=True)]
            assert max(gaps) < 5 / budget


def test_scales_lie_around_the_users_own_and_not_below_1_unless_it_does() -> None:
    for own, lowest, highest in ((6.0, 4.0, 9.0), (1.0, 1.0, 1.5), (1.2, 1.0, 1.8), (0.6, 0.4, 0.9)):
        report = run(Offering(cfg=own), conditioning=0.0, cfg=0.5)
        scales = [o["scale"] for o in operations(report, "cfg")]
        assert lowest <= min(scales) < lowest + 0.1 * highest and 0.9 * highest < max(scales) <= highest
        assert all(round(scale, 2) == scale for scale in scales)  # as the widget of stock's KSampler takes it


def test_guidance_is_steered_where_the_model_has_it_instead_of_cfg() -> None:
    report = run(Offering(guidance=3.5, conditioning=0.0), conditioning=0.0, cfg=1.0)
    scales = [o["scale"] for o in operations(report, "guidance")]
    assert len(scales) == 39 and 1.7 <= min(scales) and max(scales) <= 7.0 and not operations(report, "cfg")
    assert all(round(scale, 1) == scale for scale in scales)


@pytest.mark.parametrize(
    "settings, complaint",
    [
        ({"noise": False, "conditioning": 0.0}, "every axis off"),
        ({"conditioning": -0.1}, "conditioning=-0.1"),
        ({"cfg": float("nan")}, "cfg=nan"),
        ({"refine": 1.5}, "refine=1.5"),
        ({"step_noise": True}, "step_noise is on, but the sampler draws no noise"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_anything_is_spent(settings: Any, complaint: str) -> None:
    sampler = Counting()
    with pytest.raises(SearchError, match=complaint):
        run(sampler, **settings)
    assert sampler.rows == 0


def test_an_axis_that_the_sampler_does_not_offer_is_refused() -> None:
    for settings, complaint in (({}, "conditioning is on"), ({"conditioning": 0.0, "cfg": 0.5}, "cfg is on")):
        with pytest.raises(SearchError, match=complaint):
            run(Offering(), **settings)


def test_step_noise_has_a_seed_of_its_own_and_leaves_the_start_noise() -> None:
    report = run(Offering(step_noise=0.0), noise=False, conditioning=0.0, step_noise=True)
    recipes = [Recipe(e.recipe) for e in report.evaluations]
    assert len({recipe.step_seed for recipe in recipes}) == 40 and all(recipe.replayable for recipe in recipes)
    assert {recipe.operations[0]["seed"] for recipe in recipes} == {7}


@pytest.mark.parametrize("share, children", [(0.0, 0), (0.5, 20), (1.0, 40)])
def test_refined_candidates_are_the_best_so_far_changed_on_one_axis(share: float, children: int) -> None:
    report = run(budget=41, cfg=0.5, refine=share)
    refined = [e for e in report.evaluations if e.parent is not None]
    assert len(refined) == children
    for e in refined:
        assert e.parent is not None
        parent = report.evaluations[e.parent]
        before_round = report.evaluations[: 1 + (e.id - 1) // 8 * 8]
        assert parent.score == max(other.score for other in before_round)
        if e.recipe[-1]["op"] != "conditioning":
            assert e.recipe[:-1] == parent.recipe
    assert [e.recipe[-1]["op"] for e in refined[:4]] == ["near", "conditioning", "cfg", "near"][: len(refined)]
    assert all(o["cosine"] == CLOSE for o in operations(report, "near"))


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_refined_conditioning_noise_stays_within_its_limit_and_near_the_best(share: float) -> None:
    chosen = algorithm("axes", refine=share, conditioning=2.0)
    report = search(chosen, Counting(steps=4), Budget(candidates=200), first(), seed=2)
    deepest = 0
    for e in report.evaluations:
        noises = {o["seed"]: o["strength"] for o in e.recipe if o["op"] == "conditioning"}
        assert math.hypot(*noises.values()) <= 2.001
        deepest = max(deepest, len(noises))
        if e.parent is not None and e.recipe[-1]["op"] == "conditioning":
            before = {o["seed"]: o["strength"] for o in report.evaluations[e.parent].recipe if "strength" in o}
            apart = [noises.get(seed, 0.0) - before.get(seed, 0.0) for seed in {*noises, *before}]
            assert 0 < math.hypot(*apart) <= 2.0 * math.sqrt(2 * (1 - CLOSE)) + 0.001
    assert deepest >= 4


def test_a_collapsed_world_gains_nothing_by_noise_and_much_by_conditioning() -> None:
    """One narrow mode: every start noise ends at nearly the same place, and only the conditioning moves that place."""
    gained: dict[float, list[float]] = {0.0: [], 1.0: []}
    for seed in range(5):
        for strength, found in gained.items():
            chosen = algorithm("axes", conditioning=strength)
            means = torch.randn(1, 12, generator=torch.Generator().manual_seed(seed))
            world = Counting(means=means, spread=0.001, steps=6)
            report = search(chosen, world, Budget(candidates=16), first(), first_seed=seed, seed=seed)
            assert report.best is not None
            found.append(report.best.evaluation.score - report.evaluations[0].score)
    assert max(gained[0.0]) < 0.01 and statistics.fmean(gained[1.0]) > 0.5


def test_candidates_around_a_liked_noise_keep_their_closeness() -> None:
    candidates = Candidates(Recipe.of_seed(7), 7, 0.9)
    report = search("axes", Counting(), Budget(candidates=9), candidates=candidates)
    assert all([o["op"] for o in e.recipe] == ["seed", "near", "conditioning"] for e in report.evaluations[1:])


def test_every_candidate_names_its_axes_in_words() -> None:
    report = run(cfg=0.5)
    for e in report.evaluations[1:]:
        assert re.fullmatch(r"seed \d+, cfg [\d.]+, conditioning noise [\d.]+", describe(e.recipe))
