"""How a set of made pictures compares with true ones, in the features of some network: what mode collapse shows in."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..verifiers.fid_statistics import Statistics, frechet_distance, statistics_of
from .statistics import Estimate, Z

#: Which neighbour's distance is the radius of a ball: 3 in the paper of precision and recall, 5 in that of coverage.
NEIGHBOUR, COVERAGE_NEIGHBOUR = 3, 5


def distances(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distances [A, B] of rows [A, D] and [B, D], in float64 and without cancellation."""
    return torch.cdist(a.double(), b.double(), compute_mode="donot_use_mm_for_euclid_dist")


def precision_recall(made: Tensor, true: Tensor, k: int = NEIGHBOUR) -> tuple[float, float]:
    """Improved precision and recall (Kynkaanniemi et al. 2019, arXiv 1904.06991) of features [M, D] and [T, D].

    A set covers the balls around its members that reach as far as the k-th nearest other member. Precision is the
    share of made pictures in what the true ones cover, recall the share of true ones in what the made ones cover.
    Recall grows with M: compare sets of one size only. Raises ValueError for a set of k pictures or fewer.
    """
    if min(len(made), len(true)) <= k:
        raise ValueError(f"got {len(made)} made and {len(true)} true pictures; expected more than {k} of each")
    apart = distances(made, true)
    return _covered(apart.T, radii(true, k)), _covered(apart, radii(made, k))


def coverage(made: Tensor, true: Tensor, k: int = COVERAGE_NEIGHBOUR) -> float:
    """Coverage (Naeem et al. 2020, arXiv 2002.09797): the share of true pictures [T, D] with a made one [M, D] no
    farther away than their k-th nearest other true one.

    Unlike recall it asks nothing of the distances between the made ones, so that outliers and few pictures do not make
    it large. It grows with M too: compare sets of one size only.
    """
    return float((distances(made, true).amin(dim=0) <= radii(true, k)).double().mean())


def radii(rows: Tensor, k: int) -> Tensor:
    """The distance of each row [N, D] to its k-th nearest other row, [N]."""
    return distances(rows, rows).kthvalue(k + 1, dim=1).values  # the nearest is the row itself


def _covered(apart: Tensor, reach: Tensor) -> float:
    """The share of columns that lie within `reach` [N] of any row of `apart` [N, M]."""
    return float((apart <= reach[:, None]).any(dim=0).double().mean())


def diversity(made: Tensor) -> float:
    """The mean distance of two different rows of features [N, D], N of at least 2."""
    count = len(made)
    return float(distances(made, made).sum() / (count * (count - 1)))


def fid(made: Sequence[Tensor], reference: Statistics) -> float:
    """The Frechet distance of several sets of features together from a reference; comparable at equal numbers only."""
    return frechet_distance(statistics_of(torch.cat(list(made))), reference)


def jackknife(measure: Callable[[list[int]], float], groups: int) -> Estimate:
    """A measure of all of 0..groups - 1, with the normal 95 % interval of its delete-one jackknife (Tukey 1958).

    For what is no mean over groups, such as the FID of all of them together or the difference of two.
    """
    everything = list(range(groups))
    whole = measure(everything)
    without = torch.tensor([measure([g for g in everything if g != left]) for left in everything], dtype=torch.float64)
    spread = Z * float(((groups - 1) / groups * (without - without.mean()).square().sum()).sqrt())
    return whole, whole - spread, whole + spread
