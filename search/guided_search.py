"""Guided search: every x0 prediction on the way is moved a little uphill before the next step."""

from __future__ import annotations

from .errors import SearchError
from .settings import check_at_least, check_choice, check_shares, check_span
from .smc import smc, stages
from .space import Space
from .transitions import FRESH
from .types import Plan, Search


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
    goes through decoder and verifier and not through the model: a step is one model call, as ever (see search.uphill
    for `strength`). Steps are of the kind `transition` (see search.transitions) with randomness `eta`; before and
    after, the user's sampler goes. `images` go down together; then it begins again with fresh noises. The user's own
    seed is rendered first, as stock does. It is SMC with `guidance` that never resamples.
    """
    check_choice("guided", "transition", transition, FRESH)
    check_at_least("guided", 0, strength=strength)
    check_at_least("guided", 1, images=images)
    check_span("guided", start, end)
    check_shares("guided", eta=eta)
    stops, _ = stages(plan, start, end, 0.0, 1)
    if len(stops) < 2:
        raise SearchError(
            f"guided: got start={start:g}, end={end:g}, which of {len(plan.sigmas) - 1} steps leave none to guide (the "
            "last one never is): lower start, raise end or steps, or use Search: Random"
        )
    yield from smc(
        space, plan, images, ess=0.0, start=start, end=end, transition=transition, eta=eta, guidance=strength
    )
