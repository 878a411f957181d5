"""Several verifiers made into one: z-scores, mean ranks (Ma et al. 2025, arXiv 2501.09732, sec. 3), sum, worst case.

Z-scores with fixed scales keep a candidate's score when others join the pool; ranks, and scales that are measured on
the pool, need to know nothing beforehand but change with every newcomer.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..search.errors import SearchError
from ..search.judging import Parts, scale_of
from ..search.types import NAN, Verifier

METHODS = ("z_score", "rank_mean", "weighted_sum", "worst_case")
SCALES = ("fixed", "pool")
_VETOED = float("-inf")


@dataclass(frozen=True)
class Member:
    """A verifier in an ensemble, under a name that no other member has. The verifier itself stays as it is."""

    name: str
    verifier: Verifier
    weight: float
    scale: tuple[float, float]
    minimum: float | None

    @property
    def counts(self) -> bool:
        """Whether it has a say: weight 0 records what it says and no more, unless it may veto."""
        return self.weight > 0 or self.minimum is not None

    @property
    def module(self) -> nn.Module | None:
        """The network of the verifier, if it has one."""
        return getattr(self.verifier, "module", None)

    @property
    def differentiable(self) -> bool:
        """Whether a gradient of its score reaches the images."""
        return bool(getattr(self.verifier, "differentiable", False))

    @property
    def needs_prompt(self) -> bool:
        """Whether the verifier can say nothing of an image without a prompt."""
        return bool(getattr(self.verifier, "needs_prompt", True))

    @property
    def early(self) -> tuple[float, ...]:
        """The noise shares at which the verifier wants to see x0 predictions."""
        return tuple(getattr(self.verifier, "early", ()))

    @property
    def notes(self) -> list[str]:
        """What the verifier has to tell the user."""
        return list(getattr(self.verifier, "notes", ()))

    @property
    def features(self) -> Callable[[Tensor], Tensor]:
        """How the verifier embeds images; AttributeError where it does not."""
        features: Callable[[Tensor], Tensor] = self.verifier.features  # type: ignore[attr-defined]
        return features

    def score(self, images: Tensor, prompt: str, **more: Any) -> Tensor:
        """images [B, H, W, 3] in 0..1 -> what the verifier scores them, [B]."""
        return self.verifier.score(images, prompt, **more)


class VerifierEnsemble:
    """One score of several verifiers' scores; bigger is better.

    `method`:
    - "z_score", the weighted mean of z = (score - mean) / sd;
    - "rank_mean", the weighted mean of ranks in the pool: 0 the worst of all, 1 the best, ties share their mean rank;
    - "weighted_sum", the sum of weight * score, whose weights must mind the units (ReNO, arXiv 2406.04312);
    - "worst_case", the lowest z of all members with a weight, so that none can be fooled alone; the size of a weight
      does not matter.

    A z needs a mean and an sd. With `scale` "fixed" they come from `scales` by member name, or else from the verifier;
    without either they are 0 and 1, which is said in `notes`. With "pool" they are those of the candidates so far (z is
    0 where these are fewer than two, or all equal). Ranks and "pool" make the ensemble `pooled`.

    `weights` go with `members` (default 1). A member of weight 0 is recorded and has no say. `vetoes` holds the least
    score that a member lets pass, by its name: below it the score is -inf, and the row takes no part in ranks. Where a
    member with a weight or a veto says NaN, the score is NaN, vetoed or not, and the row takes no part in ranks.

    The second of two members called A becomes "A 2". An ensemble, or any verifier whose score depends on the pool, is
    refused as a member: its own way of combining would be lost. Raises SearchError for it, and for weights, vetoes
    and scales that do not fit.
    """

    def __init__(
        self,
        members: Sequence[Verifier],
        method: str = "z_score",
        weights: Sequence[float] | None = None,
        vetoes: Mapping[str, float] | None = None,
        scales: Mapping[str, tuple[float, float]] | None = None,
        scale: str = "fixed",
    ) -> None:
        for what, got, expected in (("method", method, METHODS), ("scale", scale, SCALES)):
            if got not in expected:
                raise SearchError(f"{what}: got {got!r}; expected one of {', '.join(expected)}")
        weights = [1.0] * len(members) if weights is None else list(weights)
        vetoes, scales = vetoes or {}, scales or {}
        _check(members, weights)
        names = _unique([verifier.name for verifier in members])
        for what, table in (("veto", vetoes), ("scale", scales)):
            for name in table.keys() - set(names):
                raise SearchError(f"{what}: got one for {name!r}; expected one of {', '.join(names)}")
        self.method, self.scale_of = method, scale
        self._notes: list[str] = []
        self.members = [
            Member(name, verifier, float(weight), self._scale(name, verifier, scales), vetoes.get(name))
            for name, verifier, weight in zip(names, members, weights, strict=True)
        ]
        self.name = f"{method} of {', '.join(names)}"

    @property
    def pooled(self) -> bool:
        """Whether a score depends on the whole pool."""
        return self.method == "rank_mean" or (self.uses_scales and self.scale_of == "pool")

    @property
    def uses_scales(self) -> bool:
        """Whether scores are measured from a mean in units of a standard deviation."""
        return self.method in ("z_score", "worst_case")

    @property
    def differentiable(self) -> bool:
        """Whether a gradient of the score reaches the images: through z-scores, and if every member passes it on."""
        return not self.pooled and all(member.differentiable for member in self.members if member.weight)

    @property
    def needs_prompt(self) -> bool:
        """Whether any member can say nothing of an image without a prompt."""
        return any(member.needs_prompt for member in self.members)

    @property
    def notes(self) -> list[str]:
        """What the ensemble and its members have to tell the user."""
        return [*self._notes, *(note for member in self.members for note in member.notes)]

    def without_vetoes(self) -> VerifierEnsemble:
        """The ensemble as it would judge if no member had a veto."""
        lenient = copy(self)
        lenient.members = [replace(member, minimum=None) for member in self.members]
        return lenient

    def combine(self, pool: Sequence[Parts]) -> list[float]:
        """One score per candidate of a pool, each a dict from member name to score."""
        if not pool:
            return []
        table = [[parts[member.name] for member in self.members] for parts in pool]
        scores: list[float] = self._combined(torch.tensor(table, dtype=torch.float64)).tolist()
        return scores

    def score(self, images: Tensor, prompt: str) -> Tensor:
        """images [B, H, W, 3] in 0..1 -> scores float32 [B]; with "rank_mean", the B images are the pool."""
        answers = [member.score(images, prompt).cpu().double() for member in self.members]
        scores = self._combined(torch.stack(answers, dim=1)).float()
        # The gradient of only some of the members would lead astray.
        return scores if self.differentiable else scores.detach()

    def _combined(self, table: Tensor) -> Tensor:
        """Scores [N] of what the members said, [N, members]."""
        unjudged = torch.zeros(len(table), dtype=torch.bool)
        vetoed = torch.zeros_like(unjudged)
        for column, member in zip(table.detach().unbind(dim=1), self.members, strict=True):
            if member.counts:
                unjudged |= column.isnan()
            if member.minimum is not None:
                vetoed |= column < member.minimum
        in_pool = ~(unjudged | vetoed)
        counted = [(column, m) for column, m in zip(table.unbind(dim=1), self.members, strict=True) if m.weight]
        columns = torch.stack([self._comparable(column, member, in_pool) for column, member in counted], dim=1)
        weights = torch.tensor([member.weight for _, member in counted], dtype=table.dtype)
        if self.method == "worst_case":
            total = columns.amin(dim=1)
        elif self.method == "weighted_sum":
            total = (columns * weights).sum(dim=1)
        else:
            total = (columns * weights).sum(dim=1) / weights.sum()
        return total.masked_fill(vetoed, _VETOED).masked_fill(unjudged, NAN)

    def _comparable(self, column: Tensor, member: Member, in_pool: Tensor) -> Tensor:
        """What one member said [N], so that it can be put together with the others."""
        if self.method == "rank_mean":
            return _ranks(column, in_pool)
        if self.method == "weighted_sum":
            return column
        if self.scale_of == "fixed":
            mean, sd = member.scale
            return (column - mean) / sd
        pool = column[in_pool]
        if len(pool) < 2 or bool((pool == pool[0]).all()):
            return torch.zeros_like(column)
        return (column - pool.mean()) / pool.std()

    def _scale(
        self, name: str, verifier: Verifier, scales: Mapping[str, tuple[float, float]]
    ) -> tuple[float, float]:
        scale = scales.get(name) or scale_of(verifier)
        if scale is None:
            if self.uses_scales and self.scale_of == "fixed":
                self._notes.append(
                    f"{name} has no measured scale: its score counts as it is (mean 0, standard deviation 1); "
                    "give it a scale, measure scales on the pool, or use rank_mean"
                )
            return 0.0, 1.0
        mean, sd = scale
        if not (math.isfinite(mean) and math.isfinite(sd) and sd > 0):
            raise SearchError(f"scale of {name}: got mean {mean} and sd {sd}; expected numbers, and an sd above 0")
        return mean, sd


def measured_scale(scores: Tensor | Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation of some scores of one verifier, for an ensemble's `scales`; NaN is left out.

    Raises SearchError when fewer than two are left, or all are equal.
    """
    judged = [float(score) for score in scores if math.isfinite(score)]
    if len(set(judged)) < 2:
        raise SearchError(f"scale: got {len(judged)} finite scores, all equal; expected at least two that differ")
    return statistics.fmean(judged), statistics.stdev(judged)


