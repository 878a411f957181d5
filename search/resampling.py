"""Resampling: how many copies each particle of a population leaves, given its weight.

Every method keeps the size of the population. The random ones are unbiased: particle i of K leaves K w_i copies in the
mean. They differ in how far the counts scatter around that, which is what costs a small population its diversity.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch


def normalised(log_weights: Sequence[float]) -> list[float]:
    """Weights that sum to 1. NaN and -inf weigh nothing; when that leaves nothing, all weigh the same."""
    finite = [w for w in log_weights if math.isfinite(w)]
    if not finite:
        return [1 / len(log_weights)] * len(log_weights)
    top = max(finite)
    weights = [math.exp(w - top) if math.isfinite(w) else 0.0 for w in log_weights]
    total = sum(weights)
    return [w / total for w in weights]


def effective_size(weights: Sequence[float]) -> float:
    """Kish's effective sample size, 1 / sum of squares: K for equal weights, 1 when one particle has all."""
    return 1 / sum(w * w for w in weights)


def multinomial(weights: Sequence[float], seed: int) -> list[int]:
    """K independent draws (FK steering, arXiv 2501.06848): the plain method, and the noisiest."""
    return _at(weights, _uniforms(len(weights), seed))


def systematic(weights: Sequence[float], seed: int) -> list[int]:
    """A comb of K teeth with one random offset: each count is K w_i rounded down or up."""
    [offset] = _uniforms(1, seed)
    count = len(weights)
    return _at(weights, [(i + offset) / count for i in range(count)])


def ssp(weights: Sequence[float], seed: int) -> list[int]:
    """Srinivasan sampling (Gerber, Chopin and Whiteley 2019, arXiv 1707.01845): each count is K w_i rounded, unbiased.

    Whole copies are given out first. The fractions that are left meet in pairs: one of the two is driven to 0 or 1,
    by a chance that leaves both means as they are, and is settled; the other meets the next fraction.
    """
    count = len(weights)
    copies = [math.floor(count * w + 1e-12) for w in weights]
    left = [max(0.0, count * w - c) for w, c in zip(weights, copies, strict=True)]
    open_one = 0
    for other, uniform in zip(range(1, count), _uniforms(count - 1, seed), strict=True):
        a, b = left[open_one], left[other]
        up, down = min(b, 1 - a), min(a, 1 - b)  # what a may gain from b, and what it may lose to b
        if up + down > 0 and uniform < down / (up + down):
            a, b = a + up, b - up
        else:
            a, b = a - down, b + down
        left[open_one], left[other] = a, b
        if not _settled(b):
            open_one = other
    copies = [c + round(fraction) for c, fraction in zip(copies, left, strict=True)]
    heaviest = max(range(count), key=lambda i: weights[i])
    copies[heaviest] += count - sum(copies)  # rounding of the last fraction alone
    return [i for i, c in enumerate(copies) for _ in range(c)]


def top(values: Sequence[float], survivors: int) -> list[int]:
    """The best `survivors` particles share the population equally: arg max with one, a beam with more.

    A value that is not finite goes on only where none is.
    """
    finite = [i for i, value in enumerate(values) if math.isfinite(value)] or list(range(len(values)))
    order = sorted(finite, key=lambda i: -values[i] if math.isfinite(values[i]) else 0.0)[: max(1, survivors)]
    return sorted(order[i % len(order)] for i in range(len(values)))


#: Random methods by name: (weights, seed) -> the index of the parent of each new particle, ascending.
RESAMPLING: dict[str, Callable[[Sequence[float], int], list[int]]] = {
    "systematic": systematic,
    "ssp": ssp,
    "multinomial": multinomial,
}


def _uniforms(count: int, seed: int) -> list[float]:
    generator = torch.Generator("cpu").manual_seed(seed)
    drawn: list[float] = torch.rand(count, generator=generator, dtype=torch.float64).tolist()
    return drawn


def _at(weights: Sequence[float], places: Sequence[float]) -> list[int]:
    """The particle at each place of 0..1, when the weights lie end to end; never one without weight."""
    ends = torch.tensor(weights, dtype=torch.float64).cumsum(0)
    found = torch.searchsorted(ends / ends[-1], torch.tensor(places, dtype=torch.float64), right=True)
    last = max(i for i, w in enumerate(weights) if w > 0)
    return sorted(min(int(i), last) for i in found)


def _settled(fraction: float) -> bool:
    return fraction < 1e-9 or fraction > 1 - 1e-9
