"""Preconditioned Crank-Nicolson: a Markov chain over noises that prefers high scores and keeps the Gaussian prior."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .errors import SearchError
from .space import Space
from .types import Plan, Row, Search, finish

DRAWS = 1 << 50  # space.draw() lies in [0, 2**50)


def pcn(
    space: Space, plan: Plan, starts: int = 8, chains: int = 4, cosine: float = 0.9, temperature: float = 0.2
) -> Search:
    """Chains whose stationary law is N(0, I) tilted by exp(score / T) (pCN of Cotter et al. 2013, arXiv 1202.0709).

    A step proposes cosine * x + sqrt(1 - cosine^2) * e with Gaussian e, and is taken with probability
    min(1, exp((score(y) - score(x)) / T)): zero-order search with a rule for when to move. T is `temperature` times
    the standard deviation of the scores of the first `starts` fresh noises, so that it means the same for every
    verifier. The `chains` begin at those noises, drawn with probability proportional to exp(score / T).

    No score (NaN) counts as the lowest: it is left for any score and never moved to from one.
    """
    if not temperature > 0:
        raise SearchError(f"pcn: got temperature={temperature:g}; expected more than 0 (lower climbs, higher wanders)")
    pool: list[Row] = yield from finish(space.fresh(starts))
    scale = temperature * spread(pool)
    states = [pool[drawn(space, [potential(row.score, scale) for row in pool])] for _ in range(chains)]
    while True:
        both: list[Row] = yield from finish([*states, *(space.mix(state, cosine) for state in states)])
        pool = yield from finish(pool)  # nothing is rendered again; ranks change as the pool grows
        scale = temperature * spread(pool)
        states, proposals = both[:chains], both[chains:]
        steps = zip(states, proposals, strict=True)
        states = [y if accepted(space, x.score, y.score, scale) else x for x, y in steps]


def spread(rows: Sequence[Row]) -> float:
    """Standard deviation of the finite scores; 1 where there is none, so that a flat verifier moves freely."""
    scores = [row.score for row in rows if math.isfinite(row.score)]
    if len(set(scores)) < 2:  # the mean of equal numbers may differ from them by rounding
        return 1.0
    mean = sum(scores) / len(scores)
    return math.sqrt(sum((score - mean) ** 2 for score in scores) / len(scores)) or 1.0


def potential(score: float, scale: float) -> float:
    """score / T; minus infinity where there is no score."""
    return score / scale if math.isfinite(score) else -math.inf


def uniform(space: Space) -> float:
    """The next number in [0, 1) of the search's own randomness."""
    return space.draw() / DRAWS


def accepted(space: Space, old: float, new: float, scale: float) -> bool:
    """Metropolis: whether to move from score `old` to score `new`. Always makes one draw."""
    chance = uniform(space)
    before, after = potential(old, scale), potential(new, scale)
    return after >= before or chance < math.exp(after - before)


def drawn(space: Space, potentials: Sequence[float]) -> int:
    """An index with probability proportional to exp(potential); any index where all are minus infinity."""
    highest = max(potentials)
    weights = [1.0 if potential == highest else math.exp(potential - highest) for potential in potentials]
    place = uniform(space) * sum(weights)
    for index, weight in enumerate(weights):
        place -= weight
        if place < 0:
            return index
    return len(weights) - 1
