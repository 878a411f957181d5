"""What a search has spent, and what its limits still pay for."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from .budget import Budget
from .pace import Pace
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

    `clock` tells the seconds.
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
        self.sampler, self.budget, self.plan, self.report = sampler, budget, plan, report
        self.podium, self.watcher = podium, watcher
        self.pace = Pace(sampler.look_cost)
        self.clock = clock or time.monotonic
        self.created = self.clock()
        self.started: float | None = None
        self.warm: tuple[float, int] | None = None  # seconds and NFE when the first forward was over
        self.candidates = 0  # recorded; counting them in the report anew for each would be quadratic
        self.gradient_nfe = 0  # of one candidate, if gradients are asked for
        self.measured: dict[tuple[float, ...], int] = {}

    # the meter, seen by the sampler

    def forward(self, rows: int) -> None:
        """Count `rows` rows before they enter the denoiser; end the search rather than exceed its budget."""
        if self.started is None:
            self.started = self.clock()
            self.report.load_seconds = self.started - self.created
        elif self.warm is None:
            self.warm = self.seconds, self.report.nfe
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

    def forwarded(self, nfe: int, seconds: float, shrink: int) -> None:
        """Rows smaller by `shrink` went through the model since NFE and seconds were that."""
        if self.warm is not None:  # the first forward may have loaded the model
            nfe, seconds = max(nfe, self.warm[1]), max(seconds, self.warm[0])
            self.pace.forwarded(self.report.nfe - nfe, self.seconds - seconds, shrink)

    # what may follow

    def cost(self, sigmas: tuple[float, ...]) -> int | None:
        """NFE of taking one candidate along `sigmas`: known from the sampler, or measured once it was done."""
        forwards = self.sampler.cost(sigmas)
        return self.measured.get(sigmas) if forwards is None else forwards * self.sampler.rows_per_candidate

    def check(self, begun: bool) -> None:
        """Between micro-batches: stop at the limits that need no new image to be reached.

        `begun`: whether there are rows to finish where no candidate is finished yet.
        """
        if not (self.podium or begun):
            return
        if self.watcher.finish_now():
            raise Stop({"finish now": 1})
        reached = self.budget.reached(candidates=0, nfe=self.report.nfe, seconds=self.seconds, best=None, since_best=0)
        if reached:
            raise Stop(reached)

    def afford(self, rows: int, cost: int | None, end: float, looks: int = 0, known: int = 0, shrink: int = 1) -> None:
        """Refuse a mid-way request that would leave too little to finish one image: then it would be for nothing.

        `known`: NFE of the way from `end` on that the request itself pays for, as an estimate does for the next step.
        `shrink`: by what factor its rows are smaller, which saves time and no NFE.
        """
        nfe, pace = rows * (1 if cost is None else cost), self.pace
        reserve = max(0, (self.cost(self.plan.down(end, self.sampler.sigmas[-1])) or 0) - known)
        seconds = nfe * pace.forward(shrink) + looks * pace.look + reserve * pace.forward() + pace.ending
        reached = self.passed(nfe + reserve, seconds)
        if reached:
            raise Stop(reached)

    def ends(self, sigma: float) -> dict[str, float]:
        """The limits that an image which is made from there would pass."""
        cost = self.cost(self.plan.down(sigma, self.sampler.sigmas[-1]))
        nfe = 1 if cost is None else cost
        return self.passed(nfe, nfe * self.pace.forward() + self.pace.ending)

    def passed(self, nfe: float, seconds: float) -> dict[str, float]:
        """The limits that so many more NFE and seconds would pass."""
        wanted = {"nfe": self.report.nfe + nfe, "seconds": self.seconds + seconds}
        limits = {"nfe": self.budget.nfe, "seconds": self.budget.seconds}
        return {name: limit for name, limit in limits.items() if limit and wanted[name] > limit}

    def left(self) -> float:
        """Whole candidates that a limit on seconds still pays for; infinite without one, or where nothing tells."""
        each = self.candidate_seconds
        return max(0.0, self.budget.seconds - self.seconds) / each if self.budget.seconds and each else math.inf

    def timed(self, share: float, shrink: int) -> float:
        """What that share of a candidate's forwards takes with a look, in whole candidates, where time is limited."""
        each, pace = self.candidate_seconds, self.pace
        if not self.budget.seconds or not each:
            return share / shrink**2
        return (share * (self.cost(self.sampler.sigmas) or 0) * pace.forward(shrink) + pace.look) / each

    @property
    def candidate_seconds(self) -> float:
        """What a whole candidate takes; 0 while nothing tells."""
        cost, forward = self.cost(self.sampler.sigmas), self.pace.forward()
        return cost * forward + self.pace.ending if cost and forward else 0.0

    def reached(self) -> dict[str, float]:
        """The limits that the last candidate has reached."""
        podium = self.podium
        return self.budget.reached(
            candidates=self.candidates, nfe=0, seconds=0, best=podium.best, since_best=podium.since_best
        )
