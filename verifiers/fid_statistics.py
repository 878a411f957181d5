"""Mean and covariance of features, and the Frechet distance of two such pairs (Heusel et al. 2017, arXiv 1706.08500).

On disk they are an .npz with `mu` [D] and `sigma` [D, D], as pytorch-fid and others write it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..search.errors import SearchError

STATISTICS = ".npz"
_MAKE = "make one with the node Save FID Statistics, or with pytorch-fid's --save-stats"


@dataclass(frozen=True)
class Statistics:
    """Mean [D] and covariance [D, D] of features, float64 on the CPU."""

    mu: Tensor
    sigma: Tensor


def statistics_of(features: Tensor) -> Statistics:
    """Statistics of features [N, D], with the covariance over N - 1. Raises SearchError for fewer than two rows."""
    if features.ndim != 2 or len(features) < 2:
        raise SearchError(f"images: got {len(features)} with features; expected at least 2 to know how they vary")
    rows = features.detach().double().cpu()
    if not bool(rows.isfinite().all()):
        raise SearchError("images: got one whose features are no finite numbers; leave it out")
    mu = rows.mean(dim=0)
    centred = rows - mu
    return Statistics(mu, centred.T @ centred / (len(rows) - 1))


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """The squared Frechet distance of two Gaussians with these statistics: 0 = the same, usually called FID.

    |mu_a - mu_b|^2 + tr(sigma_a + sigma_b - 2 (sigma_a sigma_b)^(1/2)); the last trace is that of the symmetric
    (root_b sigma_a root_b)^(1/2), which has the same eigenvalues.
    """
    root = square_root(b.sigma)
    crossed = roots_of(root @ a.sigma @ root).sum()
    return float(((a.mu - b.mu) ** 2).sum() + a.sigma.trace() + b.sigma.trace() - 2 * crossed)


def square_root(sigma: Tensor) -> Tensor:
    """The symmetric root of a symmetric matrix without negative eigenvalues (those that rounding made count as 0)."""
    values, vectors = torch.linalg.eigh(sigma)
    root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return root


def roots_of(matrix: Tensor) -> Tensor:
    """The roots of the eigenvalues of a symmetric matrix without negative ones."""
    roots: Tensor = torch.linalg.eigvalsh(matrix).clamp(min=0).sqrt()
    return roots


def read_statistics(file: str) -> Statistics:
    """The statistics in an .npz file; nothing in it is run. Raises SearchError when it is missing, damaged or other."""
    from zipfile import BadZipFile

    import numpy

    if not file:
        raise SearchError(f"statistics: no file is chosen; {_MAKE}")
    path = Path(file)
    if path.suffix != STATISTICS or not path.is_file():
        what = f"is not in {path.parent}" if path.suffix == STATISTICS else f"is no {STATISTICS} file"
        raise SearchError(f"statistics: {path.name} {what}; {_MAKE} and put it into ComfyUI's models/verifiers")
    try:
        with numpy.load(path, allow_pickle=False) as stored:
            mu, sigma = (torch.from_numpy(numpy.array(stored[name], dtype=numpy.float64)) for name in ("mu", "sigma"))
    except (BadZipFile, ValueError, OSError, EOFError, KeyError, TypeError) as error:
        raise SearchError(f"statistics: {path.name} is damaged or has no mu and sigma ({error}); {_MAKE}") from error
    _check(path.name, mu, sigma)
    return Statistics(mu, (sigma + sigma.T) / 2)


def write_statistics(path: Path, statistics: Statistics) -> None:
    """Write an .npz that `read_statistics` and pytorch-fid read; the old file stays whole until the new one is."""
    import numpy

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        numpy.savez_compressed(file, mu=statistics.mu.numpy(), sigma=statistics.sigma.numpy())
    partial.replace(path)


def _check(name: str, mu: Tensor, sigma: Tensor) -> None:
    size = mu.numel()
    if mu.ndim != 1 or size < 1 or sigma.shape != (size, size):
        raise SearchError(
            f"statistics: {name} has mu {tuple(mu.shape)} and sigma {tuple(sigma.shape)}; expected [D] and [D, D]; "
            f"{_MAKE}"
        )
    if not bool(mu.isfinite().all() and sigma.isfinite().all()):
        raise SearchError(f"statistics: {name} holds numbers that are not finite; {_MAKE}")
    largest = float(sigma.abs().max())
    if float((sigma - sigma.T).abs().max()) > 1e-4 * largest or bool((sigma.diagonal() < 0).any()):
        raise SearchError(f"statistics: sigma in {name} is no covariance (it must be symmetric); {_MAKE}")
