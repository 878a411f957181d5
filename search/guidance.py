"""Guidance by lookaheads: every clean estimate of the model is corrected towards where cheap, good images lie."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .types import Row


@dataclass(frozen=True, eq=False)
class LookaheadGuide:
    """Corrects clean estimates by `latents` z with known `rewards` (LiDAR, arXiv 2602.03211).

    The lookaheads stand for all images: given a state x = a * x0 + b * noise, each may be what is under the noise, with
    probability w = softmax(-|x - a z|^2 / 2 b^2). If images were as likely as their reward says, it would be
    w' = softmax(strength * reward - |x - a z|^2 / 2 b^2). The clean estimate moves by `scale` times the difference of
    the two means of z: with scale 1 and many lookaheads it becomes that of the rewarded distribution.
    """

    latents: Tensor  # [n, b, *latent]: the lookaheads, as clean as they end
    rewards: tuple[float, ...]  # standardised
    scale: float
    strength: float  # of one standard deviation of reward
    until: float  # sigma: at it and below, nothing is corrected

    def correct(self, x: Tensor, x0: Tensor, sigma: float, at: tuple[float, float]) -> Tensor:
        """The corrected clean estimate of a state `x` [b, *latent] at `sigma`, where x = a * x0 + b * noise."""
        if sigma <= self.until:
            return x0
        a, b = at
        clean = self.latents.flatten(1).to(x)
        centre = clean.mean(dim=0)
        away = clean - centre  # what all have in common cancels, and would cost digits
        logs = (a * (away @ (x.flatten() - a * centre)) - a**2 / 2 * away.square().sum(dim=1)) / b**2
        rewards = torch.tensor(self.rewards).to(x)
        shift = torch.softmax(self.strength * rewards + logs, dim=0) - torch.softmax(logs, dim=0)
        return x0 + self.scale * (shift @ away).reshape(x0.shape)


def standardised(rewards: Sequence[float]) -> tuple[float, ...]:
    """Rewards by their own mean and standard deviation; all 0 where they are equal."""
    mean, spread = statistics.fmean(rewards), statistics.pstdev(rewards)
    return tuple((reward - mean) / spread if spread > 0 else 0.0 for reward in rewards)


def guide_of(lookaheads: Sequence[Row], scale: float, strength: float, until: float) -> LookaheadGuide | None:
    """The guide that judged rows at their end make; None where they do not tell good from bad.

    `strength` is per number of the latent, because distances grow with it. Rows that could not be judged say nothing.
    """
    rewards = standardised([row.score for row in lookaheads]) if lookaheads else ()
    if not any(rewards):
        return None
    latents = torch.stack([row.x for row in lookaheads if row.x is not None])
    return LookaheadGuide(latents, rewards, scale, strength * latents[0].numel(), until)


def judged(rows: Sequence[Row]) -> list[Row]:
    """The rows with a score."""
    return [row for row in rows if math.isfinite(row.score)]
