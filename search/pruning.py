"""Pruned best-of-N: begin many candidates, and drop on the way what does not look like a winner."""

from __future__ import annotations

from collections.abc import Sequence

from .halving_plan import Curve, halving_plan
from .paths import best_rows
from .space import Space
from .types import Plan, Search, advance, finish, judge

#: One round replaces at most so many candidates of plain best-of-N; a larger budget is spent in several rounds.
LARGEST_ROUND = 64
#: The same where no limit on NFE is known, so that a first result comes soon.
OPEN_ROUND = 16


def pruned_search(
    space: Space, plan: Plan, curve: Sequence[Sequence[float]] | None = None, judge_cost: float = 0.0
) -> Search:
    """Successive halving of candidates on their x0 predictions (Karnin et al. 2013), with computed cuts.

    The user's own candidate is finished first. Of the others, as many are begun as the plan for the budget says (see
    `halving_plan`), and after some steps the best by their x0 predictions go on: those that their last step made
    anyway, so a look costs no NFE. `curve` says how much can be seen when; None is a cautious one. `judge_cost` is what
    decoding and scoring one x0 prediction costs, in NFE, for plans that weigh it.
    """
    known = Curve(tuple((float(share), float(seen)) for share, seen in (curve or CAUTIOUS)))
    steps = len(plan.sigmas) - 1
    yield from finish(space.fresh(1))
    left = round((plan.nfe / plan.candidate_nfe - 1) * steps) if plan.nfe and plan.candidate_nfe else None
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


#: The least that was seen early of three verifiers on two models (search.curves): when in doubt, cut late.
CAUTIOUS = (
    (0.2, 0.14), (0.3, 0.26), (0.4, 0.38), (0.5, 0.44), (0.6, 0.55), (0.7, 0.64), (0.8, 0.72), (0.9, 0.82),
)  # fmt: skip
