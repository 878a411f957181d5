"""auto: what it chooses, and that the choice searches as if it had been made by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pack.search import AUTO, Budget, SearchReport, algorithm
from pack.search.auto import FEWEST
from pack.tests.search.worlds import Counting, columns, search


def chosen(report: SearchReport) -> str:
    """The name of the algorithm that ran, which must say why."""
    assert report.settings["algorithm"]["because"]
    return str(report.settings["algorithm"]["name"])


@pytest.mark.parametrize("limits", [{"nfe": 240}, {"nfe": 240, "candidates": 30}, {"nfe": 240, "seconds": 60.0}])
def test_model_calls_and_seconds_are_spent_on_pruned_best_of_n(limits: dict[str, Any]) -> None:
    auto = search(AUTO, Counting(steps=20), Budget(**limits))
    assert chosen(auto) == "pruned"
    by_hand = search(algorithm("pruned"), Counting(steps=20), Budget(**limits))
    assert columns(auto.evaluations) == columns(by_hand.evaluations)


@pytest.mark.parametrize("limits", [{}, {"nfe": 240}, {"seconds": 60.0}])
def test_counted_candidates_are_all_finished(limits: dict[str, Any]) -> None:
    auto = search(AUTO, Counting(steps=20), Budget(candidates=9, **limits))
    assert chosen(auto) == "random" and len(auto.finished) == len(auto.evaluations) == 9


def test_nothing_is_pruned_of_too_few() -> None:
    assert chosen(search(AUTO, Counting(steps=20), Budget(nfe=20 * FEWEST - 1))) == "random"
    assert chosen(search(AUTO, Counting(steps=20), Budget(nfe=20 * FEWEST))) == "pruned"


def test_a_sampler_that_cannot_pause_exactly_runs_whole_trajectories() -> None:
    sampler = Counting(steps=20)
    sampler.exact_pauses = False
    assert chosen(search(AUTO, sampler, Budget(nfe=240))) == "random"


def test_a_verifier_that_compares_with_early_images_gets_whole_trajectories() -> None:
    class Watches:
        name, early = "watches", (0.4,)

        def score(self, images: Any, prompt: str, early: Any = None) -> Any:
            return images.mean(dim=(1, 2, 3)) if early else torch.full([len(images)], float("nan"))

    assert chosen(search(AUTO, Counting(steps=20), Budget(nfe=240), Watches())) == "random"


def test_one_candidate_is_the_users_own_whatever_the_other_limits() -> None:
    report = search(AUTO, Counting(steps=20), Budget(nfe=240, candidates=1))
    assert report.settings["algorithm"] == {"name": "random"} and len(report.finished) == 1
