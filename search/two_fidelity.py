"""Two-fidelity search: many noises are rendered cheaply, and the best of them again in full."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache

import torch

from .dealing import LARGEST_ROUND, OPEN_ROUND
from .errors import SearchError
from .paths import best_rows
from .space import Space
from .types import Plan, Row, Search, advance, finish, judge

_GAMES = 1024
#: Whole candidates' worth of the first round where nobody knows yet how long a small scout takes.
FIRST_ROUND = 2


def two_fidelity(space: Space, plan: Plan, effort: float = 0.2, shrink: int = 1, agreement: float = 0.5) -> Search:
    """Best of N in two stages: scouts with a share `effort` of the steps, judged, and the best rendered in full.

    A scout has a candidate's noise. With `shrink` above 1 it also has fewer pixels, by that factor along each side, and
    the low frequencies of that noise (see search.resolution). Scouts never win: the best begin anew from their noise,
    by the user's own sampler and schedule, so a winner has a plain seed. How many are scouted and how many of them are
    rendered is computed from the budget and the rank `agreement` of scouts with full renders, which the report
    measures (see `split`). The user's own seed is rendered first.

    A scout counts its steps in NFE at any size, as every row that enters the model does: what fewer pixels save is
    time, and how much depends on the model and the machine. So `shrink` pays under a limit on seconds, where a scout is
    taken to cost its share of the steps and pixels, and a look.
    """
    if not 0 < effort <= 1 or shrink < 1 or (effort == 1 and shrink == 1) or not 0 <= agreement <= 1:
        raise SearchError(
            f"two-fidelity: got effort={effort:g}, shrink={shrink}, agreement={agreement:g}; expected effort above 0 "
            "and below 1 (1 with a shrink of 2 or more), shrink from 1, agreement from 0 to 1"
        )
    refusal = plan.small_refusal(shrink) if shrink > 1 else None
    if refusal:
        raise SearchError(f"two-fidelity: got shrink={shrink}, but {refusal}; set shrink to 1")
    steps = len(plan.sigmas) - 1
    schedule = plan.coarse(max(1, round(effort * steps)))
    yield from finish(space.fresh(1))
    for scouts, renders in rounds(plan, (len(schedule) - 1) / steps, shrink, agreement):
        if scouts:
            rows = yield from advance(space.scouts(scouts, shrink), schedule)
            rows = best_rows((yield from judge(rows, fresh=False)), renders)
            rows = [Row(row.recipe, plan.sigmas[0], parent=row.id) for row in rows]
        else:
            rows = space.fresh(renders)
        yield from finish(rows)


def rounds(plan: Plan, share: float, shrink: int, agreement: float) -> Iterator[tuple[int, int]]:
    """The scouts, each of a share of the steps, and renders of every round: small ones where time is a limit, and the
    first the smallest if fewer pixels save time, so that each is planned by what those before it took.
    """
    spent, finished = 1.0, 1  # the user's own
    while True:
        left = plan.left_after(spent, finished)
        most = OPEN_ROUND if plan.seconds or left == math.inf else LARGEST_ROUND
        if plan.seconds and shrink > 1 and finished == 1:
            most = FIRST_ROUND
        scouts, renders = split(min(left, most), plan.scout(share, shrink), agreement)
        spent, finished = spent + scouts * share + renders, finished + renders
        yield scouts, renders


@lru_cache(maxsize=64)
def split(budget: float, cost: float, agreement: float) -> tuple[int, int]:
    """How many to scout, and how many of them to render, for a `budget` in whole candidates: (0, n) = no scouts.

    A scout costs `cost` candidates. Scores of scouts and renders are played as Gaussians with the correlation
    `agreement`, and the split whose best render is best in the mean is taken.
    """
    plain = max(1, int(budget))
    most = int(budget - 2 * cost)  # there is no choice among fewer than two scouts
    choices = sorted({round(most * 2 ** (-i / 2)) for i in range(14)} - {0}) if most >= 1 else []
    splits = [(min(int((budget - renders) / cost + 1e-9), 32 * plain), renders) for renders in choices]
    splits = [(0, plain), *((scouts, renders) for scouts, renders in splits if scouts > renders)]
    generator = torch.Generator().manual_seed(1)
    full = torch.randn(_GAMES, max(max(pair) for pair in splits), generator=generator)
    seen = agreement * full + (1 - agreement**2) ** 0.5 * torch.randn(full.shape, generator=generator)

    def value(pair: tuple[int, int]) -> float:
        scouts, renders = pair
        if not scouts:
            return float(full[:, :renders].amax(dim=1).mean())
        chosen = seen[:, :scouts].topk(renders, dim=1).indices
        return float(full.gather(1, chosen).amax(dim=1).mean())

    return max(splits, key=value)
