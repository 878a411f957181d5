"""Search over noises: the algorithms and the loop that runs them. Standard library and torch only."""

from __future__ import annotations

from collections.abc import Callable

from .budget import Budget
from .errors import SearchError
from .evolution import evolution
from .paths import search_over_paths
from .pcn import pcn
from .pruning import pruned_search
from .random_search import random_search
from .recipe import Recipe
from .report import Evaluation, Kept, SearchReport
from .run import Watcher, run
from .smc import smc
from .space import Candidates, Space
from .spectral import spectral
from .trust_region import trust_region
from .types import Algorithm, Row, Sampler, Search, Verifier
from .zero_order import zero_order

#: Every search algorithm by name. Iterated by the tests, so a new one is tested on arrival.
ALGORITHMS: dict[str, Callable[..., Search]] = {
    "random": random_search,
    "pruned": pruned_search,
    "zero_order": zero_order,
    "paths": search_over_paths,
    "trust_region": trust_region,
    "pcn": pcn,
    "spectral": spectral,
    "evolution": evolution,
    "smc": smc,
}
#: The algorithms that pause rows between the first and the last sigma.
MIDWAY = frozenset({"pruned", "paths", "evolution", "smc"})


def algorithm(name: str, **settings: object) -> Algorithm:
    """The algorithm called `name` with its settings. Raises SearchError for an unknown name."""
    if name not in ALGORITHMS:
        raise SearchError(f"algorithm: got {name!r}; expected one of {', '.join(ALGORITHMS)}")
    return Algorithm(name, ALGORITHMS[name], dict(settings), name in MIDWAY)


__all__ = [
    "ALGORITHMS", "MIDWAY", "Algorithm", "Budget", "Candidates", "Evaluation", "Kept", "Recipe", "Row", "Sampler",
    "SearchError", "SearchReport", "Space", "Verifier", "Watcher", "algorithm", "run",
]  # fmt: skip
