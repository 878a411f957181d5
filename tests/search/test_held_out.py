"""A held-out verifier that fails: it decides nothing, so it ends no search that it has once answered."""

from __future__ import annotations

import math
from typing import Any

import pytest
from torch import Tensor

from pack.search import Budget, SearchError, SearchReport
from pack.search.jury import MISSES

from .worlds import Counting, columns, first, search, second


class Failing:
    """Fails on images whose first number is above a limit, and counts how often it is asked."""

    name = "held"

    def __init__(self, limit: float) -> None:
        self.limit, self.asked = limit, 0

    def score(self, images: Tensor, prompt: str) -> Tensor:
        self.asked += 1
        if float(images.flatten(1)[:, 0].max()) > self.limit:
            raise ValueError("too bright")
        return images.flatten(1)[:, 0]


def found(held: Any, batch: int) -> SearchReport:
    return search("random", Counting(), Budget(candidates=12), held_out=held, batch=batch)


def brightness() -> list[float]:
    """What `Failing` looks at, of the twelve candidates."""
    return [e.held_out["held"] for e in found(Failing(math.inf), 1).finished]


@pytest.mark.parametrize("batch", [1, 4])
def test_one_image_that_it_cannot_judge_has_nan_and_changes_nothing_else(batch: int) -> None:
    seen = brightness()
    limit = sorted(seen)[-2]
    assert seen[0] <= limit  # the first image is judged
    report, plain = found(Failing(limit), batch), search("random", Counting(), Budget(candidates=12))
    scores = [e.held_out["held"] for e in report.finished]
    assert [math.isnan(score) for score in scores] == [value > limit for value in seen]
    assert columns(report.evaluations, drop=["held_out"]) == columns(plain.evaluations, drop=["held_out"])
    at = seen.index(max(seen))
    assert [n for n in report.notes if n.startswith("held out")] == [
        f"held out: verifier held failed: ValueError: too bright (at candidate {at})"
    ]


@pytest.mark.parametrize("batch", [1, 4])
def test_one_that_has_died_is_asked_no_more(batch: int) -> None:
    held = Failing(math.inf)
    judged = second("judge")

    def dying(images: Tensor, prompt: str) -> Tensor:
        if held.asked >= 2:
            held.asked += 1
            raise ConnectionError("gone")
        return Failing.score(held, images, prompt)

    held.score = dying  # type: ignore[method-assign]
    report = search("random", Counting(), Budget(candidates=12), judged, held_out=held, batch=batch)
    assert len(report.finished) == 12 and report.best is not None
    alone = held.asked - 2 - (batch > 1)  # the first time after its end it was asked about a whole batch
    assert alone == MISSES
    judged_before = 2 if batch == 1 else 8
    assert [math.isfinite(e.held_out["held"]) for e in report.finished] == [i < judged_before for i in range(12)]
    last = f"gone (at candidate {judged_before + MISSES - 1}); it was not asked any more"
    assert [note.endswith(last) for note in report.notes if note.startswith("held out")] == [False, False, True]


def test_one_that_never_answers_ends_the_search_at_the_first_image() -> None:
    with pytest.raises(SearchError, match="verifier held failed: ValueError: too bright"):
        found(Failing(-math.inf), 1)


def test_the_searched_verifier_still_ends_it() -> None:
    broken = first()
    broken.break_at = {5: ValueError("broken"), 6: ValueError("broken")}
    with pytest.raises(SearchError, match="verifier first failed: ValueError: broken"):
        search("random", Counting(), Budget(candidates=12), broken, held_out=second(), batch=1)
