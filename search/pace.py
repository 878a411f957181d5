"""Pace: the seconds that work takes, from what was timed so far."""

from __future__ import annotations


class Rate:
    """Seconds for one piece of a kind of work, by all timings but the first, which may hold what is done once, such as
    loading a network.
    """

    def __init__(self) -> None:
        self.first: float | None = None
        self.pieces = self.seconds = 0.0

    def add(self, pieces: float, seconds: float) -> None:
        """So many pieces took so long together; of 0, it belongs to those before."""
        if self.first is None:
            self.first = seconds / pieces
        elif not pieces and not self.pieces:
            self.first += seconds
        else:
            self.pieces += pieces
            self.seconds += seconds

    @property
    def mean(self) -> float | None:
        """None before the second timing."""
        return self.seconds / self.pieces if self.pieces else None


class Pace:
    """What the work of a search takes. `look_cost` is a guess of what a look takes, in forwards."""

    def __init__(self, look_cost: float) -> None:
        self.look_cost = look_cost
        self.forwards: dict[int, tuple[int, float]] = {}  # by how much smaller rows are: NFE and seconds
        self.looks, self.endings = Rate(), Rate()

    def forwarded(self, nfe: int, seconds: float, shrink: int) -> None:
        """So many forwards took so long together; the first of a search is none of them."""
        before = self.forwards.get(shrink, (0, 0.0))
        self.forwards[shrink] = before[0] + nfe, before[1] + seconds

    def forward(self, shrink: int = 1) -> float:
        """Of one row smaller by `shrink`: by its pixels, before there was one. 0 while nothing tells."""
        nfe, seconds = self.forwards.get(shrink, (0, 0.0))
        if nfe:
            return seconds / nfe
        return self.forward() / shrink**2 if shrink > 1 else 0.0

    @property
    def look(self) -> float:
        """Decoding and scoring an image on its way."""
        return self._sight(self.looks, self.endings)

    @property
    def ending(self) -> float:
        """Decoding and scoring a finished image, by the held-out verifier too."""
        return self._sight(self.endings, self.looks)

    def _sight(self, own: Rate, other: Rate) -> float:
        """The mean of a kind or else of the other; or else the lesser of the first ones: what is loaded for both was
        loaded for the other.
        """
        for mean in (own.mean, other.mean):
            if mean is not None:
                return mean
        if own.first is not None and other.first is not None:
            return min(own.first, other.first)
        return self.look_cost * self.forward()
