"""Best of N after the fact: what verifiers and ensembles would have chosen among candidates whose scores are recorded.

Scores are put together by the driver's own functions, so that ranks and measured scales see the pool that they would
have seen in a search.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..search.judging import Parts, combine, is_pooled
from ..verifiers.ensemble import VerifierEnsemble
from .statistics import Estimate, clustered

Values = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Known:
    """A verifier whose scores are recorded: an ensemble asks for no more than its name and its scale."""

    name: str
    scale: tuple[float, float] | None = None


@dataclass(frozen=True)
class Turn:
    """Where the mean of some curves is highest, and how far their end lies below it."""

    at: int  # the index of the count
    fall: Estimate  # with its 95 % interval over units; above 0 = the curve turns

    @property
    def turned(self) -> bool:
        """Whether the fall is there with 95 % confidence."""
        return self.fall[1] > 0


def ensembles(members: Sequence[Known], methods: Sequence[str] = ("z_score", "rank_mean", "worst_case")) -> list[Any]:
    """The ensembles of `members`, one for each method, with the scales that the verifiers ship with."""
    return [VerifierEnsemble(members, method) for method in methods]  # type: ignore[arg-type]


def looked_at(selector: Any) -> set[str]:
    """The names of the verifiers that a selector goes by; all others are held out."""
    return {member.name for member in getattr(selector, "members", ())} or {str(selector.name)}


def picks(selector: Any, pool: Sequence[Parts], counts: Sequence[int], order: Sequence[int]) -> list[int]:
    """Which of `pool` a selector takes of the first n in `order`, for every n of `counts`; the earliest of equals."""
    shown = [pool[i] for i in order]
    whole = None if is_pooled(selector) else combine(selector, shown)
    found = []
    for count in counts:
        scores = combine(selector, shown[:count]) if whole is None else whole[:count]
        found.append(order[max(range(count), key=lambda i: scores[i] if math.isfinite(scores[i]) else -math.inf)])
    return found


def standardised(scores: Sequence[float]) -> list[float]:
    """Scores of one prompt's candidates in their own standard deviations from their own mean; 0 where all are equal."""
    values = torch.tensor(scores, dtype=torch.float64)
    spread = values.std()
    return ((values - values.mean()) / spread if spread > 0 else torch.zeros_like(values)).tolist()


def curves(
    selector: Any, pools: Sequence[Sequence[Parts]], values: Sequence[Values], counts: Sequence[int], orders: int
) -> dict[str, Tensor]:
    """What a selector's picks are worth: {name in `values`: [prompts, counts]}.

    `values` has a number for every candidate of every prompt's pool. Each entry is the mean over `orders` random orders
    of the pool, the same ones for every selector.
    """
    found = {name: torch.empty(len(pools), len(counts), dtype=torch.float64) for name in values[0]}
    for number, (pool, worth) in enumerate(zip(pools, values, strict=True)):
        rng = random.Random(number)
        chosen = [picks(selector, pool, counts, rng.sample(range(len(pool)), len(pool))) for _ in range(orders)]
        taken = torch.tensor(chosen)
        for name, curve in found.items():
            curve[number] = torch.tensor(worth[name], dtype=torch.float64)[taken].mean(dim=0)
    return found


def turn(curve: Tensor) -> Turn:
    """Where a curve [units, counts] turns.

    The highest point of a noisy mean is partly luck, so each unit's fall is measured from the place where the mean of
    the other half of the units (even or odd) is highest.
    """
    end = curve.shape[1] - 1
    fall = torch.empty(len(curve), dtype=torch.float64)
    for half in (0, 1):
        top = int(curve[1 - half :: 2].mean(dim=0).argmax())
        fall[half::2] = curve[half::2, top] - curve[half::2, end]
    return Turn(int(curve.mean(dim=0).argmax()), clustered(fall.tolist()))


def by_prompt(prompts: Sequence[str], rows: Tensor) -> Tensor:
    """The mean of rows [N, ...] of each prompt, [prompts, ...]: searches for one prompt are no independent units."""
    places: dict[str, list[int]] = {}
    for place, prompt in enumerate(prompts):
        places.setdefault(prompt, []).append(place)
    return torch.stack([rows[each].mean(dim=0) for each in places.values()])
