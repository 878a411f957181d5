"""Sequential Monte Carlo: particles go down the schedule at random steps; the good ones multiply, the bad ones end."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .dealing import affordable, call, price
from .paths import best_rows
from .resampling import RESAMPLING, effective_size, normalised, top
from .settings import check_at_least, check_choice, check_shares, check_span
from .space import Space
from .transitions import FRESH, parted, transit
from .types import Plan, Search, advance, finish, judge, predict, slope
from .uphill import marked, uphill

POTENTIALS = ("max", "diff", "add", "current")
METHODS = (*RESAMPLING, "top")
TRANSITIONS = (*FRESH, "glass")


def smc(
    space: Space,
    plan: Plan,
    particles: int = 4,
    potential: str = "diff",
    temperature: float = 100.0,
    increase: bool = True,
    raw: bool = False,
    resampling: str = "ssp",
    survivors: float = 0.4,
    ess: float = 0.5,
    start: float = 0.2,
    end: float = 0.95,
    every: float = 0.0,
    transition: str = "ddim",
    eta: float = 1.0,
    rho: float = 0.4,
    inner: int = 5,
    guidance: float = 0.0,
) -> Search:
    """Feynman-Kac steering (arXiv 2501.06848) with the switches of arXiv 2505.23614.

    `particles` fresh noises go down together, by the user's sampler up to the share `start` of the steps, then at
    random steps of the kind `transition` up to `end`, then by the user's sampler to finished images. On the random
    part, at every share `every` of the steps (0 = at each), their x0 predictions are judged, and the population is
    resampled by weights: exp(strength * potential), times the weights since the last resampling. Copies part, by step
    noise of their own. Then it begins again with fresh noises. The user's own seed is rendered first, as stock does.

    The potential of a score r is r ("current"), the best ("max") or the sum ("add") of the lineage's scores, or what
    was gained since the last judgement ("diff"). The strength is `temperature`, or rises to it linearly from `start`
    to `end` (`increase`), because early predictions say little. Unless `raw`, scores are in units of their standard
    deviation within a judgement, pooled over all judgements of the search so far, so that it fits any verifier. What
    cannot be judged has no weight; a look at which nobody can be judged is as if it had not been.

    `resampling` is one of METHODS; "top" lets the best share `survivors` of the particles go on in equal copies (0 =
    the best alone), whatever the temperature. Resampling waits until the effective sample size falls below the share
    `ess` of the particles (1 = never waits). `eta` is the randomness of a transition; "glass" has the correlation
    `rho` of noises instead, and spends `inner` steps of the schedule on each. Few are biased: at 20 steps of a flow
    model 1 makes images of 0.78 of the data's spread, 5 of 0.91 (ddim 0.89). When the budget is in NFE, it is dealt
    out to rounds of equal size, at most `particles` each; 0 makes one round of all that fit (of 8 where the budget is
    not in NFE).

    With `guidance` particles also move: at every random step each x0 prediction goes that strong up the gradient of
    its score, through decoder and verifier and not through the model (see search.uphill), as the proposals of arXiv
    2306.17775 and 2501.05803 do with the model's gradient. Their weights are as without it.
    """
    check_choice("smc", "potential", potential, POTENTIALS)
    check_choice("smc", "resampling", resampling, METHODS)
    check_choice("smc", "transition", transition, TRANSITIONS)
    check_span("smc", start, end)
    check_at_least("smc", 0, temperature=temperature, particles=particles, guidance=guidance)
    check_at_least("smc", 1, inner=inner)
    check_shares("smc", survivors=survivors, ess=ess, every=every, eta=eta, rho=rho)
    if resampling == "top":
        temperature = max(temperature, 1e-9)  # 0 would hide who is best
    stops, judged = stages(plan, start, end, every, inner if transition == "glass" else 1)
    first, last = stops[0], stops[-1]
    spread = Spread()
    yield from finish(space.fresh(1))
    for count in rounds(plan, particles, first, last):
        rows = yield from advance(space.fresh(count), plan.sigmas[: first + 1])
        rows = [marked(row, guidance, plan.sigmas[last]) for row in rows]
        lineages = [Lineage()] * count
        seeds: list[int | None] = [space.draw() for _ in rows]  # of new step noise; None = a row has its own
        for here, there in zip(stops, stops[1:], strict=False):
            rows = yield from predict(rows)
            if guidance > 0:
                rows = yield from slope(rows)
            elif here in judged:
                rows = yield from judge(rows, fresh=False)
            if here in judged and any(math.isfinite(row.score) for row in rows):
                scores = [row.score for row in rows]
                strength = temperature * ((there - first) / (last - first) if increase else 1.0)
                strength /= 1.0 if raw else spread.after(scores)
                lineages = weighed(lineages, potential, scores, strength)
                logs = [lineage.log_weight for lineage in lineages]
                weights = normalised(logs)
                if ess >= 1 or effective_size(weights) < ess * count:
                    if resampling == "top":
                        parents = top(logs, round(survivors * count))
                    else:
                        parents = RESAMPLING[resampling](weights, space.draw())
                    seeds = [seeds[p] if p not in parents[:i] else space.draw() for i, p in enumerate(parents)]
                    rows = [rows[p] for p in parents]
                    lineages = [replace(lineages[p], log_weight=0.0) for p in parents]
            rows = [parted(row, seed) for row, seed in zip(rows, seeds, strict=True)]
            seeds = [None] * count
            moved = yield from transit(rows, plan, plan.sigmas[there], transition, eta, rho, there - here)
            rows = uphill(rows, moved, plan, guidance) if guidance > 0 else moved
        yield from finish(best_rows(rows, count))


@dataclass(frozen=True)
class Lineage:
    """What a particle remembers of the scores on its way, its ancestors' included."""

    best: float = -math.inf
    total: float = 0.0
    energy: float = 0.0  # strength * score of the last judgement
    log_weight: float = 0.0  # since the last resampling

    def weighed(self, potential: str, score: float, strength: float) -> Lineage:
        """The lineage after one more score; one that is not finite takes all its weight."""
        if not math.isfinite(score):
            return replace(self, log_weight=-math.inf)
        best, total, energy = max(self.best, score), self.total + score, strength * score
        gain = {"max": strength * best, "add": strength * total, "diff": energy - self.energy, "current": energy}
        return Lineage(best, total, energy, self.log_weight + gain[potential])


