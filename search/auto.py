"""auto: the algorithm that the benchmarks support for a model, sampler, verifier and budget."""

from __future__ import annotations

from .curves import CURVES
from .pruning import pruned_search
from .random_search import random_search
from .types import Algorithm, Plan

#: Below so many candidates' worth of NFE there is nothing to prune.
FEWEST = 3
#: Verifiers of which it was recorded how early they see the best.
RECORDED = frozenset(name.split(", ")[1] for name in CURVES if ", " in name)


def choose(plan: Plan) -> tuple[Algorithm, str]:
    """The algorithm for a plan, and why. By benchmarks/results/replay_*.md and equal_nfe_*.md.

    Pruned best-of-N is at or above best-of-N on every recorded reward of FLUX.1-dev and SDXL, and keeps the winner's
    plain seed; in the demo world, whose verifiers see little early, it is below. So it is for those rewards and their
    ensembles, by the curve of that model and verifier, or else by the cautious one. It needs rows that can be judged
    on the way, and a budget that ends in model calls or seconds: where candidates are counted, to a number or by
    patience, what is pruned is not one.
    """
    if not plan.pauses:
        return _RANDOM, "this sampler, a patch on the model or the verifier needs whole trajectories"
    whole = plan.nfe / plan.candidate_nfe if plan.nfe and plan.candidate_nfe else 0
    if plan.candidates and not 0 < whole < plan.candidates:
        return _RANDOM, "candidates are counted, not model calls or seconds"
    if not plan.nfe and not plan.seconds:
        return _RANDOM, "patience counts candidates, and neither model calls nor seconds are limited"
    if 0 < whole < FEWEST:
        return _RANDOM, f"max_nfe holds fewer than {FEWEST} candidates"
    unknown = [name for name in plan.verifiers if name not in RECORDED]
    if unknown:
        return _RANDOM, (
            f"how early {' and '.join(unknown)} can tell the best is not known: Measure Curve finds out, for Search: "
            "Pruned"
        )
    known = [f"{plan.family}, {name}" for name in plan.verifiers]  # several verifiers have no curve together
    curve = known[0] if len(known) == 1 and known[0] in CURVES else "cautious"
    pruned = Algorithm("pruned", pruned_search, {"curve": curve}, acts_midway=True)
    return pruned, "model calls or seconds are limited, and candidates can be judged on the way"


_RANDOM = Algorithm("random", random_search)
AUTO = Algorithm("auto", random_search, choose=choose)
