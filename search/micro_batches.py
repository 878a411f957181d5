"""Micro-batches: how many rows go through the model, the VAE or a verifier at once. Only rounding tells them apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from .attempts import Attempt
from .errors import SearchError
from .spending import Spending, Stop

Item = TypeVar("Item")
Result = TypeVar("Result")


class MicroBatches:
    """As large as memory and limits allow; halved when memory runs out. `size` 0 = the sampler's own estimate."""

    def __init__(self, spending: Spending, size: int) -> None:
        self.spending = spending
        self.sizes = {"model": size, "VAE": size, "verifier": size}
        self.mark = (0, 0)  # NFE and model rows before the last one that entered the model
        self.move_seconds: float | None = None  # of one row in the last one
        self.look_seconds = 0.0  # of its images and scores, the last time

    def size(self, phase: str) -> int:
        """Of a phase; a seconds budget starts with one row, then takes what still fits in time."""
        size, spending = self.sizes[phase] or self.spending.sampler.micro_batch(), self.spending
        if phase == "model" and spending.budget.seconds:
            left, row = spending.budget.seconds - spending.seconds, (self.move_seconds or 0.0) + self.look_seconds
            size = 1 if self.move_seconds is None else min(size, max(1, int(left / max(row, 1e-6))))
        return size

    def affordable(self, sigmas: tuple[float, ...]) -> int:
        """How many candidates the next one may hold: within the limits that are left, none that cannot matter.

        An automatic micro-batch lets the first image be seen as early as can be, and where each image may be the last,
        each before the next is begun.
        """
        spending, budget = self.spending, self.spending.budget
        size, cost = self.size("model"), spending.cost(sigmas)
        if not self.sizes["model"] and (budget.target or not spending.report.evaluations):
            size = 1
        if budget.patience:
            size = min(size, max(1, budget.patience - spending.podium.since_best))
        if budget.candidates:
            size = min(size, budget.candidates - spending.candidates)
        if budget.nfe and cost:
            size = min(size, (budget.nfe - spending.report.nfe) // cost)
        if size < 1:
            raise Stop({"nfe": budget.nfe} if budget.nfe else {"candidates": budget.candidates})
        return 1 if cost is None else size  # an unknown cost is measured on one row

    def fitting(
        self, phase: str, items: Sequence[Item], work: Callable[[Sequence[Item]], list[Result]], shrink: int = 1
    ) -> list[Result]:
        """`work` on as many items as one micro-batch takes; halved when memory runs out. Returns that prefix.

        `shrink`: by what factor rows for the model are smaller.
        """
        spending, report = self.spending, self.spending.report
        size, alone = min(self.size(phase), len(items)), 0
        while True:
            counts = spending.counts
            if phase == "model":
                self.mark = counts
            began, done = spending.seconds, []
            with Attempt(spending.sampler) as attempt:
                done = work(items[:size])
            if not attempt.failed:
                if phase == "model":
                    spending.forwarded(counts[0], began, shrink)
                return done
            spending.undo(counts)
            spending.sampler.free_memory()
            if size == 1:
                alone += 1
                if alone == 3:
                    raise SearchError(
                        f"the {phase} ran out of memory on a single candidate, three times in a row; "
                        "use a smaller latent or a smaller model"
                    )
                report.note(f"{phase}: out of memory on one candidate at NFE {counts[0]}, tried again")
            else:
                report.note(f"{phase}: out of memory at NFE {counts[0]}, batch {size} -> {(size + 1) // 2}")
                size = self.sizes[phase] = (size + 1) // 2

    def sighted(self) -> int:
        """Of rows that are to be looked at: where seconds are a limit, one says what a look takes."""
        timed = self.spending.budget.seconds and self.spending.pace.looks.first is None
        return 1 if timed else self.size("model")

    def unmoved(self) -> None:
        """What is judged next needed no model."""
        self.mark = self.spending.counts

    def moved(self, rows: int, seconds: float) -> None:
        """So many rows took so long in the model."""
        self.move_seconds = seconds / rows

    def looked(self, rows: int, seconds: float, finished: bool) -> None:
        """The images and scores of so many rows took so long; of 0, what comes after such a look."""
        pace = self.spending.pace
        (pace.endings if finished else pace.looks).add(rows, seconds)
        if rows:
            self.look_seconds = seconds / rows
