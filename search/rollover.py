"""Rollover budget forcing: a step takes the first child that beats all before it, and what it spared is rolled over."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise

from .dealing import affordable, call, next_share, price
from .paths import best_rows
from .settings import check_at_least, check_choice, check_shares, check_span
from .smc import TRANSITIONS, stages
from .space import Space
from .transitions import parted, transit
from .types import Plan, Row, Search, advance, finish, judge


@dataclass
class Chain:
    """A row on its way down, the best score on that way, and what it may spend on children (steps of one candidate)."""

    row: Row
    record: float
    purse: float = 0.0
    children: list[Row] = field(default_factory=list)  # of the step at hand

    def seeks(self, price: float) -> bool:
        """Whether to draw another child at `price`: the first always, then while none beats the record and it can pay.

        NaN beats nothing.
        """
        beaten = any(child.score > self.record for child in self.children)
        return not self.children or (not beaten and self.purse >= price)

    def moved(self) -> Chain:
        """The chain at its best child."""
        [best] = best_rows(self.children, 1)
        return Chain(best, max(self.record, best.score if best.score == best.score else -math.inf), self.purse)


def rollover(
    space: Space,
    plan: Plan,
    chains: int = 2,
    starts: int = 8,
    quota: float = 4.0,
    start: float = 0.0,
    end: float = 0.95,
    transition: str = "ancestral",
    eta: float = 1.0,
    rho: float = 0.4,
    inner: int = 5,
) -> Search:
    """Rollover Budget Forcing (Kim et al. 2025, arXiv 2503.19385).

    Each of the `chains` begins at the best of `starts` fresh noises, which go by the user's sampler up to the share
    `start` of the steps (0 = pure noise) and are judged by one model call each. The score of the best is the chain's
    record. Then it takes random steps of the kind `transition` (see search.transitions; `eta`, `rho` and `inner` as in
    smc) up to `end`. A step has a `quota` of children. They are drawn one after the other: the first whose x0
    prediction scores above the record is accepted at once and sets the record, and what is left of the quota is rolled
    over to the next step. When the quota is spent without one, the best child is taken. That model call is the child's
    next step too. The user's sampler finishes the chains, and it begins again with fresh noises. The chains only share
    model calls. The user's own seed is rendered first, as stock does.

    When the budget is in NFE, it is dealt out to rounds of equal size, and the quota is what the steps of a round can
    pay for; what the last step of a round spares goes to the rounds after it. A round that could not pay for one child
    per step has fewer chains or starts, and the smallest gives way to fresh candidates.
    """
    check_choice("rollover", "transition", transition, TRANSITIONS)
    check_at_least("rollover", 1, chains=chains, starts=starts, quota=quota, inner=inner)
    check_span("rollover", start, end)
    check_shares("rollover", eta=eta, rho=rho)
    steps = len(plan.sigmas) - 1
    stops, _ = stages(plan, start, end, 0.0, inner if transition == "glass" else 1)
    first, last = stops[0], stops[-1]
    each = call(plan)
    least = (last - first) * each  # one child per step

    def fixed(noises: int) -> float:
        """Steps of one candidate that a chain takes besides its children."""
        return noises * (price(plan, 0, first) + each) + price(plan, last, steps)

    options = [(n, starts) for n in range(chains, 0, -1)] + [(1, n) for n in range(starts - 1, 0, -1)]
    yield from finish(space.fresh(1))
    left = affordable(plan) - steps
    while True:
        share = next_share(left, chains * (fixed(starts) + quota * least))
        able = (o for o in options if first < last and o[0] * (fixed(o[1]) + least) <= share)
        count, noises = next(able, (0, 0))
        if count == 0:
            bought = max(1, int(share / steps + 1e-9))
            left -= bought * steps
            yield from finish(space.fresh(bought))
            continue
        rows = yield from advance(space.fresh(count * noises), plan.sigmas[: first + 1])
        rows = yield from judge(rows)
        heads = [best_rows(rows[i::count], 1)[0] for i in range(count)]
        line = [Chain(row, row.score if math.isfinite(row.score) else -math.inf) for row in heads]
        per_step = (share / count - fixed(noises)) / (last - first)
        if left == math.inf:  # nothing was dealt out: the quota itself, to the last child whatever is lost in rounding
            per_step = quota * each * (1 + 1e-9)
        for here, there in pairwise(stops):
            for chain in line:
                chain.purse += per_step * (there - here)
            child_price = (there - here) * each
            while seeking := [chain for chain in line if chain.seeks(child_price)]:
                children = [parted(chain.row, space.draw()) for chain in seeking]
                children = yield from transit(children, plan, plan.sigmas[there], transition, eta, rho, there - here)
                children = yield from judge(children)
                for chain, child in zip(seeking, children, strict=True):
                    chain.children.append(child)
                    chain.purse -= child_price
            line = [chain.moved() for chain in line]
        left -= share - sum(chain.purse for chain in line)
        yield from finish([chain.row for chain in line])