def weighed(lineages: Sequence[Lineage], potential: str, scores: Sequence[float], strength: float) -> list[Lineage]:
    """The lineages after one judgement. Where it leaves nobody any weight, those that it could judge begin afresh: what
    has no weight would never gain any.
    """
    afresh = [replace(one, log_weight=0.0) for one in lineages]
    for before in (lineages, afresh):
        after = [one.weighed(potential, score, strength) for one, score in zip(before, scores, strict=True)]
        if any(math.isfinite(one.log_weight) for one in after):
            return after
    return afresh


class Spread:
    """Standard deviation of the scores within one judgement, pooled over all judgements so far."""

    def __init__(self) -> None:
        self.squares, self.freedom = 0.0, 0

    def after(self, scores: Sequence[float]) -> float:
        """Take in the scores of one judgement and return the spread; 1 while all scores were equal."""
        finite = [score for score in scores if math.isfinite(score)]
        if len(set(finite)) > 1:  # the mean of equal numbers may differ from them by rounding
            mean = sum(finite) / len(finite)
            self.squares += sum((score - mean) ** 2 for score in finite)
        self.freedom += max(0, len(finite) - 1)
        return math.sqrt(self.squares / self.freedom) if self.squares > 0 else 1.0


def stages(plan: Plan, start: float, end: float, every: float, stride: int) -> tuple[list[int], set[int]]:
    """The steps between which transitions lead, and those among them at which particles are judged.

    Looks are at the shares `start`, start + every, ... below `end`, to the nearest step (a half goes up), or at the
    first place after it that transitions lead to; at all of these where `every` is no more than a step.
    """
    steps = len(plan.sigmas) - 1
    count = math.ceil((end - start) / every - 1e-9) if every * steps > 1 else 0
    looks = [nearest((start + i * every) * steps) for i in range(count)]
    last = max([round(end * steps), *(look + 1 for look in looks)])  # copies part on the step after a look
    last = min(last, steps - 1)  # a random step to 0 would leave its noise in the image
    first = min(nearest(start * steps), last)
    stops = [*range(first, last, stride), last]
    later = [[stop for stop in stops[:-1] if stop >= look] for look in looks or stops[:-1]]
    return stops, {found[0] for found in later if found}


