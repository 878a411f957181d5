"""Sequential Monte Carlo: particles go down the schedule at random steps, the good ones multiply, the bad ones end."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .errors import SearchError
from .resampling import RESAMPLING, effective_size, normalised, top
from .space import Space
from .transitions import FRESH, glass, parted, random_step
from .types import Plan, Row, Search, advance, finish, judge, predict

POTENTIALS = ("max", "diff", "add", "current")


@dataclass(frozen=True)
class Lineage:
    """What a particle remembers of the scores on its way, its ancestors' included."""

    best: float = -math.inf
    total: float = 0.0
    energy: float = 0.0  # of the last judgement
    log_weight: float = 0.0  # since the last resampling

    def weighed(self, potential: str, score: float, strength: float) -> Lineage:
        """The lineage after one more score; a score that is not finite takes all its weight."""
        best, total = max(self.best, score), self.total + score
        energy = strength * {"max": best, "add": total, "diff": score, "current": score}[potential]
        gain = energy - self.energy if potential == "diff" else energy
        if not math.isfinite(score):
            return replace(self, log_weight=-math.inf)
        return Lineage(best, total, energy, self.log_weight + gain)


class Spread:
    """Standard deviation of the scores within one judgement, pooled over all judgements so far."""

    def __init__(self) -> None:
        self.squares, self.freedom = 0.0, 0

    def see(self, scores: Sequence[float]) -> float:
        """Take in the scores of one judgement and return the spread; 1 while all scores were equal."""
        finite = [score for score in scores if math.isfinite(score)]
        if len(finite) > 1:
            mean = sum(finite) / len(finite)
            self.squares += sum((score - mean) ** 2 for score in finite)
            self.freedom += len(finite) - 1
        return math.sqrt(self.squares / self.freedom) if self.squares > 0 else 1.0


def smc(
    space: Space,
    plan: Plan,
    particles: int = 4,
    potential: str = "max",
    temperature: float = 10.0,
    increase: bool = True,
    raw: bool = False,
    resampling: str = "systematic",
    survivors: int = 1,
    ess: float = 1.0,
    start: float = 0.12,
    end: float = 0.75,
    every: int = 1,
    transition: str = "ancestral",
    eta: float = 1.0,
    rho: float = 0.4,
    inner: int = 1,
) -> Search:
    spread = Spread()
    first, last = stage(plan, start, end)
    stops = [*range(first, last, inner if transition == "glass" else 1), last]
    yield from finish(space.fresh(1))
    for count in rounds(plan, particles):
        rows = yield from advance(space.fresh(count), plan.sigmas[: first + 1])
        lineages = [Lineage()] * count
        seeds: list[int | None] = [space.draw() for _ in rows]
        for stop, (here, there) in enumerate(zip(stops, stops[1:], strict=False)):
            rows = yield from predict(rows)
            if stop % every == 0:
                rows = yield from judge(rows, fresh=False)
                scores = [row.score for row in rows]
                heat = temperature * ((there - first) / (last - first) if increase else 1.0)
                strength = heat if raw else heat / spread.see(scores)
                lineages = [l.weighed(potential, s, strength) for l, s in zip(lineages, scores, strict=True)]
                weights = normalised([lineage.log_weight for lineage in lineages])
                if effective_size(weights) <= ess * count:
                    parents = top(weights, survivors) if resampling == "top" else RESAMPLING[resampling](weights, space.draw())
                    seeds = [seeds[p] if i == parents.index(p) else space.draw() for i, p in enumerate(parents)]
                    rows = [rows[p] for p in parents]
                    lineages = [replace(lineages[p], log_weight=0.0) for p in parents]
            rows = [parted(row, seed) for row, seed in zip(rows, seeds, strict=True)]
            seeds = [None] * count
            if transition == "glass":
                rows = yield from glass(rows, plan, plan.sigmas[there], rho, there - here)
            else:
                rows = [random_step(row, plan, plan.sigmas[there], transition, eta) for row in rows]
        yield from finish(rows)


def stage(plan: Plan, start: float, end: float) -> tuple[int, int]:
    steps = len(plan.sigmas) - 1
    last = min(steps - 1, round(end * steps))
    return min(last, round(start * steps)), last


def rounds(plan: Plan, particles: int) -> Iterator[int]:
    if plan.nfe and plan.candidate_nfe:
        total = max(1, plan.nfe // plan.candidate_nfe - 1)
        parts = max(1, round(total / particles)) if particles else 1
        yield from (total // parts + (i < total % parts) for i in range(parts))
    while True:
        yield particles or 8
