"""Axes: random search over more than the start noise, for models whose seeds look alike."""

from __future__ import annotations

import math
from itertools import count, cycle

from .errors import SearchError
from .recipe import Operation, Recipe
from .settings import check_at_least, check_shares
from .space import Space
from .types import Plan, Row, Search, finish
from .zero_order import best_of

#: Candidates per round.
ROUND = 8
#: The cosine of a refined candidate's start noise to that of the best; its conditioning noise keeps as much.
CLOSE = 0.9
#: Multiples of these, less their whole parts, fill a square evenly (the R2 sequence of Roberts 2018).
EVEN = {"conditioning": 0.7548776662466927, "cfg": 0.5698402909980532}
#: Why a sampler may not offer an axis.
WHY_NOT = {
    "conditioning": "the guider has no positive conditioning with text embeddings: set it to 0",
    "cfg": "the guider has no single cfg, and its positive conditioning has no guidance value: set it to 0",
    "step_noise": "the sampler draws no noise on its way: turn it off, or choose an ancestral or SDE sampler",
}


def axes(
    space: Space,
    plan: Plan,
    noise: bool = True,
    conditioning: float = 2.0,
    cfg: float = 0.0,
    step_noise: bool = False,
    refine: float = 0.0,
) -> Search:
    """Random search over the start noise and what else candidates may differ in. The user's own candidate comes first.

    Distilled models make nearly the same image of every seed, so that the best of many is hardly better than the first.
    Candidates that differ on other axes part. Each differs on all axes that are on:

    - `noise`: a fresh start noise; off = that of the user's own candidate for all.
    - `conditioning`: noise on the embeddings of the positive conditioning; its strengths are spread evenly over 0 to
      this, in standard deviations of the embeddings. 0 = off.
    - `cfg`: scales are spread evenly over own / (1 + cfg) to own * (1 + cfg), where `own` is the user's cfg, or the
      guidance value of models that have one instead; none is below 1 unless `own` is. 0 = off.
    - `step_noise`: a seed of its own for the noise that a sampler draws on its way. A fresh start noise brings one
      anyway, so this is for candidates that share theirs.

    `refine` (0..1) is the share of every round of 8 that is the best candidate so far, changed on one axis, each in
    turn: 0 = none. Its noises keep most of what they were and never exceed the above together. Rows with different cfg
    or conditioning cannot share a forward and run one after the other.

    Raises SearchError for an axis that the sampler does not offer, and when all are off.
    """
    check_at_least("axes", 0, conditioning=conditioning, cfg=cfg)
    check_shares("axes", refine=refine)
    asked = {"noise": noise, "conditioning": conditioning > 0, "cfg": cfg > 0, "step_noise": step_noise}
    on = [name for name, wanted in asked.items() if wanted]
    if not on:
        raise SearchError("axes: got every axis off; expected at least one, or all candidates would be the same")
    steered = "guidance" if "guidance" in plan.axes else "cfg"
    for name in on:
        if name != "noise" and (steered if name == "cfg" else name) not in plan.axes:
            raise SearchError(f"axes: {name} is on, but {WHY_NOT[name]}")

    def changed(name: str, number: int) -> Operation:
        """The operation that moves candidate `number` along an axis."""
        share = (0.5 + number * EVEN.get(name, 0.0)) % 1
        if name == "noise":
            return {"op": "near", "seed": space.draw(), "cosine": CLOSE}
        if name == "step_noise":
            return {"op": "step_noise", "seed": space.draw()}
        if name == "conditioning":
            return {"op": "conditioning", "seed": space.draw(), "strength": round(conditioning * share, 4)}
        usual, digits = plan.axes[steered], 1 if steered == "guidance" else 2  # as stock's widgets round them
        lowest = max(usual / (1 + cfg), 1.0 if usual >= 1 else 0.0)
        return {"op": steered, "scale": round(lowest + (usual * (1 + cfg) - lowest) * share, digits)}

    [own] = yield from finish(space.fresh(1))
    best, turns, beside = own, cycle(on), [name for name in on if name != "noise"]
    for first in count(1, ROUND):
        rows = []
        for number in range(first, first + ROUND):
            if number - first >= round(ROUND * (1 - refine)):
                row = Row(refined(best.recipe, changed(next(turns), number)), space.first_sigma, parent=best.id)
            else:
                row = space.fresh(1)[0] if noise else Row(own.recipe, space.first_sigma)
                for name in beside:
                    row = Row(row.recipe.then(**changed(name, number)), space.first_sigma)
            rows.append(row)
        best, *rows = yield from finish([best, *rows])  # asked again, because ranks compare only within one pool
        best = best_of([best, *rows]) or best


def refined(recipe: Recipe, change: Operation) -> Recipe:
    """The recipe changed on one axis. Conditioning noise makes way for what is added to it, or it would pile up."""
    if change["op"] != "conditioning":
        return recipe.then(**change)
    kept = [_weaker(each, CLOSE) if each["op"] == "conditioning" else each for each in recipe.operations]
    return Recipe((*kept, _weaker(change, math.sqrt(1 - CLOSE**2))))


def _weaker(operation: Operation, factor: float) -> Operation:
    return {**operation, "strength": round(factor * operation["strength"], 4)}
