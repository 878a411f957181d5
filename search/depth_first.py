"""Depth-first search: an image goes down; where it does not look good enough, it goes back up and tries again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from .dealing import affordable, price
from .paths import best_rows
from .settings import check_at_least, check_choice, check_finite, check_shares, check_span
from .space import Space
from .types import Plan, Row, Search, advance, finish, judge, renoise

THRESHOLDS = ("quantile", "absolute")


@dataclass
class Particle:
    """A row on its way, the steps that it has done, and what it was on its earlier ways down."""

    row: Row
    step: int = 0
    turns: int = 0
    seen: dict[int, list[Row]] = field(default_factory=dict)  # step -> its states there, judged


def depth_first(
    space: Space,
    plan: Plan,
    particles: int = 4,
    threshold: str = "quantile",
    quantile: float = 0.3,
    lowest: float = 0.0,
    highest: float = 0.0,
    start: float = 0.4,
    end: float = 0.8,
    every: float = 0.2,
    back: float = 0.4,
    backtracks: int = 4,
) -> Search:
    """DFS with a threshold (arXiv 2505.23614).

    A particle is a fresh noise that goes down by the user's sampler. At the share `start` of the steps, and every share
    `every` of them up to `end`, the x0 prediction that its last step made is judged. Below the threshold the state is
    re-noised up by the share `back` of the steps, with noise of its own, and goes down again; all the way up, it is a
    fresh noise. A particle turns back `backtracks` times at most; where it fails after that, the best of its states at
    that step goes on. `particles` of them work side by side (1 = the paper's; more share model calls, and the scores
    that they are compared with); when all are finished images, the next begin. The user's own seed is rendered first,
    as stock does.

    The threshold "quantile" is relative, so that it fits any verifier: the `quantile` (0..1) of all scores that this
    search has seen at that step, those of the moment included, by linear interpolation. "absolute" is a score: from
    `lowest` at the first look to `highest` at the last, linear in steps. What cannot be judged, or is vetoed, fails;
    where nothing at all could be judged at that step so far, it tells nothing, and all pass.

    When the budget is in NFE, a particle turns back only while enough is left to finish them all.
    """
    check_choice("depth_first", "threshold", threshold, THRESHOLDS)
    check_span("depth_first", start, end)
    check_shares("depth_first", quantile=quantile, every=every, back=back)
    check_at_least("depth_first", 1, particles=particles)
    check_at_least("depth_first", 0, backtracks=backtracks)
    check_finite("depth_first", lowest=lowest, highest=highest)
    steps = len(plan.sigmas) - 1
    stops = looks(steps, start, end, every)
    scores: dict[int, list[float]] = {stop: [] for stop in stops}

    def demanded(stop: int) -> float:
        if threshold == "quantile":
            return quantile_of(scores[stop], quantile)
        return lowest + (highest - lowest) * (stop - stops[0]) / max(1, stops[-1] - stops[0])

    def passes(score: float, stop: int) -> bool:
        if math.isfinite(score):
            return score >= demanded(stop)
        return not any(map(math.isfinite, scores[stop]))

    yield from finish(space.fresh(1))
    left = affordable(plan) - steps
    while True:
        group = [Particle(row) for row in space.fresh(max(1, int(min(particles, left / steps + 1e-9))))]
        left -= len(group) * steps
        while ahead := [p for p in group if any(stop > p.step for stop in stops)]:
            step = min(p.step for p in ahead)
            moving = [p for p in ahead if p.step == step]
            stop = min(s for s in stops if s > step)
            rows = yield from advance([p.row for p in moving], plan.sigmas[step : stop + 1])
            rows = yield from judge(rows, fresh=False)
            scores[stop] += [row.score for row in rows]
            top = max(0, stop - max(1, round(back * steps)))
            again = price(plan, top, stop)
            turning = []
            for particle, row in zip(moving, rows, strict=True):
                particle.row, particle.step = row, stop
                particle.seen.setdefault(stop, []).append(row)
                if passes(row.score, stop):
                    continue
                if particle.turns < backtracks and left >= again:
                    left -= again
                    turning.append(particle)
                else:
                    [particle.row] = best_rows(particle.seen[stop], 1)
            if turning:
                if top == 0:
                    rows = space.fresh(len(turning))
                else:
                    seeds = [space.draw() for _ in turning]
                    rows = yield from renoise([p.row for p in turning], plan.sigmas[top], seeds)
                for particle, row in zip(turning, rows, strict=True):
                    particle.row, particle.step, particle.turns = row, top, particle.turns + 1
        yield from finish([p.row for p in group])


def looks(steps: int, start: float, end: float, every: float) -> list[int]:
    """The steps after which particles are judged, ascending; never before the first step or after the last."""
    spacing = max(every * steps, 1.0)
    count = int((end - start) * steps / spacing + 1e-9) + 1
    return sorted({round(start * steps + i * spacing) for i in range(count)} & {*range(1, steps)})


def quantile_of(scores: Sequence[float], quantile: float) -> float:
    """The quantile of the scores that are finite; -inf when none is."""
    finite = torch.tensor([score for score in scores if math.isfinite(score)], dtype=torch.float64)
    return float(finite.quantile(quantile)) if len(finite) else -math.inf
