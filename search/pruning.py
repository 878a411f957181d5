"""Pruned best-of-N: begin many candidates, and drop on the way what does not look like a winner."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .curves import curve_of
from .dealing import LARGEST_ROUND, OPEN_ROUND, price
from .halving_plan import halving_plan
from .measuring import Measured
from .paths import best_rows
from .space import Space
from .types import Plan, Search, advance, finish, judge


def pruned_search(
    space: Space,
    plan: Plan,
    curve: str | Sequence[Sequence[float]] = "cautious",
    judge_cost: float = 0.0,
    measured_curve: str = "",
) -> Search:
    """Successive halving of candidates on their x0 predictions (Karnin et al. 2013), with computed cuts.

    As many candidates are begun as the plan for the budget says (see `halving_plan`), the user's own among them, and
    after some steps the best by their x0 predictions go on: those that their last step made anyway, so a look costs no
    NFE. Where a clock may end the search, or no limit on NFE is known, the user's own is finished first: so there is an
    image at any time, and it tells what images and looks take, so how many more the time pays for. `curve` says how
    much can be seen when: a name of search.curves, or its points. `judge_cost` is what decoding and scoring one x0
    prediction costs, in NFE, for plans that weigh it; where time is a limit, what it was seen to take, if that is more.
    `measured_curve` is a measurement on the user's own model (`measuring.Measured` as JSON), used instead of `curve`.
    """
    known = Measured.from_json(measured_curve).curve() if measured_curve.strip() else curve_of(curve)
    steps = len(plan.sigmas) - 1
    spent, finished = 0.0, 0
    if plan.seconds or not plan.nfe or not plan.candidate_nfe:
        own = space.fresh(1)
        if plan.seconds and plan.pauses and steps > 1:  # what a look takes shows too
            own = yield from advance(own, plan.sigmas[: steps // 2 + 1])
            own = yield from judge(own, fresh=False)
        yield from finish(own)
        spent, finished = 1.0, 1
    while True:
        # a sampler that makes two calls in a step makes one in the last, which is left out of what is pruned
        left = plan.left_after(spent, finished) * steps / max(1.0, price(plan, 0, 1))
        budget = round(min(left, LARGEST_ROUND * steps)) if left < math.inf else OPEN_ROUND * steps
        by_clock = plan.left() < plan.whole() - spent
        look = max(judge_cost, round(plan.timed(0.0, 1) * steps, 2) if by_clock else 0.0)
        halving = halving_plan(known, steps, max(budget, steps), look)
        rows, before = space.fresh(halving.first), 0
        for step, keep in halving.cuts:
            spent += len(rows) * price(plan, before, step) / steps
            rows = yield from advance(rows, plan.sigmas[before : step + 1])
            rows = yield from judge(rows, fresh=False)
            in_time = plan.left() / plan.timed((steps - step) / steps, 1)  # so many can still be finished
            rows = best_rows(rows, max(1, int(min(keep, in_time))))
            before = step
        spent += len(rows) * price(plan, before, steps) / steps
        finished += len((yield from finish(rows)))