def _ranks(column: Tensor, in_pool: Tensor) -> Tensor:
    """The rank of each row among those in the pool, 0 (lowest) to 1; ties share their mean, a lone row has 0.5."""
    _, place, count = torch.unique(column[in_pool], return_inverse=True, return_counts=True)
    middle = count.cumsum(dim=0) - (count + 1) / 2
    ranks = torch.full_like(column, NAN)
    last = int(in_pool.sum()) - 1
    ranks[in_pool] = (middle[place] / last if last > 0 else torch.full_like(middle[place], 0.5)).to(column)
    return ranks


def _check(members: Sequence[Verifier], weights: Sequence[float]) -> None:
    if not members:
        raise SearchError("members: got no verifier; wire at least one into the ensemble")
    for verifier in members:
        if getattr(verifier, "members", ()) or getattr(verifier, "pooled", False):
            raise SearchError(
                f"members: {verifier.name} is an ensemble itself or ranks a pool; wire the verifiers in it directly"
            )
    if len(weights) != len(members):
        raise SearchError(f"weights: got {len(weights)} for {len(members)} members; expected one for each")
    for verifier, weight in zip(members, weights, strict=True):
        if not (math.isfinite(weight) and weight >= 0):
            raise SearchError(f"weight of {verifier.name}: got {weight}; expected a number from 0 up")
    if not any(weights):
        raise SearchError("weights: got 0 for every member; expected one above 0")


def _unique(names: Sequence[str]) -> list[str]:
    """The names, with the lowest free number from 2 up put behind those that are taken."""
    taken: list[str] = []
    for name in names:
        free, number = name, 1
        while free in taken or (number > 1 and free in names):
            number += 1
            free = f"{name} {number}"
        taken.append(free)
    return taken
