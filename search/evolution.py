"""Evolutionary search: generations that mutate the start noise of the best, then the states on their way."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import replace
from itertools import takewhile
from typing import Any

from .paths import best_rows
from .recipe import MIDWAY, Recipe
from .space import Space
from .types import Plan, Request, Row, Search, advance, finish, renoise

WITHOUT_LIMIT = 32  # candidates to plan for where the budget names no number
AT_ONCE = 4  # rows that are under way together where a clock may end the search
States = dict[float, dict[int, Row]]  # sigma -> ledger id of a candidate -> the state that it passed there


def evolution(
    space: Space,
    plan: Plan,
    fresh: float = 0.4,
    elites: int = 3,
    mutation: float = 0.4,
    levels: int = 3,
    lowest: float = 0.4,
    strength: float = 0.2,
) -> Search:
    """EvoSearch (He et al. 2025, arXiv 2505.17618), scaled to the budget.

    A share `fresh` of the budget goes to fresh noises. The next generation mutates the start noises of the best
    `elites`, sqrt(1 - mutation^2) of each and `mutation` of a fresh one, on the sphere. Every later one mutates states
    on the way, at `levels` noise shares evenly spaced from the top (left out) to `lowest`: a state that an elite
    passed `strength` further down is re-noised up to the level and run on, which costs the rest of the way only.
    All children are finished before they are judged; elites live on in every later generation. The generations share
    what the fresh noises leave of the budget equally; after the last, it begins again with fresh noises.
    """
    wanted, fewer_steps_are_cheaper = budget_in_candidates(plan), steps_count(plan)
    ladder = scheduled(plan, levels, lowest, strength)
    part = (1 - fresh) * wanted / (len(ladder) + 1)
    while True:
        states: States = {below: {} for _, below in ladder}
        pool = yield from grow(plan, space.fresh(at_least_two(fresh * wanted)), states)
        parents = fittest(pool, elites)
        cosine = math.sqrt(1 - mutation**2)
        children = [space.near(at_start(parent), cosine) for parent in cycled(parents, part)]
        pool = [*pool, *(yield from grow(plan, children, states))]
        for level, below in ladder:
            pool = yield from finish(pool)  # nothing is rendered again; ranks change as the pool grows
            parents = {sigma: able(pool, states[sigma], elites) for sigma in states}[below]
            share = steps(plan, level) / steps(plan, plan.sigmas[0]) if fewer_steps_are_cheaper else 1.0
            origins = [states[below][row.id] for row in cycled(parents, part / share) if row.id is not None]
            children = yield from renoise(origins, level, [space.draw() for _ in origins])
            pool = [*pool, *(yield from grow(plan, children, states))]


def grow(plan: Plan, rows: list[Row], states: States) -> Generator[Request, Any, list[Row]]:
    """Finish rows, and remember the states that they pass at the sigmas of `states`.

    A few at a time where a clock may end the search: a whole generation that is under way would be lost then.
    """
    size = AT_ONCE if plan.seconds else len(rows)
    images: list[Row] = []
    for i in range(0, len(rows), size):
        images += yield from grown(plan, rows[i : i + size], states)
    return images


def grown(plan: Plan, rows: list[Row], states: States) -> Generator[Request, Any, list[Row]]:
    """The same, all at once."""
    passed: list[list[Row]] = []
    for sigma in states:
        if sigma < rows[0].sigma:
            rows = yield from advance(rows, plan.down(rows[0].sigma, sigma))
            passed.append(rows)
    images: list[Row] = yield from finish(rows)
    for row_states in passed:
        for state, image in zip(row_states, images, strict=True):
            assert image.id is not None
            states[state.sigma][image.id] = replace(state, id=image.id, x0=None)  # its children's parent
    return images


def fittest(rows: list[Row], count: int) -> list[Row]:
    """The `count` best rows, best first; one without a score only where none has one."""
    best = best_rows(rows, count)
    return [row for row in best if math.isfinite(row.score)] or best


def at_start(row: Row) -> Row:
    """A row as it was at its start noise: a pause on its way is nothing that a mutation of that noise could inherit."""
    return replace(row, recipe=Recipe(tuple(takewhile(lambda o: o["op"] not in MIDWAY, row.recipe.operations))))


def able(pool: list[Row], states: dict[int, Row], count: int) -> list[Row]:
    """The `count` best candidates that left a state at a level; the states of all others are let go."""
    best = fittest([row for row in pool if row.id in states], count)
    for id in {*states} - {row.id for row in best}:
        del states[id]
    return best


def budget_in_candidates(plan: Plan) -> float:
    """How many whole candidates the budget pays for."""
    least = min(plan.whole(), plan.candidates or math.inf)
    return least if math.isfinite(least) else WITHOUT_LIMIT


def steps_count(plan: Plan) -> bool:
    """Whether a child that begins further down takes less of the budget: not where candidates are the smaller limit."""
    return plan.nfe > 0 and not 0 < plan.candidates <= plan.whole()


def scheduled(plan: Plan, levels: int, lowest: float, strength: float) -> list[tuple[float, float]]:
    """Pairs of sigmas of the schedule, descending: a level, and where below it the states are kept."""
    highest = plan.time(plan.sigmas[0])
    middle = [sigma for sigma in plan.sigmas if plan.sigmas[0] > sigma > plan.sigmas[-1]]
    with_room = middle[:-1]  # the lowest has no sigma below it where a state could be kept
    pairs = []
    for i in range(1, levels + 1 if with_room else 1):
        share = highest + (lowest - highest) * i / levels
        level = min(with_room, key=lambda sigma: abs(plan.time(sigma) - share))
        under = [sigma for sigma in middle if sigma < level]
        pairs.append((level, min(under, key=lambda sigma: abs(plan.time(sigma) - plan.time(level) + strength))))
    return sorted(dict(pairs).items(), reverse=True)


def steps(plan: Plan, sigma: float) -> int:
    """Steps of the schedule from `sigma` to its end."""
    return len(plan.down(sigma, plan.sigmas[-1])) - 1


def at_least_two(count: float) -> int:
    """A population is two at least."""
    return max(2, round(count))


def cycled(parents: list[Row], count: float) -> list[Row]:
    """`count` parents (one at least), each as often as the others, the best first."""
    return [parents[i % len(parents)] for i in range(max(1, round(count)))]
