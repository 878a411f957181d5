"""Distinct: the best of a search such that no two of them are alike.

Greedy, best first: the best is always there; then the next best whose cosine to all that are there already lies below a
threshold. Features are those of a verifier that embeds images, or a small thumbnail.

While a search runs, a candidate that is alike to a better one may come in after all: an even better one may be alike to
the better one and not to it. But a new one takes the place of two candidates only where both are alike to it, so at
most twice as far apart as two that are alike. Where as many candidates as are wanted, all better, lie further apart
than that, no later one can change that as many come before: only then is a candidate let go.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from .errors import SearchError
from .judging import named
from .types import Verifier

SIDE = 16
#: Pictures of one flat colour have no layout to compare; this makes them alike.
_FLAT = 0.1
#: Cosines of unit vectors are wrong by much less.
_ROUNDING = 1e-9


def thumbnail(images: Tensor) -> Tensor:
    """Features float32 [B, 769] of images [B, H, W, 3]: the means of 16 x 16 fields, less the mean of the picture.

    Two pictures are alike if their colours lie at the same places; it knows nothing of what they show.
    """
    small = functional.adaptive_avg_pool2d(images.float().movedim(-1, 1), SIDE).flatten(1)
    return functional.pad(small - small.mean(dim=1, keepdim=True), (0, 1), value=_FLAT)


def distinct(vectors: Tensor, count: int, threshold: float) -> list[int]:
    """Which of some unit vectors [N, D], best first, are taken: at most `count`, each cosine below `threshold`."""
    free = torch.ones(len(vectors), dtype=torch.bool)
    taken: list[int] = []
    while len(taken) < count and bool(free.any()):
        best = int(free.byte().argmax())
        taken.append(best)
        free &= vectors @ vectors[best] < threshold
        free[best] = False
    return taken


def reach(vectors: Tensor, count: int, threshold: float) -> int:
    """How many of the best of some unit vectors [N, D], best first, may be among the distinct, whatever comes later."""
    apart = distinct(vectors, count, 2 * threshold**2 - 1 - _ROUNDING)
    return apart[-1] + 1 if len(apart) == count else len(vectors)


class Likeness:
    """What is alike for one search: a threshold of the cosine, 0..1, and the features `look` of images [B, H, W, 3].

    `name` is whose features they are.
    """

    def __init__(self, threshold: float, name: str, look: Callable[[Tensor], Tensor]) -> None:
        self.threshold, self.name, self.look = threshold, name, look
        self.vectors: dict[int, Tensor] = {}  # of candidates, by ledger id

    def seen(self, shown: Sequence[Tensor]) -> list[Tensor]:
        """One unit vector float64 for each candidate's images [b, (T,) H, W, 3]: those of its images in a row.

        So the cosine of two candidates is the mean of those of their images. A vector is 0, and its candidate alike to
        none, where features are not finite. Raises SearchError when the features are no [B, D].
        """
        flat = [images.reshape(-1, *images.shape[-3:]) for images in shown]
        total = sum(len(images) for images in flat)
        with named(self.name), torch.no_grad():
            features = self.look(torch.cat(flat))
            got = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != total:
                raise SearchError(f"got features {got} for {total} images; expected a tensor [B, D]")
        features = functional.normalize(features.detach().to("cpu", torch.float64), dim=1)
        features = features.masked_fill(~features.isfinite().all(dim=1, keepdim=True), 0.0)
        parts = torch.split(features, [len(images) for images in flat])
        return [part.flatten() / math.sqrt(len(part)) for part in parts]

    def of(self, ids: Sequence[int]) -> Tensor:
        """The vectors [N, D] of some candidates, at least one."""
        return torch.stack([self.vectors[id] for id in ids])

    def keep(self, ids: Collection[int]) -> None:
        """Forget the vectors of all other candidates."""
        self.vectors = {id: self.vectors[id] for id in ids}


def likeness_of(threshold: float, given: Verifier | None, verifier: Verifier) -> Likeness | None:
    """What is alike by the features of `given`; without it, of `verifier` or a member of it, or by thumbnails.

    None with a threshold of 1: everything is distinct. Raises SearchError where `given` has no features, or the
    threshold is not 0 to 1.
    """
    if not 0 <= threshold <= 1:
        raise SearchError(f"distinct: got {threshold:g}; expected 0 to 1 (1 = off)")
    if threshold == 1:
        return None
    for each in (given,) if given is not None else (verifier, *getattr(verifier, "members", ())):
        look = getattr(each, "features", None)
        if callable(look):
            return Likeness(threshold, each.name, look)
    if given is not None:
        raise SearchError(
            f"distinct_by: {given.name} has no features of images; expected a verifier that embeds them, such as "
            "CLIPScore or Reference Similarity, or nothing"
        )
    return Likeness(threshold, "thumbnails", thumbnail)
