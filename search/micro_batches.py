"""Micro-batches: how many rows go through the model, the VAE or a verifier at once. They never change a result."""

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
        self.row_seconds: float | None = None  # the same with its images and scores

    def size(self, phase: str) -> int:
        """Of a phase; a seconds budget starts with one row, then takes what still fits in time."""
        size, spending = self.sizes[phase] or self.spending.sampler.micro_batch(), self.spending
        if phase == "model" and spending.budget.seconds:
            left = spending.budget.seconds - spending.seconds
            size = 1 if self.row_seconds is None else min(size, max(1, int(left / max(self.row_seconds, 1e-6))))
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
        self, phase: str, items: Sequence[Item], work: Callable[[Sequence[Item]], list[Result]]
    ) -> list[Result]:
        """`work` on as many items as one micro-batch takes; halved when memory runs out. Returns that prefix."""
        spending, report = self.spending, self.spending.report
        size, alone = min(self.size(phase), len(items)), 0
        while True:
            counts = spending.counts
            if phase == "model":
                self.mark = counts
            with Attempt(spending.sampler) as attempt:
                return work(items[:size])
            if attempt.failed:
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

    def unmoved(self) -> None:
        """What is judged next needed no model."""
        self.mark = self.spending.counts

    def moved(self, rows: int, seconds: float) -> None:
        """So many rows took so long in the model."""
        self.row_seconds = self.move_seconds = seconds / rows

    def looked(self, rows: int, seconds: float) -> None:
        """The images and scores of so many rows took so long."""
        self.spending.look_seconds += seconds
        if self.move_seconds is not None:
            self.row_seconds = self.move_seconds + seconds / rows
