"""auto: what it chooses, and that the choice searches as if it had been made by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pack.search import AUTO, Budget, SearchReport, algorithm
from pack.search.auto import FEWEST, RECORDED
from pack.search.curves import CURVES
from pack.tests.search.worlds import Clock, Counting, Scorer, columns, search
from pack.verifiers import VerifierEnsemble


def chosen(report: SearchReport) -> str:
    """The name of the algorithm that ran, which must say why."""
    assert report.settings["algorithm"]["because"]
    return str(report.settings["algorithm"]["name"])


def named(name: str = "ImageReward") -> Scorer:
    """A verifier under the name of one whose early scores are known."""
    return Scorer(name, lambda clean: clean[:, 0])


@pytest.mark.parametrize("limits", [{"nfe": 240}, {"nfe": 240, "candidates": 30}, {"nfe": 240, "seconds": 60.0}])
def test_model_calls_and_seconds_are_spent_on_pruned_best_of_n(limits: dict[str, Any]) -> None:
    still = Clock().monotonic
    auto = search(AUTO, Counting(steps=20), Budget(**limits), named(), clock=still)
    assert chosen(auto) == "pruned"
    by_hand = search(algorithm("pruned"), Counting(steps=20), Budget(**limits), named(), clock=still)
    assert columns(auto.evaluations) == columns(by_hand.evaluations)


@pytest.mark.parametrize("limits", [{}, {"nfe": 240}, {"seconds": 60.0}])
def test_counted_candidates_are_all_finished(limits: dict[str, Any]) -> None:
    auto = search(AUTO, Counting(steps=20), Budget(candidates=9, **limits), named())
    assert chosen(auto) == "random" and len(auto.finished) == len(auto.evaluations) == 9


@pytest.mark.parametrize("limits", [{"patience": 4}, {"patience": 4, "target": 1e6}])
def test_where_patience_alone_ends_the_search_all_candidates_are_finished(limits: dict[str, Any]) -> None:
    auto = search(AUTO, Counting(steps=20), Budget(**limits), named())
    assert chosen(auto) == "random" and "patience" in auto.settings["algorithm"]["because"]
    by_hand = search("random", Counting(steps=20), Budget(**limits), named())
    assert columns(auto.evaluations) == columns(by_hand.evaluations) and len(auto.finished) == len(auto.evaluations)


def test_patience_beside_model_calls_leaves_room_for_pruning() -> None:
    assert chosen(search(AUTO, Counting(steps=20), Budget(nfe=240, patience=9), named())) == "pruned"


def test_ranks_are_pruned_as_the_verifier_behind_them() -> None:
    ranks = search(AUTO, Counting(steps=20), Budget(nfe=400), VerifierEnsemble([named()], "rank_mean"))
    alone = search(AUTO, Counting(steps=20), Budget(nfe=400), named())
    assert chosen(ranks) == chosen(alone) == "pruned" and ranks.best is not None and alone.best is not None
    assert ranks.best.evaluation.recipe == alone.best.evaluation.recipe
    assert len({e.score for e in ranks.evaluations if e.candidate is None}) > 1


def test_nothing_is_pruned_of_too_few() -> None:
    assert chosen(search(AUTO, Counting(steps=20), Budget(nfe=20 * FEWEST - 1), named())) == "random"
    assert chosen(search(AUTO, Counting(steps=20), Budget(nfe=20 * FEWEST), named())) == "pruned"


def test_a_sampler_that_cannot_pause_exactly_runs_whole_trajectories() -> None:
    sampler = Counting(steps=20)
    sampler.exact_pauses = False
    assert chosen(search(AUTO, sampler, Budget(nfe=240), named())) == "random"


def test_a_verifier_that_compares_with_early_images_gets_whole_trajectories() -> None:
    class Watches:
        name, early = "ImageReward", (0.4,)

        def score(self, images: Any, prompt: str, early: Any = None) -> Any:
            return images.mean(dim=(1, 2, 3)) if early else torch.full([len(images)], float("nan"))

    assert chosen(search(AUTO, Counting(steps=20), Budget(nfe=240), Watches())) == "random"


def test_one_candidate_is_the_users_own_whatever_the_other_limits() -> None:
    report = search(AUTO, Counting(steps=20), Budget(nfe=240, candidates=1))
    assert report.settings["algorithm"] == {"name": "random"} and len(report.finished) == 1


@pytest.mark.parametrize("family", ["FLUX.1-dev", "SDXL", ""])
@pytest.mark.parametrize("name", sorted(RECORDED))
def test_the_cuts_are_those_of_the_model_and_the_verifier_where_both_are_known(family: str, name: str) -> None:
    sampler = Counting(steps=20)
    sampler.family = family
    made = search(AUTO, sampler, Budget(nfe=240), named(name)).settings["algorithm"]
    assert made["name"] == "pruned" and made["curve"] == (f"{family}, {name}" if family else "cautious")
    assert made["curve"] in CURVES


def test_nothing_is_pruned_by_a_verifier_of_which_nobody_knows_how_early_it_sees() -> None:
    report = search(AUTO, Counting(steps=20), Budget(nfe=240), named("CLIPScore"))
    assert chosen(report) == "random" and "CLIPScore" in report.settings["algorithm"]["because"]


@pytest.mark.parametrize("weight, expected", [(1.0, "random"), (0.0, "pruned")])
def test_of_an_ensemble_all_members_that_count_must_be_known(weight: float, expected: str) -> None:
    members = [named("ImageReward"), named("HPSv2"), named("CLIPScore")]
    ensemble = VerifierEnsemble(members, weights=[1.0, 1.0, weight])
    report = search(AUTO, Counting(steps=20), Budget(nfe=240), ensemble)
    assert chosen(report) == expected
    if expected == "pruned":
        assert report.settings["algorithm"]["curve"] == "cautious"
