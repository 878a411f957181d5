"""Search over paths: re-noise good trajectories and run them on from there."""

from __future__ import annotations

import math
from dataclasses import replace

from .errors import SearchError
from .space import Space
from .types import Plan, Row, Search, advance, finish, judge, renoise


def search_over_paths(
    space: Space,
    plan: Plan,
    paths: int = 2,
    width: int = 5,
    start: float = 0.11,
    forward: float = 0.78,
    backward: float = 0.81,
    leg_steps: int = 0,
) -> Search:
    """Paths-N of Ma et al. 2025 (arXiv 2501.09732, section 3 and appendix A.3).

    N `paths` go down to the noise share `start`. Each is re-noised by `width` fresh noises up by `forward`,
    run down by `backward` (> forward) and judged on its x0 prediction; the best N of N x M go on, until the
    schedule's end is reached and all are finished images. Then it begins again with fresh noises.

    Shares are t of the linear interpolant: sigma of a flow model, sigma / (1 + sigma) otherwise. `leg_steps`
    is the number of steps of a backward leg, evenly spaced in t (0 = the steps of the user's own schedule).
    The N first paths are finished too, so the user's own seed always takes part.
    """
    if not 0 <= forward < backward:
        raise SearchError(f"paths: got forward={forward:g}, backward={backward:g}; expected 0 <= forward < backward")
    highest, lowest = plan.time(plan.sigmas[0]), last_share(plan)
    while True:
        share = max(min(start, 0.9 * highest), lowest)  # below the top, or there would be no room to re-noise
        stop = max(plan.sigma(share), plan.sigmas[-1])
        # finished from a sigma of the schedule, so that the user's own seed ends as it does in stock
        fork = min(s for s in plan.sigmas if s >= stop * (1 - 1e-6))
        rows = yield from advance(space.fresh(paths), plan.down(plan.sigmas[0], fork))
        scored = yield from finish(rows)
        rows = [replace(row, id=image.id) for row, image in zip(rows, scored, strict=True)]  # their children's parents
        if fork > stop * (1 + 1e-6):
            rows = yield from advance(rows, plan.down(fork, stop))
        while share > 0:
            # at pure noise nothing of the parent would survive
            top = min(share + forward, 0.99 * highest)
            share = top - backward if top - backward > lowest else 0.0
            wide = [row for row in rows for _ in range(width)]
            rows = yield from renoise(wide, plan.sigma(top), [space.draw() for _ in wide])
            rows = yield from advance(rows, leg(plan, top, share, leg_steps))
            if share > 0:
                rows = best_rows((yield from judge(rows)), paths)
        yield from finish(rows)


def leg(plan: Plan, top: float, bottom: float, steps: int) -> tuple[float, ...]:
    """Sigmas from noise share `top` down to `bottom`; 0 = the end of the schedule."""
    low = plan.sigma(bottom) if bottom > 0 else plan.sigmas[-1]
    if steps == 0:
        return plan.down(plan.sigma(top), low)
    bottom = max(bottom, last_share(plan))
    shares = [top + (bottom - top) * i / steps for i in range(steps)]
    return (*(plan.sigma(share) for share in shares), low)


def last_share(plan: Plan) -> float:
    """The noise share at which the schedule ends."""
    return plan.time(plan.sigmas[-1]) if plan.sigmas[-1] > 0 else 0.0


def best_rows(rows: list[Row], count: int) -> list[Row]:
    """The `count` best rows, best first; rows that could not be judged come last."""
    return sorted(rows, key=lambda r: -r.score if math.isfinite(r.score) else math.inf)[:count]
