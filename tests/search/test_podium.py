"""The podium: who may stand on it, who leads, and what is forgotten."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from pack.search import Recipe, Row
from pack.search.podium import Podium
from pack.search.report import Evaluation
from pack.search.types import Verifier
from pack.tests.search.worlds import RankMean, first, second

IMAGES = torch.rand(1, 1, 4, 3)
ROW = Row(Recipe.of_seed(1), 0.0, x=torch.zeros(1, 12))


def evaluation(id: int, parts: dict[str, float], **more: Any) -> Evaluation:
    settings = {"candidate": id, "parent": None, "sigma": 0.0, "score": math.nan, "held_out": {}, "nfe": 6 * id}
    settings |= {"model_rows": 6 * id, "seconds": 0.0, "seed": id, "recipe": ({"op": "seed", "seed": id},)}
    return Evaluation(id=id, parts=parts, **(settings | more))  # type: ignore[arg-type]


def climbed(verifier: Verifier, all_parts: list[dict[str, float]], top_k: int = 2) -> tuple[Podium, list[bool]]:
    """A podium after candidates came one by one, and which of them led when they came."""
    evaluations: list[Evaluation] = []
    podium, led = Podium(verifier, None, top_k, evaluations), []
    for id, parts in enumerate(all_parts):
        scored = podium.scored(evaluation(id, parts))
        led.append(podium.enter(scored, ROW, IMAGES))
        evaluations.append(scored)
    return podium, led


def test_the_best_lead_when_they_come_and_the_top_k_alone_is_kept() -> None:
    podium, led = climbed(first(), [{"first": score} for score in (0.1, 0.5, 0.3, 0.5, 0.9, 0.2)])
    assert led == [True, True, False, False, True, False]
    assert [kept.evaluation.id for kept in podium.top()] == [4, 1]  # of equals the earlier one
    assert set(podium.kept) == {4, 1} and podium.best == 0.9 and podium.since_best == 1 and len(podium) == 6


def test_what_could_not_be_judged_never_leads_and_is_not_kept() -> None:
    podium, led = climbed(first(), [{"first": score} for score in (math.nan, 0.1, math.nan)])
    assert led == [False, True, False] and set(podium.kept) == {1} and podium.since_best == 1


@pytest.mark.parametrize("more", [{"candidate": None}, {"after_stop": True}])
def test_what_is_on_its_way_or_came_too_late_does_not_enter(more: dict[str, Any]) -> None:
    podium, _ = climbed(first(), [{"first": 0.1}])
    late = podium.scored(evaluation(1, {"first": 5.0}, **more))
    assert late.score == 5.0 and not podium.enter(late, ROW, IMAGES)
    assert len(podium) == 1 and podium.best == 0.1


def test_ranks_of_all_change_with_a_newcomer_and_a_loser_may_lead_later() -> None:
    pool = [{"first": 1.0, "second": 0.0}, {"first": 0.0, "second": 3.0}, {"first": 0.5, "second": 1.0}]
    podium, _ = climbed(RankMean(first(), second()), pool)
    expected = podium.verifier.combine(pool)  # type: ignore[attr-defined]
    assert [podium.kept[id].evaluation.score for id in range(3)] == expected
    assert [e.score for e in podium.evaluations][:2] == expected[:2]  # the ledger's list is rescored too
    assert set(podium.kept) == {0, 1, 2}


def test_what_is_judged_on_its_way_is_ranked_among_its_own() -> None:
    podium, _ = climbed(RankMean(first()), [{"first": 5.0}, {"first": 6.0}])
    rows = []
    for id, score in enumerate((0.3, 0.1, 0.2), start=2):
        podium.evaluations.append(podium.scored(evaluation(id, {"first": score}, candidate=None)))
        rows.append(replace(ROW, id=id, score=podium.evaluations[id].score))
    assert len({row.score for row in rows}) == 1  # beside finished images all are the worst
    assert [round(row.score, 9) for row in podium.compared(rows)] == [1.0, round(1 / 3, 9), round(2 / 3, 9)]
    assert [e.score for e in podium.evaluations[2:]] == [row.score for row in podium.compared(rows)]
    assert [e.score for e in podium.evaluations[:2]] == [0.5, 1.0]  # theirs are those of the pool still


def test_where_ranks_change_the_pictures_of_the_top_alone_are_kept() -> None:
    pool = [{"first": float(score), "second": float(-score)} for score in range(8)]
    podium, _ = climbed(RankMean(first(), second()), pool)
    of_top = {kept.evaluation.id for kept in podium.top()}
    assert len(podium.kept) == 8 and len(of_top) == 2
    assert {id for id, kept in podium.kept.items() if len(kept.images)} <= of_top
