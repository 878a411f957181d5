"""Who watches a search."""

from __future__ import annotations

from torch import Tensor

from .report import Evaluation, Kept


class Watcher:
    """Who watches a search: override what is of interest. The methods here do nothing."""

    def progress(self, nfe: int, expected: int | None) -> None:
        """`nfe` forwards were made; `expected` is the driver's guess of the total, if it has one."""

    def evaluated(self, evaluation: Evaluation, images: Tensor, best: bool) -> None:
        """An image was scored; `best` when it leads now. images [b, (T,) H, W, 3] in 0..1."""

    def leads(self, kept: Kept) -> None:
        """A candidate leads now; told before its `evaluated`. Of a video or a batch it has all images."""

    def nearest(self, kept: Kept) -> str | None:
        """Nothing can win so far, and this came nearest to it. Returns the file that shows it, if there is one."""

    def finish_now(self) -> bool:
        """Whether the user asks to end with the best so far."""
        return False
