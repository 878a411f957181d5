"""Which candidates to drop when: plans for pruned best-of-N, computed from how early a verifier knows the best.

A plan starts `first` candidates and cuts them down at some steps: "after step 7 keep 12, after step 11 keep 4". What a
cut is worth depends on how well an x0 prediction's score tells the final one. That is a `Curve`; a plan is found by
playing candidates whose scores follow the curve, a Gaussian Markov chain from the first step to the last, with
hundreds of plans of the same cost, and then with the best of these on fresh candidates. In half of the games the curve
is a worse one, because it differs from prompt to prompt and cutting too early costs more than cutting too late.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from .errors import SearchError

#: A cut after so many steps, and how many candidates go on.
Cut = tuple[int, int]

#: More than this many times the candidates of plain best-of-N are never started: a curve may be wrong.
MOST_STARTED = 1.8
#: Where cuts may lie, as shares of the steps.
PLACES = (0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85)
#: In half of the games visibility is raised to this power.
_WORSE = 1.8
_POOLS, _FINALISTS, _FINAL_POOLS = 64, 24, 384


@dataclass(frozen=True)
class Curve:
    """How much of the best final scores can be seen early: (share of the steps done, visibility), rising to (1, 1).

    Visibility is the mean normal score that the x0 predictions of the finally best candidates have among all
    candidates of their prompt, over their mean normal score at the end: 0 says that the best look like any other, 1
    that they can be told already. For Gaussian scores it is the correlation with the final score; for real ones it is
    lower, because the best of many differ by little.
    """

    points: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        shares = [share for share, _ in self.points]
        if not self.points or sorted(set(shares)) != shares or not 0 < shares[0] <= shares[-1] <= 1:
            raise SearchError(f"curve: got shares {shares}; expected shares of the steps in 0..1, rising")
        if not all(-1 <= seen <= 1 for _, seen in self.points):
            raise SearchError(f"curve: got {self.points}; expected visibilities of at most 1")

    def at(self, share: float) -> float:
        """Visibility after a share of the steps, linear between points, in 0.02..1."""
        points = [(0.0, 0.0), *self.points, (1.0, 1.0)]
        for (left, low), (right, high) in pairwise(points):
            if left <= share <= right and right > left:
                return min(1.0, max(0.02, low + (high - low) * (share - left) / (right - left)))
        return 1.0


@dataclass(frozen=True)
class HalvingPlan:
    """Start `first` candidates; at each cut the best go on to the end or to the next cut."""

    first: int
    cuts: tuple[Cut, ...] = ()

    def cost(self, steps: int, judge_cost: float = 0.0) -> float:
        """Steps of all candidates together; `judge_cost` is that of one x0 prediction's decode and score."""
        spent, before, rows = 0.0, 0, self.first
        for step, keep in self.cuts:
            spent += rows * (step - before + judge_cost)
            before, rows = step, keep
        return spent + rows * (steps - before)


@lru_cache(maxsize=64)
def halving_plan(curve: Curve, steps: int, budget: int, judge_cost: float = 0.0) -> HalvingPlan:
    """The plan for `budget` steps in all that finds the best final score, by the curve.

    `steps` is what one candidate takes. Plain best-of-N is among the plans that are compared, so a curve that says
    nothing early leads to no cut.
    """
    whole = max(1, budget // steps)
    plain = HalvingPlan(whole)
    if whole < 2 or steps < 4:
        return plain
    places = sorted({round(share * steps) for share in PLACES} - {0, steps})
    plans = [plain, *_plans(steps, budget, whole, places, judge_cost)]
    scored = _values(plans, _played(curve, steps, places, plans, _POOLS, seed=1))
    order = sorted(range(len(plans)), key=lambda i: -scored[i])[:_FINALISTS]
    finalists = [plain, *(plans[i] for i in order)]
    final = _values(finalists, _played(curve, steps, places, finalists, _FINAL_POOLS, seed=2))
    return finalists[max(range(len(finalists)), key=final.__getitem__)]


def _plans(steps: int, budget: int, whole: int, places: Sequence[int], judge_cost: float) -> list[HalvingPlan]:
    """All plans of one or two cuts on a grid that cost at most `budget`, each with as many candidates as it can."""
    plans = []
    for i, early in enumerate(places):
        for keep in sorted({max(1, round(whole * share)) for share in (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)}):
            fewer = sorted({max(1, round(keep * share)) for share in (0.33, 0.5, 0.67)} - {keep})
            later = [(late, few) for late in places[i + 1 :] for few in fewer]
            for cuts in [((early, keep),), *(((early, keep), cut) for cut in later)]:
                rest = HalvingPlan(0, cuts).cost(steps, judge_cost)
                first = min(int((budget - rest) / (early + judge_cost)), int(MOST_STARTED * whole))
                if first > keep:
                    plans.append(HalvingPlan(first, cuts))
    return plans


def _played(
    curve: Curve, steps: int, places: Sequence[int], plans: Sequence[HalvingPlan], pools: int, seed: int
) -> dict[int, Tensor]:
    """Scores [pools, candidates] after every place and at the end: a Gaussian Markov chain that follows the curve."""
    generator = torch.Generator().manual_seed(seed)
    shape = pools, max(plan.first for plan in plans)
    power = torch.where(torch.arange(pools) % 2 == 0, 1.0, _WORSE)[:, None]
    now, seen = torch.randn(shape, generator=generator), torch.ones(pools, 1)
    scores = {steps: now}
    for place in reversed(places):
        visibility = torch.minimum(torch.tensor(curve.at(place / steps)) ** power, seen)
        kept = visibility / seen
        now = kept * now + (1 - kept**2).sqrt() * torch.randn(shape, generator=generator)
        scores[place], seen = now, visibility
    return scores


def _values(plans: Sequence[HalvingPlan], scores: dict[int, Tensor]) -> list[float]:
    """The mean final score of every plan's winner."""
    end = scores[max(scores)]
    values = []
    for plan in plans:
        alive = torch.arange(plan.first).expand(len(end), -1)
        for step, keep in plan.cuts:
            alive = alive.gather(1, scores[step].gather(1, alive).topk(keep, dim=1).indices)
        values.append(float(end.gather(1, alive).amax(dim=1).mean()))
    return values
