"""What a search has spent, and what its limits still pay for."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace

from .budget import Budget
from .podium import Podium
from .report import SearchReport
from .types import BACKWARD_NFE, Plan, Sampler
from .watcher import Watcher


class Stop(BaseException):
    """A limit is reached. Not an Exception, so that no sampler or algorithm swallows it."""

    def __init__(self, reason: dict[str, float]) -> None:
        super().__init__(reason)
        self.reason = reason


class Spending:
    """The meter of one search (see types.Meter): what entered the denoiser, what it took, and what may follow.

    `plan` is the algorithm's, with what the time pays for. `clock` tells the seconds.
    """

    def __init__(
        self,
        sampler: Sampler,
        budget: Budget,
        plan: Plan,
        report: SearchReport,
        podium: Podium,
        watcher: Watcher,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.sampler, self.budget, self.report = sampler, budget, report
        self.plan = replace(plan, allowance=self.allowance)
        self.podium, self.watcher = podium, watcher
        self.clock = clock or time.monotonic
        self.created = self.clock()
        self.started: float | None = None
        self.candidates = 0  # recorded; counting them in the report anew for each would be quadratic
        self.gradient_nfe = 0  # of one candidate, if gradients are asked for
        self.look_seconds = 0.0  # of images and scores, all together
        self.measured: dict[tuple[float, ...], int] = {}

    # the meter, seen by the sampler

    def forward(self, rows: int) -> None:
        """Count `rows` rows before they enter the denoiser; end the search rather than exceed its budget."""
        if self.started is None:
            self.started = self.clock()
            self.report.load_seconds = self.started - self.created
        if self.budget.nfe and self.report.nfe + rows > self.budget.nfe:
            raise Stop({"nfe": self.budget.nfe})
        if self.podium and self.watcher.finish_now():
            raise Stop({"finish now": 1})
        self.report.nfe += rows
        self.watcher.progress(self.report.nfe, self.expected_nfe())

    def backward(self, rows: int) -> None:
        """Count the way back of `rows` rows through the denoiser."""
        self.forward(BACKWARD_NFE * rows)

    def model_rows(self, rows: int) -> None:
        """Count rows that entered the network itself."""
        self.report.model_rows += rows

    # so far

    @property
    def seconds(self) -> float:
        """Since the first forward; 0 before it, so that loading is not counted."""
        return 0.0 if self.started is None else self.clock() - self.started

    @property
    def counts(self) -> tuple[int, int]:
        """NFE and model rows."""
        return self.report.nfe, self.report.model_rows

    def undo(self, counts: tuple[int, int]) -> None:
        """Forget what was counted since then: it ran out of memory, and is done again."""
        self.report.lost_nfe += self.report.nfe - counts[0]
        self.report.nfe, self.report.model_rows = counts

    def expected_nfe(self) -> int | None:
        """The total NFE that the limits allow, as far as they can be known."""
        guesses: list[float] = [self.budget.nfe] if self.budget.nfe else []
        if self.budget.candidates and self.plan.candidate_nfe:
            guesses.append(self.budget.candidates * (self.plan.candidate_nfe + self.gradient_nfe))
        if self.budget.seconds and self.seconds > 0:
            guesses.append(self.report.nfe * max(1.0, self.budget.seconds / self.seconds))
        return max(self.report.nfe, round(min(guesses))) if guesses else None

    def allowance(self) -> float:
        """The NFE that a limit on seconds pays for in all, at the pace so far; infinite where nothing tells."""
        timed = self.budget.seconds and self.seconds
        return self.report.nfe * self.budget.seconds / self.seconds if timed else math.inf

    # what may follow

    def cost(self, sigmas: tuple[float, ...]) -> int | None:
        """NFE of taking one candidate along `sigmas`: known from the sampler, or measured once it was done."""
        forwards = self.sampler.cost(sigmas)
        return self.measured.get(sigmas) if forwards is None else forwards * self.sampler.rows_per_candidate

    def check(self, begun: bool) -> None:
        """Between micro-batches: stop at the limits that need no new image to be reached.

        `begun`: whether there are rows to finish where no candidate is finished yet.
        """
        if self.podium and self.watcher.finish_now():
            raise Stop({"finish now": 1})
        reached = self.budget.reached(candidates=0, nfe=self.report.nfe, seconds=self.seconds, best=None, since_best=0)
        if reached and (self.podium or begun):
            raise Stop(reached)

    def afford(self, rows: int, cost: int | None, end: float, looks: int = 0, known: int = 0) -> None:
        """Refuse a mid-way request that would leave too little to finish one image: then it would be for nothing.

        `known`: NFE of the way from `end` on that the request itself pays for, as an estimate does for the next step.
        """
        reserve = max(0, (self.cost(self.plan.down(end, self.sampler.sigmas[-1])) or 0) - known)
        reached = self.over(rows * (1 if cost is None else cost) + reserve, looks + 1)
        if reached:
            raise Stop(reached)

    def over(self, nfe: float, looks: int) -> dict[str, float]:
        """The limits on NFE and seconds that so many more NFE and looks would pass, at the pace so far."""
        forward = (self.seconds - self.look_seconds) / max(1, self.report.nfe)
        look = self.look_seconds / max(1, len(self.report.evaluations))
        wanted = {"nfe": self.report.nfe + nfe, "seconds": self.seconds + nfe * forward + looks * look}
        limits = {"nfe": self.budget.nfe, "seconds": self.budget.seconds}
        return {name: limit for name, limit in limits.items() if limit and wanted[name] > limit}

    def reached(self) -> dict[str, float]:
        """The limits that the last candidate has reached."""
        podium = self.podium
        return self.budget.reached(
            candidates=self.candidates, nfe=0, seconds=0, best=podium.best, since_best=podium.since_best
        )
