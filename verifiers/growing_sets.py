"""FID and Inception Score of a set that grows image by image, and of that set with one image more.

Only sums are kept, so that a set of any size costs the same memory. All numbers are float64 on the CPU.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from .fid_statistics import Statistics, roots_of, square_root


class GrowingSet(Protocol):
    """What an oracle verifier asks of its set."""

    count: int

    def with_each(self, rows: Tensor) -> Tensor:
        """The measure, float64 [B], of the set with row i of [B, D] added, for every i alone. Changes nothing."""

    def add(self, rows: Tensor) -> None:
        """Add rows [B, D] to the set."""

    def value(self) -> float:
        """The measure of the set as it is; NaN when it is empty."""


class FrechetSet:
    """The Frechet distance of the features in the set from reference statistics.

    A set of one image has covariance 0: its distance is |f - mu|^2 + tr(sigma). From two on it is the usual one with
    the covariance over n - 1.

    Features are taken from the reference mean, and through the root of the reference covariance: with H the centred
    rows after that, tr (S sigma)^(1/2) is the sum of the roots of the eigenvalues of H H^T / (n - 1) and of
    H^T H / (n - 1) alike. While there are fewer images than features, the first, n x n, is kept; then the second.
    """

    def __init__(self, reference: Statistics, root: Tensor | None = None) -> None:
        self.reference = reference
        self._root = square_root(reference.sigma) if root is None else root  # costly, and the same for every set
        self._spread = float(reference.sigma.trace())
        size = len(reference.mu)
        self.count = 0
        self._sum = torch.zeros(size, dtype=torch.float64)  # of features, from the reference mean
        self._squares = 0.0  # of all of them
        self._rows = torch.zeros(0, size, dtype=torch.float64)  # through the root, while there are few
        self._gram = torch.zeros(0, 0, dtype=torch.float64)  # of those
        self._outer: Tensor | None = None  # their sum of outer products, once there are many

    def with_each(self, rows: Tensor) -> Tensor:
        """See GrowingSet."""
        results = [self._of(*self._grown(row)) for row in rows.double() - self.reference.mu]
        return torch.tensor(results, dtype=torch.float64)

    def add(self, rows: Tensor) -> None:
        """See GrowingSet."""
        for row in rows.double() - self.reference.mu:
            self.count, self._sum, self._squares, products = self._grown(row)
            if self._outer is None and self.count < len(row):
                self._rows, self._gram = torch.cat([self._rows, (row @ self._root)[None]]), products
            else:
                self._outer = self._outer_with(row @ self._root)
                self._rows, self._gram = self._rows[:0], self._gram[:0, :0]

    def value(self) -> float:
        """See GrowingSet."""
        products = self._gram if self._outer is None else self._outer
        return self._of(self.count, self._sum, self._squares, products) if self.count else float("nan")

    def _grown(self, row: Tensor) -> tuple[int, Tensor, float, Tensor]:
        """Count, sum, squares and products of the set with one centred row more."""
        count, rooted = self.count + 1, row @ self._root
        if self._outer is None and count < len(row):
            products = torch.empty(count, count, dtype=torch.float64)
            products[:-1, :-1] = self._gram
            products[-1, :-1] = products[:-1, -1] = self._rows @ rooted
            products[-1, -1] = rooted @ rooted
        else:
            products = self._outer_with(rooted)
        return count, self._sum + row, self._squares + float(row @ row), products

    def _outer_with(self, rooted: Tensor) -> Tensor:
        before = self._rows.T @ self._rows if self._outer is None else self._outer
        return before + torch.outer(rooted, rooted)

    def _of(self, count: int, total: Tensor, squares: float, products: Tensor) -> float:
        mean = total / count
        off = float(mean @ mean)
        if count < 2:
            return off + self._spread
        if len(products) == len(mean):  # outer products, [D, D]
            rooted = mean @ self._root
            centred = products - count * torch.outer(rooted, rooted)
        else:  # inner products, [n, n]
            centred = products - products.mean(dim=0) - products.mean(dim=1, keepdim=True) + products.mean()
        crossed = float(roots_of(centred / (count - 1)).sum())
        spread = (squares - count * off) / (count - 1)
        return off + spread + self._spread - 2 * crossed


class InceptionSet:
    """Inception Score (Salimans et al. 2016, arXiv 1606.03498) of the class probabilities in the set.

    exp of the mean KL divergence of an image's classes from the classes of the whole set, taken as one split. With a
    single image that is 1, whatever it shows; so the first image is measured against even classes instead.
    """

    def __init__(self, classes: int) -> None:
        self.count = 0
        self._sum = torch.zeros(classes, dtype=torch.float64)
        self._certainty = 0.0  # the sum of p log p

    def with_each(self, rows: Tensor) -> Tensor:
        """See GrowingSet; rows are logits."""
        p = rows.double().softmax(dim=1)
        certainty = torch.special.xlogy(p, p).sum(dim=1)
        if not self.count:
            kl: Tensor = certainty + math.log(p.shape[1])
        else:
            shares = (self._sum + p) / (self.count + 1)
            kl = (self._certainty + certainty) / (self.count + 1) - torch.special.xlogy(shares, shares).sum(dim=1)
        return torch.exp(kl)

    def add(self, rows: Tensor) -> None:
        """See GrowingSet; rows are logits."""
        p = rows.double().softmax(dim=1)
        self.count += len(p)
        self._sum = self._sum + p.sum(dim=0)
        self._certainty += float(torch.special.xlogy(p, p).sum())

    def value(self) -> float:
        """See GrowingSet."""
        if not self.count:
            return float("nan")
        shares = self._sum / self.count
        kl = self._certainty / self.count - float(torch.special.xlogy(shares, shares).sum())
        return math.exp(kl)
