"""A series of searches: order, the growing set, and what is kept when it ends early."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from pack.search import SearchError
from pack.search.recipe import Recipe
from pack.search.report import Evaluation, Kept, SearchReport
from pack.search.series import growing, run_series
from pack.search.types import Row


class Collector:
    """A verifier with a growing set that is a list; writes down what is done to it."""

    def __init__(self, name: str = "collector") -> None:
        self.name = name
        self.accepted: list[float] = []
        self.resets = 0

    def score(self, images: Tensor, prompt: str) -> Tensor:
        return images.mean(dim=(1, 2, 3)) + len(self.accepted)

    def accept(self, images: Tensor) -> None:
        assert images.ndim == 4
        self.accepted += images.mean(dim=(1, 2, 3)).tolist()

    def reset(self) -> None:
        self.accepted = []
        self.resets += 1


class Plain:
    name = "plain"

    def score(self, images: Tensor, prompt: str) -> Tensor:
        return images.mean(dim=(1, 2, 3))


def report_on(images: Tensor, score: float = 0.0) -> SearchReport:
    evaluation = Evaluation(0, 0, None, 0.0, score, {}, {}, 1, 1, 0.0, None, ())
    return SearchReport({}, [evaluation], [Kept(evaluation, Row(Recipe(()), 0.0), images)])


def picture(value: float, count: int = 1) -> Tensor:
    return torch.full((count, 2, 2, 3), value)


def test_reports_come_in_the_order_of_the_jobs_and_every_winner_joins_the_set() -> None:
    collector = Collector()
    collector.accept(picture(0.9))  # of a search that came before
    seen: list[Any] = []

    def one(number: int, job: str) -> SearchReport:
        seen.append((number, job, list(collector.accepted)))
        return report_on(picture(0.25 * (number + 1)), float(number))

    reports = list(run_series(["a", "b", "c"], one, [collector]))
    assert seen == [(0, "a", []), (1, "b", [0.25]), (2, "c", [0.25, 0.5])]
    assert [report.evaluations[0].score for report in reports] == [0, 1, 2]
    assert collector.accepted == [] and collector.resets == 2


def test_all_images_of_a_winner_join_frames_of_a_video_included() -> None:
    collector, sizes = Collector(), []

    def one(number: int, job: int) -> SearchReport:
        sizes.append(len(collector.accepted))
        return report_on(torch.rand(2, 5, 4, 4, 3) if number else torch.rand(3, 4, 4, 3))

    for _ in run_series([0, 1, 2], one, [collector]):
        pass
    assert sizes == [0, 3, 13]


def test_the_growing_verifiers_are_found_in_ensembles_and_behind_wrappers_each_once() -> None:
    a, b = Collector("a"), Collector("b")

    class Wrapped:
        """As the host's memory manager wraps: it forwards what it does not know."""

        def __init__(self, verifier: Any) -> None:
            self.verifier = verifier
            self.name = verifier.name

        def __getattr__(self, name: str) -> Any:
            return getattr(self.verifier, name)

        def accept(self, images: Tensor) -> None:
            self.verifier.accept(images)

    wrapped, plain = Wrapped(b), Wrapped(Plain())
    members = [SimpleNamespace(name=v.name, verifier=v) for v in (a, wrapped, plain, Plain())]
    ensemble: Any = SimpleNamespace(name="ensemble", members=members)
    assert growing([ensemble, a, None, Plain(), wrapped]) == [a, wrapped]
    assert growing([plain]) == [] and growing([SimpleNamespace(name="m", verifier=wrapped)]) == [wrapped]


class Cancelled(BaseException):
    """What a host raises when the user cancels."""


def failing_at(stop: int, error: BaseException) -> Any:
    def one(number: int, job: str) -> SearchReport:
        if number == stop:
            raise error
        return report_on(picture(0.1))

    return one


def test_a_cancel_passes_through_and_the_reports_before_it_are_kept() -> None:
    collector, kept = Collector(), []
    series: Iterator[SearchReport] = run_series("abcd", failing_at(2, Cancelled()), [collector])
    with pytest.raises(Cancelled):
        for report in series:
            kept.append(report)
    assert len(kept) == 2 and collector.accepted == []


def test_an_error_says_which_prompt_it_was_and_that_the_others_are_kept() -> None:
    kept: list[SearchReport] = []
    with pytest.raises(SearchError, match=r"prompt 3 of 4 \(c\): no candidate.*the 2 before it are kept"):
        kept.extend(run_series("abcd", failing_at(2, SearchError("no candidate can win")), []))
    assert len(kept) == 2
    with pytest.raises(SearchError, match=r"^prompt 1 of 2 \(a\): no VAE$"):
        list(run_series("ab", failing_at(0, SearchError("no VAE")), []))


def test_a_series_that_is_left_early_leaves_an_empty_set() -> None:
    collector = Collector()
    series = run_series("abcd", failing_at(9, Cancelled()), [collector])
    next(series)
    next(series)
    assert len(collector.accepted) == 1  # the second one waits until its report is taken
    series.close()  # type: ignore[attr-defined]
    assert collector.accepted == []


def test_a_series_of_nothing_is_refused() -> None:
    with pytest.raises(SearchError, match="prompts: got none"):
        list(run_series([], failing_at(0, Cancelled()), []))
