"""Probe: whether seeds differ enough for a search over noises to pay, from the candidates of a finished search.

Best of N gains what N draws of the score have at their top: under a normal law the deviation of the scores of one
prompt times E[max of N standard normals]. Distilled models make nearly the same image of every seed; then that
deviation is small, and no search over noises finds more than a few candidates do.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

import torch
from torch import Tensor
from torch.nn import functional

from .distinct import SIDE
from .errors import SearchError
from .report import Evaluation, SearchReport

#: Fewer seeds than this say nothing.
FEWEST = 4
COUNTS = (4, 16, 64)
#: Below this deviation of one prompt's scores, in that of the verifier's scale, seeds score alike. In the demo world
#: (benchmarks/seed_probe.py) prompts lie above it where seeds differ, and mostly below where they are made to collapse.
SCORES_DIFFER = 0.3
#: Below this root mean square difference (16 x 16 fields, colours 0..1) two pictures look alike; measured there too.
PICTURES_DIFFER = 0.1


@dataclass(frozen=True)
class Probe:
    """What the seeds of one search say of further seeds."""

    seeds: int
    spread: float  # standard deviation of their scores
    share: float | None  # of the verifiers' scores, in the verifiers' own deviations; None where no scale is known
    apart: float | None  # root mean square difference of two pictures; None where fewer than two were kept
    pooled: bool  # scores are ranks in the pool: they have no size
    survivors: bool  # the others were dropped on the way

    def gain(self, count: int) -> float:
        """What the best of `count` seeds is expected to score above a single one; NaN for ranks."""
        return math.nan if self.pooled else self.spread * expected_top(count)

    @property
    def alike(self) -> bool | None:
        """Whether seeds score alike, by the verifiers' own scales, or else whether they look alike; None = unknown."""
        if self.share is not None:
            return self.share < SCORES_DIFFER
        return None if self.apart is None else self.apart < PICTURES_DIFFER

    @property
    def collapsed(self) -> bool:
        """Whether seeds make nearly one image: they score alike and, as far as it is known, look alike."""
        looks = self.apart is None or self.apart < PICTURES_DIFFER
        return bool(self.alike) and looks and not self.survivors

    @property
    def verdict(self) -> str:
        """One sentence: what to do."""
        if self.alike is None:
            return "Unknown: the verifier has no measured scale, and fewer than two pictures were kept (raise top_k)."
        if not self.alike:
            return "Seeds differ enough: a search over noises pays."
        if self.survivors:
            return "Unknown: these seeds are the survivors of pruning, which score alike; probe a Search: Random."
        if self.collapsed:
            return "Seeds collapse: use Search: Axes, or a higher denoise for image to image."
        return "Seeds look different and score alike: this verifier cannot tell them apart, or all of them please it."

    @property
    def text(self) -> str:
        """The verdict and the numbers behind it."""
        low, high = (self.spread * factor for factor in interval(self.seeds))
        numbers = f"{self.seeds} seeds; their scores deviate by {self.spread:.3g} (90 %: {low:.3g} to {high:.3g})"
        lines = [self.verdict, numbers]
        if self.share is not None:
            lines[-1] += f", {self.share:.2f} of the verifier's own scale (alike below {SCORES_DIFFER:g})"
        if self.apart is not None:
            lines.append(f"pictures differ by {self.apart:.3f} (alike below {PICTURES_DIFFER:g})")
        if not self.pooled:
            gains = ", ".join(f"{self.gain(count):+.3g} at {count}" for count in COUNTS)
            lines.append(f"expected gain of the best over one seed: {gains}")
        return "\n".join(lines)


def probe(report: SearchReport) -> Probe:
    """What the seeds of a report say. Raises SearchError when fewer than 4 of them were finished and judged.

    Only candidates whose start noise is fresh count: neighbours of others, and images that the search acted on, differ
    less or more than seeds do. Images that were only scored are taken to be of one seed each. Pictures are those that
    the report kept, the best ones.
    """
    seeds = [e for e in report.finished if math.isfinite(e.score) and _is_fresh(e)]
    if len(seeds) < FEWEST:
        raise SearchError(
            f"report: got {len(seeds)} judged candidates with fresh noises; expected at least {FEWEST}: wire the "
            "report of a Search: Random with more candidates"
        )
    scales = report.settings.get("scales", {})
    deviations = [statistics.stdev(e.parts[name] for e in seeds) / scale for name, scale in scales.items()]
    ids = {e.id for e in seeds}
    pictures = [kept.picture for kept in report.top if kept.evaluation.id in ids]
    return Probe(
        len(seeds),
        statistics.stdev(e.score for e in seeds),
        statistics.fmean(deviations) if deviations else None,
        distance(pictures) if len(pictures) > 1 else None,
        bool(report.settings.get("pooled")),
        any(e.candidate is None for e in report.evaluations),
    )


def collapse(report: SearchReport) -> list[str]:
    """The verdict for the notes of a report, where its seeds collapse; nothing where they do not, or cannot be told."""
    if sum(math.isfinite(e.score) and _is_fresh(e) for e in report.finished) < FEWEST:
        return []
    found = probe(report)
    return [found.verdict] if found.collapsed else []


def _is_fresh(evaluation: Evaluation) -> bool:
    kinds = {operation["op"] for operation in evaluation.recipe}
    return kinds <= {"seed", "given", "near"} and (evaluation.seed is not None or evaluation.parent is None)


def distance(pictures: Sequence[Tensor]) -> float:
    """The mean over pairs of the root mean square difference of pictures [b, (T,) H, W, 3], seen as 16 x 16 fields."""
    small = torch.stack([_fields(images).flatten() for images in pictures]).double()
    apart = torch.pdist(small) / math.sqrt(small.shape[1])
    return float(apart.mean())


def _fields(images: Tensor) -> Tensor:
    flat = images.reshape(-1, *images.shape[-3:]).float()
    return functional.adaptive_avg_pool2d(flat.movedim(-1, 1), SIDE)


@cache
def expected_top(count: int) -> float:
    """E[max of `count` independent standard normals]: the integral of x d(Phi(x) ** count)."""
    points = torch.linspace(-9.0, 9.0, 18_001, dtype=torch.float64)
    below = torch.special.ndtr(points) ** count
    return float(((points[1:] + points[:-1]) / 2 * below.diff()).sum())


def interval(count: int, confidence: float = 0.9) -> tuple[float, float]:
    """What the standard deviation of `count` normal draws is to be multiplied by for the ends of its interval.

    With the chi-square quantiles of Wilson and Hilferty (1931): right to 4 % from 4 draws on.
    """
    free = count - 1
    ends = []
    for side in (1 + confidence, 1 - confidence):
        z = NormalDist().inv_cdf(side / 2)
        ends.append(math.sqrt(1 / (1 - 2 / (9 * free) + z * math.sqrt(2 / (9 * free))) ** 3))
    return ends[0], ends[1]
