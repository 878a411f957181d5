"""Beam search: at every random step each beam goes on as the best of its children, and the worst beams end."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from itertools import pairwise

from .dealing import affordable, call, next_share, price
from .paths import best_rows
from .resampling import normalised
from .settings import check_at_least, check_choice, check_shares, check_span
from .smc import TRANSITIONS, Spread, stages
from .space import Space
from .transitions import parted, transit
from .types import Plan, Row, Search, advance, finish, judge

#: What is left of the beams that end on the way, at a share u (0..1) of the random steps; o is the oversampling.
SHRINKING: dict[str, Callable[[float, float], float]] = {
    "constant": lambda u, o: 1.0,
    "exponential": lambda u, o: (o ** (1 - u) - 1) / (o - 1),
    "linear": lambda u, o: 1 - u,
    "quadratic": lambda u, o: (1 - u) ** 2,
    "sigmoid": lambda u, o: 1 / (1 + math.exp(10 * (u - 0.5))),
}
#: Probability that a step is wide, at a share u of the random steps; n is their number.
EXPANSION: dict[str, Callable[[float, int], float]] = {
    "never": lambda u, n: 0.0,
    "always": lambda u, n: 1.0,
    "early": lambda u, n: float(u < 0.5),
    "linear": lambda u, n: min(1.0, u + 10 / n),
    "exponential": lambda u, n: 1 - math.exp(-3 * u),
}


def beam(
    space: Space,
    plan: Plan,
    beams: int = 1,
    width: int = 3,
    oversample: int = 4,
    shrinking: str = "exponential",
    expansion: str = "never",
    wide: float = 2.0,
    replace: float = 0.0,
    start: float = 0.2,
    end: float = 0.95,
    transition: str = "ancestral",
    eta: float = 1.0,
    rho: float = 0.4,
    inner: int = 5,
) -> Search:
    """SVDD (arXiv 2408.08252) with the schedules of DSearch (arXiv 2503.02039).

    `oversample` times `beams` fresh noises go by the user's sampler up to the share `start` of the steps, then at
    random steps of the kind `transition` (see search.transitions; `eta`, `rho` and `inner` as in smc) up to `end`. At
    each random step every beam draws `width` children and goes on as the one with the best x0 prediction, whose model
    call is its next step too. The worst beams end on the way, as `shrinking` says, until `beams` are left at `end`,
    which the user's sampler finishes. Then it begins again with fresh noises. The user's own seed is rendered first,
    as stock does.

    A wide step has `wide` times as many children, and more by the ratio of the beams at `start` to those at work, so
    that the model calls of the beams that ended go to the others. `expansion` says which steps are wide: none, all,
    those of the first half, or by the probabilities of DSearch, which rise towards the end. `replace` is the share of
    the beams (rounded down) whose worst are replaced before each step by draws from the others, in proportion to
    exp(score) with scores in units of their standard deviation (DSearch-R).

    When the budget is in NFE, it is dealt out to rounds of equal size, and the numbers of children are scaled so that
    each round spends its share. A share too small for one beam with one child per step buys fresh candidates.
    """
    check_choice("beam", "shrinking", shrinking, SHRINKING)
    check_choice("beam", "expansion", expansion, EXPANSION)
    check_choice("beam", "transition", transition, TRANSITIONS)
    check_at_least("beam", 1, beams=beams, width=width, oversample=oversample, wide=wide, inner=inner)
    check_span("beam", start, end)
    check_shares("beam", replace=replace, eta=eta, rho=rho)
    steps = len(plan.sigmas) - 1
    stops, _ = stages(plan, start, end, 0.0, inner if transition == "glass" else 1)
    moves = len(stops) - 1
    chances = [EXPANSION[expansion](i / moves, moves) for i in range(moves)]
    full = schedule(beams, oversample, shrinking, moves)
    expected = [width * (1 + c * (wide * full[0] / n - 1)) for c, n in zip(chances, full, strict=False)]
    spread = Spread()
    yield from finish(space.fresh(1))
    left = affordable(plan) - steps
    while True:
        share = next_share(left, cost(plan, stops, full, expected))
        options = [(n, oversample) for n in range(beams, 0, -1)] + [(1, n) for n in range(oversample - 1, 0, -1)]
        fitting = (schedule(*option, shrinking, moves) for option in options)
        counts = next((c for c in fitting if cost(plan, stops, c, [1] * moves) <= share), [])
        if not counts or not moves:
            bought = max(1, int(share / steps + 1e-9))
            left -= bought * steps
            yield from finish(space.fresh(bought))
            continue
        opened = [space.draw() / 2**50 < chance for chance in chances]
        widths = [width * (wide * counts[0] / n if o else 1) for o, n in zip(opened, counts, strict=False)]
        numbers = scaled(plan, stops, counts, widths, share)
        left -= cost(plan, stops, counts, numbers)
        rows = yield from advance(space.fresh(counts[0]), plan.sigmas[: stops[0] + 1])
        rows = best_rows((yield from judge(rows)), counts[0])
        for (here, there), number, kept in zip(pairwise(stops), numbers, counts[1:], strict=True):
            rows = replaced(rows, int(replace * len(rows)), spread, space)
            children = [parted(row, space.draw()) for row in rows for _ in range(number)]
            children = yield from transit(children, plan, plan.sigmas[there], transition, eta, rho, there - here)
            children = yield from judge(children)
            families = [children[i : i + number] for i in range(0, len(children), number)]
            rows = best_rows([best_rows(family, 1)[0] for family in families], kept)
        yield from finish(rows)


def schedule(beams: int, oversample: int, shrinking: str, moves: int) -> list[int]:
    """How many beams enter each of the `moves` random steps, and last how many are finished."""
    left = [SHRINKING[shrinking](i / moves, oversample) if oversample > 1 else 0.0 for i in range(moves)]
    return [*(beams + round(beams * (oversample - 1) * share) for share in left), beams]


def cost(plan: Plan, stops: Sequence[int], counts: Sequence[int], widths: Sequence[float]) -> float:
    """Steps of one candidate that a round takes: the way to the first random step and a look, children, the rest."""
    children = sum(n * w * (b - a) for n, w, (a, b) in zip(counts, widths, pairwise(stops), strict=False))
    opening, rest = price(plan, 0, stops[0]) + call(plan), price(plan, stops[-1], len(plan.sigmas) - 1)
    return counts[0] * opening + children * call(plan) + counts[-1] * rest


def scaled(plan: Plan, stops: Sequence[int], counts: Sequence[int], widths: Sequence[float], share: float) -> list[int]:
    """Children per beam at every random step: in proportion to `widths`, one at least; the round takes `share`."""
    fixed = cost(plan, stops, counts, [0] * len(widths))
    factor = (share - fixed) / (cost(plan, stops, counts, widths) - fixed)
    left, found = share - fixed, []
    prices = [n * (b - a) * call(plan) for n, (a, b) in zip(counts, pairwise(stops), strict=False)]
    owed = 0.0
    for i, (each, width) in enumerate(zip(prices, widths, strict=True)):
        owed += factor * width * each
        spare = left - sum(prices[i + 1 :])  # every later step has one child at least
        number = max(1, int(min(owed, spare) / each + 1e-9))
        owed, left = owed - number * each, left - number * each
        found.append(number)
    return found


def replaced(rows: list[Row], count: int, spread: Spread, space: Space) -> list[Row]:
    """Rows, best first, with draws from the others in the place of the `count` worst; the best is never replaced."""
    if count == 0:
        return rows
    unit = spread.after([row.score for row in rows])
    others = rows[: max(1, len(rows) - count)]
    weights = normalised([row.score / unit for row in others])
    return [*others, *random.Random(space.draw()).choices(others, weights, k=len(rows) - len(others))]
