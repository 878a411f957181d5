"""Random search: best of N independent noises."""

from __future__ import annotations

from .space import Space
from .types import Plan, Search, finish


def random_search(space: Space, plan: Plan) -> Search:
    """Fresh noises until the budget ends (random search of Ma et al. 2025, arXiv 2501.09732, section 3)."""
    while True:
        yield from finish(space.fresh(64))
