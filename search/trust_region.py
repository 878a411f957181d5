"""Trust region: steps around the best noise that grow while they succeed and shrink when they fail."""

from __future__ import annotations

import math

from .errors import SearchError
from .space import Space
from .types import Plan, Row, Search, finish
from .zero_order import best_of


def trust_region(
    space: Space,
    plan: Plan,
    starts: int = 8,
    neighbours: int = 4,
    cosine: float = 0.8,
    grow: float = 1.3,
    shrink: float = 0.7,
    smallest: float = 0.99,
) -> Search:
    """Local search on the sphere of noises whose step adapts, as in TuRBO (Eriksson et al. 2019, arXiv 1910.01739).

    The best of `starts` fresh noises is the centre. Each round tries `neighbours` at one angle to it, at first that of
    `cosine`: a better one becomes the centre and the angle grows by `grow` (90 degrees at most), else it shrinks by
    `shrink`. When the angle falls below that of the cosine `smallest`, the region has collapsed: its centre is banked
    (the driver keeps it) and the next region starts from fresh noises. A centre without a score (NaN) gives way to any
    neighbour that has one.
    """
    if not cosine < smallest:
        raise SearchError(
            f"trust region: got cosine={cosine:g}, smallest={smallest:g}; expected cosine below smallest, or every "
            "region would collapse before its first step"
        )
    while True:
        region: list[Row] = yield from finish(space.fresh(starts))
        centre = best_of(region) or region[0]
        angle = math.acos(cosine)
        while angle >= math.acos(smallest):
            ring = [space.near(centre, math.cos(angle)) for _ in range(neighbours)]
            centre, *ring = yield from finish([centre, *ring])  # asked again, because ranks compare within one pool
            best = best_of(ring)
            improved = best is not None and not best.score <= centre.score
            centre = best if best is not None and improved else centre
            angle = min(angle * grow, math.pi / 2) if improved else angle * shrink
