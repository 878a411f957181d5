"""Zero-order search: walk from a pivot noise to better neighbours."""

from __future__ import annotations

from .space import Space
from .types import Plan, Row, Search, finish


def zero_order(space: Space, plan: Plan, neighbours: int = 4, cosine: float = 0.95) -> Search:
    """ZO-N of Ma et al. 2025 (arXiv 2501.09732, section 3): N `neighbours` of the pivot at a `cosine` to it.

    The best neighbour becomes the pivot; the pivot itself is never rendered again. A round in which no
    neighbour improves banks the pivot (the driver keeps it) and restarts from a fresh noise. A pivot that
    could not be judged (NaN) gives way to any neighbour that could. The pivot is asked about again with its
    ring, because ranks compare only within one pool.
    """
    while True:
        [pivot] = yield from finish(space.fresh(1))
        improved = True
        while improved:
            pivot, *ring = yield from finish([pivot, *(space.near(pivot, cosine) for _ in range(neighbours))])
            best = best_of(ring)
            improved = best is not None and not best.score <= pivot.score
            pivot = best if best is not None and improved else pivot


def best_of(rows: list[Row]) -> Row | None:
    """The row with the highest score, the first among equals; None when none could be judged."""
    return max((row for row in rows if row.score == row.score), key=lambda row: row.score, default=None)
