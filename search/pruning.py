"""Pruned best-of-N: begin many candidates, and drop on the way what does not look like a winner."""

from __future__ import annotations

from collections.abc import Sequence

from .curves import curve_of
from .dealing import LARGEST_ROUND, OPEN_ROUND
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
    NFE. Where a clock may end the search, or no limit on NFE is known, the user's own is finished first, so that there
    is an image at any time. `curve` says how much can be seen when: a name of search.curves, or its points.
    `judge_cost` is what decoding and scoring one x0 prediction costs, in NFE, for plans that weigh it.
    `measured_curve` is a measurement on the user's own model (`measuring.Measured` as JSON), used instead of `curve`.
    """
    known = Measured.from_json(measured_curve).curve() if measured_curve.strip() else curve_of(curve)
    steps = len(plan.sigmas) - 1
    left = round(plan.nfe / plan.candidate_nfe * steps) if plan.nfe and plan.candidate_nfe else None
    if left is None or plan.seconds:
        yield from finish(space.fresh(1))
        left = None if left is None else left - steps
    while True:
        budget = OPEN_ROUND * steps if left is None else min(left, LARGEST_ROUND * steps)
        halving = halving_plan(known, steps, max(budget, steps), judge_cost)
        left = None if left is None else left - round(halving.cost(steps))
        rows, before = space.fresh(halving.first), 0
        for step, keep in halving.cuts:
            rows = yield from advance(rows, plan.sigmas[before : step + 1])
            rows = best_rows((yield from judge(rows, fresh=False)), keep)
            before = step
        yield from finish(rows)
