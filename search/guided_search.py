"""Guided search: every x0 prediction on the way is moved a little uphill before the next step."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import torch

from .gradient_search import climbs
from .settings import check_at_least, check_choice, check_shares, check_span
from .smc import rounds, stages
from .space import Space
from .transitions import FRESH, parted, random_step
from .types import Plan, Row, Search, advance, finish, predict, slope


def guided_search(
    space: Space,
    plan: Plan,
    images: int = 4,
    strength: float = 0.2,
    start: float = 0.0,
    end: float = 0.95,
    transition: str = "ancestral",
    eta: float = 1.0,
) -> Search:
    """Manifold-preserving guided diffusion (He et al. 2024, arXiv 2311.16424) of fresh noises, and the best of them.

    From the share `start` of the steps to `end`, every x0 prediction is moved along the gradient of its score, which
    goes through decoder and verifier and not through the model: a step is one model call, as ever. The move has the
    length `strength` * n * |x0|, where n = b / sqrt(a^2 + b^2) for a state a * x0 + b * noise, so that it is large
    where little is settled. Steps are of the kind `transition` (see search.transitions) with randomness `eta`; before
    and after, the user's sampler goes. `images` go down together; then it begins again with fresh noises. The user's
    own seed is rendered first, as stock does.

    An x0 prediction without a score, or whose gradient is zero or not finite, is left as it is.
    """
    check_choice("guided", "transition", transition, FRESH)
    check_at_least("guided", 0, strength=strength)
    check_at_least("guided", 1, images=images)
    check_span("guided", start, end)
    check_shares("guided", eta=eta)
    stops, _ = stages(plan, start, end, 0.0, 1)
    yield from finish(space.fresh(1))
    for count in rounds(plan, images):
        rows = yield from advance(space.fresh(count), plan.sigmas[: stops[0] + 1])
        rows = [guided(row, strength, plan.sigmas[stops[-1]]) for row in rows]
        rows = rows if transition == "ode" else [parted(row, space.draw()) for row in rows]
        for here, there in pairwise(stops):
            rows = yield from predict(rows)
            rows = yield from slope(rows)
            a, b = plan.coefficients(plan.sigmas[here])
            share = strength * b / math.hypot(a, b)
            stepped = [random_step(row, plan, plan.sigmas[there], transition, eta) for row in rows]
            rows = [uphill(row, moved, plan, share) for row, moved in zip(rows, stepped, strict=True)]
        yield from finish(rows)


def guided(row: Row, strength: float, end: float) -> Row:
    """The row with a word in its recipe that it is guided from here on to the sigma `end`."""
    return replace(row, recipe=row.recipe.then(op="uphill", strength=strength, **{"from": row.sigma, "to": end}))


def uphill(row: Row, moved: Row, plan: Plan, share: float) -> Row:
    """`moved` as if it came from an x0 prediction further up its gradient, by `share` of the prediction's norm."""
    assert row.x0 is not None and moved.x is not None
    if not climbs(row.gradient):
        return replace(moved, gradient=None)
    length = share * torch.linalg.vector_norm(row.x0) / torch.linalg.vector_norm(row.gradient)
    a, _ = plan.coefficients(moved.sigma)
    return replace(moved, x=moved.x + a * length * row.gradient.to(moved.x), gradient=None)
