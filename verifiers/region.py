"""A verifier that sees one region of the picture: what was painted in, a face, a corner."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..search.errors import SearchError
from ..search.types import Verifier


class RegionVerifier:
    """A verifier that is shown the bounding box of a mask instead of the whole picture.

    `mask` [H, W] or [B, H, W] in 0..1, of any size: the box holds every place above 0.5 of any of the B, with `margin`
    (share of its longer side) of the surroundings on every side, and is as square as the picture allows, since most
    verifiers crop or squash to a square. Everything else is the verifier's own: scale, notes, early shares, gradient.
    Raises SearchError for an ensemble, a pooled verifier, a mask with nothing in it, and a margin below 0.
    """

    def __init__(self, verifier: Verifier, mask: Tensor, margin: float = 0.25) -> None:
        if getattr(verifier, "members", ()):
            raise SearchError(
                f"verifier: got the ensemble {verifier.name}; expected a single verifier: put the region between each "
                "Verifier and the Verifier Ensemble"
            )
        if getattr(verifier, "pooled", False):
            raise SearchError(
                f"verifier: got {verifier.name}, which judges all pictures together; expected one that judges each by "
                "itself"
            )
        if margin < 0:
            raise SearchError(f"margin: got {margin:g}; expected 0 or more")
        seen = mask.reshape(-1, *mask.shape[-2:]).gt(0.5).any(dim=0)
        if not seen.any():
            raise SearchError("mask: got one with nothing in it; expected places above 0.5: paint the region")
        self.whole, self.margin = verifier, margin
        self.name = f"{verifier.name} (region)"
        rows, columns = (seen.any(dim=dim).nonzero().flatten() for dim in (1, 0))
        height, width = seen.shape
        #: Top, bottom, left and right of the mask itself, as shares of the picture.
        self.bounds = (
            int(rows[0]) / height, (int(rows[-1]) + 1) / height, int(columns[0]) / width, (int(columns[-1]) + 1) / width
        )  # fmt: skip

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("whole", "verifier"):  # it stands for no other object: it scores otherwise
            raise AttributeError(name)
        return getattr(self.whole, name)

    @property
    def features(self) -> Callable[[Tensor], Tensor]:
        """How the verifier embeds the region; AttributeError where it embeds nothing."""
        embed: Callable[[Tensor], Tensor] = self.whole.features  # type: ignore[attr-defined]
        return lambda images: embed(self.crop(images))

    def score(self, images: Tensor, prompt: str, **more: Any) -> Tensor:
        """images [B, H, W, 3] in 0..1 -> what the verifier scores their region, [B]."""
        if more.get("early") is not None:
            more["early"] = tuple(self.crop(each) for each in more["early"])
        return self.whole.score(self.crop(images), prompt, **more)

    def crop(self, images: Tensor) -> Tensor:
        """The region of images [B, H, W, 3], [B, h, w, 3]."""
        top, bottom, left, right = self.box(images.shape[1], images.shape[2])
        return images[:, top:bottom, left:right].contiguous()

    def box(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Top, bottom, left and right of the region in pixels of a picture of that size."""
        top, bottom, left, right = self.bounds
        tall, wide = (bottom - top) * height, (right - left) * width
        side = max(tall, wide) * (1 + 2 * self.margin)
        return *_around((top + bottom) / 2 * height, side, height), *_around((left + right) / 2 * width, side, width)


def _around(middle: float, side: float, size: int) -> tuple[int, int]:
    """Where a stretch around `middle` begins and ends in 0..size, moved inside where it would stick out."""
    length = min(size, math.ceil(side - 1e-6))
    start = min(max(0, round(middle - length / 2)), size - length)
    return start, start + length
