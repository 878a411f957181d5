"""LiDAR: cheap images of many noises are judged, and then guide the user's own sampler to where the good ones lie."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from .errors import SearchError
from .guidance import LookaheadGuide, guide_of, judged
from .settings import check_at_least
from .space import Space
from .types import Plan, Row, Search, advance, finish, judge

#: More lookaheads than this are not made: each is held in memory, and more help little.
MOST = 256
#: Lookaheads of a round where no limit on NFE is known, so that a first result comes soon.
OPEN_ROUND = 16
#: Guided candidates that are asked for at once.
AT_ONCE = 64


def lidar(
    space: Space,
    plan: Plan,
    steps: int = 5,
    share: float = 0.4,
    scale: float = 12.5,
    strength: float = 0.3,
    until: float = 0.3,
) -> Search:
    """Lookahead sample reward guidance (LiDAR, arXiv 2602.03211), and best of N of what it makes.

    Fresh noises are rendered in `steps` steps each and judged: the lookaheads, which never win. Then other fresh noises
    are rendered by the user's sampler, whose every clean estimate is corrected towards the good lookaheads near it (see
    search.guidance), while the share of noise is above `until`. `scale` is how far, and `strength` how much one
    standard deviation of the lookaheads' scores counts, per number of the latent: 0.3 is the paper's 5,000 for latents
    of 4 x 64 x 64. The user's own seed is rendered first, as stock does.

    Lookaheads take a `share` of the budget, two of them at least and MOST at most, and leave enough for one candidate;
    where two and a candidate are too much, all are plain candidates. Where it names no number of NFE or seconds, or the
    price of a candidate is not known, they come in rounds, and each round's candidates are guided by all so far.
    """
    _check(plan, steps, share, scale, strength, until)
    schedule = plan.coarse(steps)
    pool: list[Row] = []
    yield from finish(space.fresh(1))
    for lookaheads, candidates in rounds(plan, (len(schedule) - 1) / (len(plan.sigmas) - 1), share):
        if lookaheads:
            rows = yield from advance(space.scouts(lookaheads), schedule)
            pool += judged((yield from judge(rows, fresh=False)))
        guide = guide_of(pool, scale, strength, plan.sigma(until))
        rows = space.fresh(candidates)
        if guide:
            told = {"steps": len(schedule) - 1, "scale": scale, "strength": strength, "until": until}
            rows = [guided(row, guide, pool, told) for row in rows]
        if rows:
            yield from finish(rows)


def guided(row: Row, guide: LookaheadGuide, lookaheads: list[Row], told: dict[str, float]) -> Row:
    """The row under a guide, whose recipe names the noises of the lookaheads and the settings `told`."""
    seeds = [int(each.recipe.operations[-1]["seed"]) for each in lookaheads]
    return replace(row, recipe=row.recipe.then(op="guide", seeds=seeds, **told), guide=guide)


def rounds(plan: Plan, cost: float, share: float) -> Iterator[tuple[int, int]]:
    """How many lookaheads, each of a share `cost` of the steps, and then how many candidates."""
    made = 0
    while (left := plan.left_after(1 + made * cost, 1)) < math.inf:
        price = plan.scout(cost)
        room = int((left - 1) / price + 1e-9)  # beside one candidate
        wanted = min(MOST - made, max(2, round(share * (left + made * price) / price)) - made, room)
        if made + wanted < 2 or wanted < 1:
            break
        # a few at a time where time is a limit: the next are planned by what they took
        lookaheads = min(wanted, OPEN_ROUND) if plan.seconds else wanted
        made += lookaheads
        yield lookaheads, 0
    while left < math.inf:
        yield 0, AT_ONCE
    candidates = max(1, round(OPEN_ROUND * cost * (1 - share) / share))
    for _ in range(MOST // OPEN_ROUND):
        yield OPEN_ROUND, candidates
    while True:
        yield 0, candidates


def _check(plan: Plan, steps: int, share: float, scale: float, strength: float, until: float) -> None:
    check_at_least("lidar", 1, steps=steps)
    check_at_least("lidar", 0, scale=scale, strength=strength)
    if not 0 < share < 1 or not 0 <= until < 1:
        raise SearchError(
            f"lidar: got share={share:g}, until={until:g}; expected share between 0 and 1, until from 0 to less than 1"
        )
    if plan.sigmas[0] <= plan.sigma(until):
        raise SearchError(
            f"lidar: got until={until:g}, but the schedule starts at a noise share of {plan.time(plan.sigmas[0]):.3g}, "
            "so nothing would be guided; expected less: lower until, raise denoise, or use Search: Random"
        )
    if plan.sigmas[-1] > 0:
        raise SearchError(
            f"lidar: got SIGMAS that end at {plan.sigmas[-1]:g}, so no lookahead would be a clean image; expected 0: "
            "wire SIGMAS that end there, or use Search: Random"
        )
