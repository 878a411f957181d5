"""Do the verifiers of a search agree? Rank correlations between members, and the held-out gain beside the searched one.

A search climbs its own verifier, errors and all. Two signs tell whether the image became better or only its score:
how alike the members of an ensemble rank the candidates, and what a verifier that was never asked makes of the winner.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the report shows what is found here
    from .report import Evaluation

#: Fewer candidates than this say nothing about a verifier.
ENOUGH = 8


@dataclass(frozen=True)
class Agreement:
    """Spearman's rank correlation of two verifiers over the finished candidates: 1 the same order, -1 the opposite."""

    first: str
    second: str
    correlation: float  # NaN where one of them ranks all candidates alike


@dataclass(frozen=True)
class Gain:
    """How far the winner lies above the candidates' mean, in their standard deviations, searched and held out.

    `ratio` (held out over searched) is what is left of the gain on a verifier that was not optimised: near 1 the search
    found better images, near 0 or below it pleased its own verifier only. NaN: cannot be said.
    """

    held_out_name: str
    searched: float
    held_out: float

    @property
    def ratio(self) -> float:
        """held_out / searched."""
        return self.held_out / self.searched if self.searched > 0 else math.nan


@dataclass(frozen=True)
class Scouting:
    """How well cheap trials told the scores of full renders: Spearman's rank correlation over those rendered.

    Only the best scouts are rendered, and among them it is lower than among all: alike scores are harder to rank.
    """

    scouts: int
    rendered: int
    correlation: float  # NaN where there are fewer than two, or one side ranks all alike


def agreements(judged: Sequence[Evaluation]) -> list[Agreement]:
    """Every pair of members, and every member with every held-out verifier, over judged candidates."""
    if len(judged) < 3:
        return []
    members = {name: [e.parts[name] for e in judged] for name in judged[0].parts}
    held_out = {f"{name} (held out)": [e.held_out[name] for e in judged] for name in judged[0].held_out}
    pairs = [*combinations(members.items(), 2), *((m, h) for m in members.items() for h in held_out.items())]
    return [Agreement(a, b, rank_correlation(x, y)) for (a, x), (b, y) in pairs]


def gains(best: Evaluation, judged: Sequence[Evaluation]) -> list[Gain]:
    """The winner's gain on each held-out verifier beside its gain on the searched score."""
    if len(judged) < 3:
        return []
    searched = _deviation(best.score, [e.score for e in judged])
    return [
        Gain(name, searched, _deviation(best.held_out[name], [e.held_out[name] for e in judged]))
        for name in best.held_out
    ]


def scouting(evaluations: Sequence[Evaluation]) -> Scouting | None:
    """The scouts among all evaluations of a search beside the candidates that grew from them; None without any."""
    scouts = {e.id: e for e in evaluations if e.scout}
    rendered = [e for e in evaluations if e.can_win and e.parent in scouts]
    if not rendered:
        return None
    before = [scouts[e.parent].score for e in rendered if e.parent is not None]
    return Scouting(len(scouts), len(rendered), rank_correlation(before, [e.score for e in rendered]))


def warnings(leads: Sequence[Evaluation], judged: Sequence[Evaluation]) -> list[str]:
    """Sentences for the user when a held-out score fell while the searched one rose.

    `leads` are the candidates that were the best when they came. That a held-out score fell between the first and the
    last of them is a matter of luck half of the time; that it also fell below the median of all candidates is less so.
    """
    if len(judged) < ENOUGH or len(leads) < 2:
        return []
    first, last = leads[0], leads[-1]
    said = []
    for gain in gains(last, judged):
        name = gain.held_out_name
        before, after = first.held_out[name], last.held_out[name]
        middle = statistics.median([e.held_out[name] for e in judged if math.isfinite(e.held_out[name])] or [math.nan])
        if after < min(before, middle):
            said.append(
                f"the searched score rose from {first.score:.4g} to {last.score:.4g}, but held-out {name} fell from "
                f"{before:.4g} to {after:.4g}, below the median of all candidates ({middle:.4g}): the search may "
                f"please its own verifier only; put {name} or another verifier into the ensemble"
            )
    return said


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's rho; ties share their mean rank; pairs with a number that is not finite are left out."""
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if math.isfinite(a) and math.isfinite(b)]
    a, b = (mean_ranks([pair[i] for pair in pairs]) for i in (0, 1))
    if len(pairs) < 2 or len(set(a)) < 2 or len(set(b)) < 2:
        return math.nan
    return statistics.correlation(a, b)


def mean_ranks(values: Sequence[float]) -> list[float]:
    """The place of each value among all, 0 the lowest; equal ones share their mean place."""
    places: dict[float, list[int]] = {}
    for place, value in enumerate(sorted(values)):
        places.setdefault(value, []).append(place)
    return [statistics.fmean(places[value]) for value in values]


def _deviation(value: float, values: Sequence[float]) -> float:
    known = [v for v in values if math.isfinite(v)]
    if not math.isfinite(value) or len(set(known)) < 2:
        return math.nan
    return (value - statistics.fmean(known)) / statistics.stdev(known)