def nearest(number: float) -> int:
    """The nearest whole number; a half goes up, where `round` goes to the even one."""
    return math.floor(number + 0.5 + 1e-9)


def rounds(plan: Plan, particles: int, first: int, last: int) -> Iterator[int]:
    """The size of the population of every round: equal ones that spend the NFE budget, if there is one.

    From the step `first` to `last` a particle takes one model call a step, else those of the user's sampler.
    """
    steps = len(plan.sigmas) - 1
    left = affordable(plan) - steps  # the user's own is one
    if left < math.inf:
        particle = price(plan, 0, first) + (last - first) * call(plan) + price(plan, last, steps)
        total = max(1, int(left / particle + 1e-9))
        count = math.ceil(total / particles) if particles else 1
        yield from (total // count + (i < total % count) for i in range(count))
    while True:
        yield particles or 8


#: Settings as papers publish them, on raw scores, and this project's own: `tuned`, and `guided` for scores with a
#: gradient. The steps before `start` and after `end` are the user's sampler's in all of them, where FK, BFS, DAS and
#: SVDD take random steps throughout.
PRESETS: dict[str, dict[str, Any]] = {
    "tuned": {},
    "guided": {
        "particles": 4, "potential": "diff", "temperature": 10.0, "resampling": "ssp", "ess": 0.5, "start": 0.5,
        "every": 0.15, "transition": "ancestral", "guidance": 0.3,
    },
    # arXiv 2501.06848, launch script: lambda 10, DDIM with eta 1, resampling at 20, 40, 60 and 80 % of the steps
    "FK": {
        "particles": 4, "potential": "max", "temperature": 10.0, "increase": False, "raw": True,
        "resampling": "multinomial", "ess": 1.0, "start": 0.2, "end": 0.85, "every": 0.2, "transition": "ddim",
    },
    # arXiv 2505.23614: FK with increasing temperature and SSP resampling
    "BFS": {
        "particles": 4, "potential": "max", "temperature": 10.0, "increase": True, "raw": True,
        "resampling": "ssp", "ess": 1.0, "start": 0.2, "end": 0.85, "every": 0.2, "transition": "ddim",
    },
    # arXiv 2501.05803 without its gradient: every step, when ESS < K / 2; lambda 1 / 0.005 as for aesthetic scores
    "DAS": {
        "particles": 4, "potential": "diff", "temperature": 200.0, "increase": True, "raw": True,
        "resampling": "ssp", "ess": 0.5, "start": 0.0, "end": 0.95, "every": 0.0, "transition": "ddim",
    },
    # arXiv 2408.08252: of M = 20 next states the one with the best x0 prediction, at every step
    "SVDD": {
        "particles": 20, "potential": "current", "temperature": 10.0, "raw": True, "increase": False,
        "resampling": "top", "survivors": 0.0, "ess": 1.0, "start": 0.0, "end": 0.95, "every": 0.0,
        "transition": "ddim",
    },
    # arXiv 2502.11420, on the current state: at every step the best A of A * K go on, here 2 of 4
    "TreeG": {
        "particles": 4, "potential": "current", "temperature": 10.0, "raw": True, "increase": False,
        "resampling": "top", "survivors": 0.5, "ess": 1.0, "start": 0.0, "end": 0.95, "every": 0.0,
        "transition": "ddim",
    },
}  # fmt: skip
