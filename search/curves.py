"""How early the best can be seen: curves that were measured, and how to measure one.

A curve belongs to a verifier, a model family and, less, to a sampler; `halving_plan.Curve` says what its numbers are.
The ones here come from the scores of x0 predictions of 100 prompts x 200 seeds x 20 steps at 512 px.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist

import torch
from torch import Tensor

from .errors import SearchError
from .halving_plan import Curve

#: The finally best share of all candidates, whose early scores a curve tells.
BEST = 0.05

CURVES: dict[str, tuple[tuple[float, float], ...]] = {
    # the least that was seen of all below: when in doubt, cut late
    "cautious": (
        (0.2, 0.09), (0.3, 0.23), (0.4, 0.38), (0.5, 0.42), (0.6, 0.53), (0.7, 0.62), (0.8, 0.68), (0.9, 0.78)
    ),
    "FLUX.1-dev, ImageReward": (
        (0.2, 0.22), (0.3, 0.47), (0.4, 0.64), (0.5, 0.76), (0.6, 0.85), (0.7, 0.91), (0.8, 0.94), (0.9, 0.98)
    ),
    "FLUX.1-dev, PickScore": (
        (0.2, 0.09), (0.3, 0.33), (0.4, 0.51), (0.5, 0.61), (0.6, 0.72), (0.7, 0.81), (0.8, 0.89), (0.9, 0.95)
    ),
    "FLUX.1-dev, HPSv2": (
        (0.2, 0.21), (0.3, 0.33), (0.4, 0.47), (0.5, 0.57), (0.6, 0.66), (0.7, 0.72), (0.8, 0.77), (0.9, 0.82)
    ),
    "SDXL, ImageReward": (
        (0.2, 0.25), (0.3, 0.38), (0.4, 0.53), (0.5, 0.64), (0.6, 0.76), (0.7, 0.85), (0.8, 0.90), (0.9, 0.94)
    ),
    "SDXL, PickScore": (
        (0.2, 0.19), (0.3, 0.23), (0.4, 0.39), (0.5, 0.48), (0.6, 0.61), (0.7, 0.69), (0.8, 0.83), (0.9, 0.94)
    ),
    "SDXL, HPSv2": (
        (0.2, 0.14), (0.3, 0.26), (0.4, 0.38), (0.5, 0.42), (0.6, 0.53), (0.7, 0.62), (0.8, 0.68), (0.9, 0.78)
    ),
}  # fmt: skip

#: NFE of a look by model family, through its own VAE and through a small one, by benchmarks/results/look_cost.md. A
#: model that is not known is taken for the dearer one.
LOOK_COSTS = {"FLUX.1-dev": (0.15, 0.01), "SDXL": (0.80, 0.07), "": (0.80, 0.07)}


def curve_of(curve: str | Sequence[Sequence[float]]) -> Curve:
    """The measured curve of that name, or the curve of these points. Raises SearchError for an unknown name."""
    if isinstance(curve, str):
        if curve not in CURVES:
            raise SearchError(f"curve: got {curve!r}; expected one of {', '.join(CURVES)}")
        return Curve(CURVES[curve])
    return Curve(tuple((float(share), float(seen)) for share, seen in curve))


def measured_curve(scores: Tensor, best: float = BEST) -> tuple[tuple[float, float], ...]:
    """The curve of scores [prompts, candidates, steps] of x0 predictions; the last step is the finished image.

    Every prompt's scores at a step become normal scores (the normal quantiles of their ranks). The visibility after a
    step is the mean normal score there of the finally best candidates over their mean normal score at the end. Raises
    SearchError where a prompt has too few candidates to have a best share.
    """
    prompts, candidates, steps = scores.shape
    count = max(1, round(best * candidates))
    if candidates < 4 or steps < 2:
        raise SearchError(f"curve: got {candidates} candidates x {steps} steps; expected at least 4 x 2")
    normal = NormalDist()
    quantiles = torch.tensor([normal.inv_cdf((i + 0.5) / candidates) for i in range(candidates)], dtype=torch.float64)
    places = scores.argsort(dim=1, stable=True).argsort(dim=1)
    normal_scores = quantiles[places]
    winners = places[:, :, -1] >= candidates - count
    seen = normal_scores[winners].reshape(prompts, count, steps).mean(dim=(0, 1))
    seen = (seen / seen[-1]).clamp(-1, 1)
    return tuple(((step + 1) / steps, float(seen[step])) for step in range(steps))
