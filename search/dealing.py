"""Dealing: how the NFE budget is dealt out to the rounds of a search that begins again with fresh noises.

Amounts are in steps of one candidate: what a whole candidate takes, over the steps of the schedule.
"""

from __future__ import annotations

import math

from .types import Plan

#: One round replaces at most so many candidates of plain best-of-N; a larger budget is spent in several rounds.
LARGEST_ROUND = 64
#: The same where no limit on NFE is known, so that a first result comes soon.
OPEN_ROUND = 16


def affordable(plan: Plan) -> float:
    """What the NFE budget pays for; infinite without one, or where the price of a candidate is not known."""
    return plan.nfe / plan.candidate_nfe * (len(plan.sigmas) - 1) if plan.nfe and plan.candidate_nfe else math.inf


def price(plan: Plan, first: int, last: int) -> float:
    """What the user's sampler takes for a candidate from the step `first` to the step `last`."""
    nfe, steps = plan.cost(plan.sigmas[first : last + 1]), len(plan.sigmas) - 1
    return nfe * steps / plan.candidate_nfe if nfe is not None and plan.candidate_nfe else last - first


def call(plan: Plan) -> float:
    """What one model call for a candidate takes, as a look or a random step does: 1, or less where the user's sampler
    makes several in a step.
    """
    return plan.call_nfe * (len(plan.sigmas) - 1) / plan.candidate_nfe if plan.candidate_nfe else 1.0


def next_share(left: float, wanted: float) -> float:
    """What the next round may spend: rounds as near to `wanted` as equal shares of what is `left` allow.

    `wanted` itself where nothing is left or known: then the driver ends the search where it must.
    """
    return left / max(1, round(left / wanted)) if 0 < left < math.inf else wanted
