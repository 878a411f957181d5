"""Search over noises: the algorithms and the loop that runs them. Standard library and torch only."""

from __future__ import annotations

from collections.abc import Callable

from .auto import AUTO
from .axes import axes
from .beam import beam
from .budget import Budget
from .depth_first import depth_first
from .errors import SearchError
from .evolution import evolution
from .gradient_search import gradient_search
from .guided_search import guided_search
from .lidar import lidar
from .paths import search_over_paths
from .pcn import pcn
from .pruning import pruned_search
from .random_search import random_search
from .recipe import Recipe
from .report import Evaluation, Kept, SearchReport
from .rollover import rollover
from .run import run
from .smc import smc
from .space import Candidates, Space
from .spectral import spectral
from .trust_region import trust_region
from .two_fidelity import two_fidelity
from .types import Algorithm, Row, Sampler, Search, Verifier
from .watcher import Watcher
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
    "beam": beam,
    "rollover": rollover,
    "depth_first": depth_first,
    "lidar": lidar,
    "two_fidelity": two_fidelity,
    "axes": axes,
    "gradient": gradient_search,
    "guided": guided_search,
}
#: The algorithms that pause rows between the first and the last sigma.
MIDWAY = frozenset({"pruned", "paths", "evolution", "smc", "beam", "rollover", "depth_first", "guided"})
#: The algorithms that follow the gradient of the score by the start noise.
GRADIENT = frozenset({"gradient"})
#: The algorithms that follow the gradient of the score by x0 predictions, whatever their settings.
GUIDED = frozenset({"guided"})
#: The algorithms that hold a score on the way against scores of other moments, whatever their settings.
ACROSS = frozenset({"rollover", "depth_first"})


def algorithm(name: str, **settings: object) -> Algorithm:
    """The algorithm called `name` with its settings. Raises SearchError for an unknown name."""
    if name not in ALGORITHMS:
        raise SearchError(f"algorithm: got {name!r}; expected one of {', '.join(ALGORITHMS)}")
    guides = name in GUIDED or bool(settings.get("guidance"))
    across = name in ACROSS or (name == "smc" and settings.get("potential") == "max")
    return Algorithm(name, ALGORITHMS[name], dict(settings), name in MIDWAY, name in GRADIENT, guides, across)


__all__ = [
    "ACROSS", "ALGORITHMS", "AUTO", "GRADIENT", "GUIDED", "MIDWAY", "Algorithm", "Budget", "Candidates", "Evaluation",
    "Kept", "Recipe", "Row", "Sampler", "SearchError", "SearchReport", "Space", "Verifier", "Watcher", "algorithm",
    "run",
]  # fmt: skip
