"""Spectral search: the cross-entropy method on the low-frequency band of the noise."""

from __future__ import annotations

import math

from .paths import best_rows
from .space import Space
from .types import Plan, Row, Search, finish

Shares = dict[int, float]  # how much of each seed's Gaussian band; OWN stands for the base noise's band
OWN = -1


def spectral(
    space: Space,
    plan: Plan,
    starts: int = 8,
    band: float = 0.25,
    population: int = 8,
    elites: int = 3,
    rate: float = 1.0,
    smallest: float = 0.2,
) -> Search:
    """Cross-entropy search of the low frequencies of one noise, as in SES (arXiv 2602.03208).

    The best of `starts` fresh noises is the base and lends its high frequencies to everything after it. Its `band`
    (the lowest share of the cosine frequencies along each axis, which decides the layout) is drawn anew, `population`
    times a round, from a Gaussian whose mean moves by `rate` to the mean of the best `elites` so far. Its standard
    deviation is what the mean leaves of unit variance, sqrt(1 - |mean|^2 / d), so every sample is as large as white
    noise, and the spread shrinks by itself as the elites agree. (SES fits a variance to each coefficient; that of a
    few elites is mostly noise and lets the norm grow.) Below a deviation of `smallest` the best is banked (the driver
    keeps it) and another base takes over.
    """
    while True:
        base, *_ = best_rows((yield from finish(space.fresh(starts))), 1)
        best: list[Row] = [base]
        mean: Shares = {}
        while (deviation := math.sqrt(max(0.0, 1 - size(mean)))) > smallest:
            drawn = [{**mean, space.draw(): deviation} for _ in range(population)]
            wide = [space.band(base, band, each.pop(OWN, 0.0), each) for each in drawn]
            done = yield from finish([*best, *wide])
            best = [row for row in best_rows(done, elites) if math.isfinite(row.score)] or [base]
            mean = moved(mean, average([shares(row, base) for row in best]), rate)


def shares(row: Row, base: Row) -> Shares:
    """What the band of a sample is made of."""
    if row.id == base.id:
        return {OWN: 1.0}
    last = row.recipe.operations[-1]
    return {OWN: last["keep"], **dict(zip(last["seeds"], last["weights"], strict=True))}


def size(mean: Shares) -> float:
    """Squared length per coefficient of a mix of independent unit Gaussian bands."""
    return sum(share**2 for share in mean.values())


def average(mixes: list[Shares]) -> Shares:
    """The mean of several mixes."""
    return {key: sum(mix.get(key, 0.0) for mix in mixes) / len(mixes) for mix in mixes for key in mix}


def moved(mean: Shares, towards: Shares, rate: float) -> Shares:
    """`mean`, moved by `rate` (0..1) towards another one."""
    keys = {**mean, **towards}
    return {key: (1 - rate) * mean.get(key, 0.0) + rate * towards.get(key, 0.0) for key in keys}
