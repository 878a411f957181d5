"""Estimates with 95 % intervals, best-of-N from recorded candidates, and how much more compute it needs to keep up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np

from ..demo.measure import wilson

#: A number, and the ends of its 95 % interval.
Estimate = tuple[float, float, float]
Z = 1.959964
#: Points at which a factor of compute is looked up, before interpolation.
GRID = 512


def rated(passes: Sequence[bool]) -> Estimate:
    """Pass rate with its Wilson interval."""
    return sum(passes) / len(passes), *wilson(sum(passes), len(passes))


def clustered(values: Sequence[float]) -> Estimate:
    """Mean over prompts with a normal interval; each prompt is one observation. NaN ends where there is only one."""
    n = len(values)
    mean = sum(values) / n
    spread = Z * math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1) / n) if n > 1 else math.nan
    return mean, mean - spread, mean + spread


def matched(first: Sequence[bool], second: Sequence[bool]) -> Estimate:
    """Pass rate of `first` less that of `second` on the same prompts, with the interval of Agresti and Min (2005).

    Half a prompt is added to each of the four cells, so that it does not shrink to nothing where few prompts differ.
    """
    n, better, worse = len(first), 0, 0
    for a, b in zip(first, second, strict=True):
        better, worse = better + (a and not b), worse + (b and not a)
    more, less, total = better + 0.5, worse + 0.5, n + 2
    centre = (more - less) / total
    spread = Z * math.sqrt((more + less) - (more - less) ** 2 / total) / total
    return (better - worse) / n, centre - spread, centre + spread


@cache
def _chances(seeds: int) -> np.ndarray:
    """[n - 1, i - 1]: the chance that the best of n of `seeds` candidates, without replacement, is the i-th lowest."""
    table = np.zeros((seeds, seeds))
    for n in range(1, seeds + 1):
        table[n - 1, n - 1 :] = [math.comb(i - 1, n - 1) / math.comb(seeds, n) for i in range(n, seeds + 1)]
    return table


def of_best(scores: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The expected value of the candidate with the best score of n, [n - 1, prompts] for n = 1, 2, ...

    `scores` and `values` are [prompts, seeds]; the mean is over all subsets of n seeds, which is exact. Where
    candidates have equal scores, later ones count as better.
    """
    order = np.argsort(scores, axis=1, kind="stable")
    return np.asarray(_chances(scores.shape[1]) @ np.take_along_axis(values, order, axis=1).T)


def best_of_n(scores: np.ndarray) -> np.ndarray:
    """The expected best score of n of the seeds [prompts, seeds], [n - 1, prompts] for n = 1, 2, ..."""
    return of_best(scores, scores)


def resamples(prompts: int, rounds: int, seed: int = 0) -> np.ndarray:
    """Weights of a bootstrap over prompts, [1 + rounds, prompts], each row of sum 1; the first is no resample but all
    prompts alike."""
    drawn = np.random.default_rng(seed).multinomial(prompts, np.full(prompts, 1 / prompts), size=rounds)
    return np.concatenate([np.ones((1, prompts)), drawn]) / prompts


def factor(curve: np.ndarray, counts: Sequence[int], target: float) -> float:
    """By what factor best-of-N needs more candidates than `counts` for the mean `target` over these counts.

    `curve` is the mean result of the best of 1, 2, ...; between two it is interpolated, and where it falls again the
    first place that reaches the target is taken. What `curve` does not reach is not extrapolated: inf above its end,
    0 below its beginning (the factor is less than 1 / min(counts) then).
    """
    rising = np.maximum.accumulate(curve)
    places = np.arange(1, len(curve) + 1)
    factors = np.geomspace(1 / min(counts), len(curve) / max(counts), GRID)
    means = np.mean([np.interp(factors * n, places, rising) for n in counts], axis=0)
    at = int(np.searchsorted(means, target))
    if at == GRID:
        return math.inf
    if at == 0:
        return float(factors[0]) if means[0] == target else 0.0
    share = (target - means[at - 1]) / (means[at] - means[at - 1])
    return float(factors[at - 1] * (factors[at] / factors[at - 1]) ** share)


def efficiency(
    results: np.ndarray, curves: Sequence[np.ndarray], counts: Sequence[int], weights: np.ndarray
) -> Estimate:
    """The factor of compute that best-of-N needs for what a method found, with its bootstrap interval over prompts.

    `results` [len(counts), prompts] are a method's at the compute of so many candidates. `curves` [N, prompts] are
    best-of-N's (see `of_best`), one per sampler: at each N the one with the higher mean counts. Method and best-of-N
    share the resampled prompts of `weights` (see `resamples`). Ends that lie outside the curve are inf or 0.
    """
    better = np.max([weights @ curve.T for curve in curves], axis=0)
    targets = (weights @ results.T).mean(axis=1)
    first, *rest = (factor(curve, counts, target) for curve, target in zip(better, targets, strict=True))
    ordered = sorted(rest)
    tail = int(0.025 * len(ordered))
    return (first, ordered[tail], ordered[-1 - tail]) if ordered else (first, math.nan, math.nan)


def bounds(candidates: int, counts: Sequence[int]) -> tuple[float, float]:
    """The least and the largest factor that a curve of so many candidates can show."""
    return 1 / min(counts), candidates / max(counts)


def said(estimate: Estimate, least: float, most: float) -> str:
    """An efficiency as tables show it: what lies beyond the curve is said to, not guessed."""

    def one(number: float) -> str:
        return f"> {most:.3g}" if number == math.inf else f"< {least:.2g}" if number == 0 else f"{number:.2f}"

    middle, low, high = map(one, estimate)
    return f"{middle} [{low}, {high}]"
