"""Budget: the limits of one search. The first one reached ends it."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import SearchError


@dataclass(frozen=True)
class Budget:
    """Limits; 0 = off. `nfe` counts rows that enter the denoiser, conditional and unconditional once together."""

    candidates: int = 0  # finished images
    nfe: int = 0
    seconds: float = 0.0  # from the first denoiser call
    target: float = 0.0  # stop at the first candidate whose score reaches this
    patience: int = 0  # finished images in a row without a new best

    def __post_init__(self) -> None:
        for name in ("candidates", "nfe", "seconds", "patience"):
            value = getattr(self, name)
            if not value >= 0:
                widget = name if name == "patience" else f"max_{name}"
                raise SearchError(f"budget: got {widget}={value:g}; expected 0 (off) or more")
        if not (self.candidates or self.nfe or self.seconds or self.patience):
            got = f"only a target score of {self.target:g}" if self.target else "every limit at 0"
            raise SearchError(
                f"budget: got {got}, so the search would never end; "
                "set max_candidates, max_nfe, max_seconds or patience above 0"
            )

    def reached(
        self, *, candidates: int, nfe: int, seconds: float, best: float | None, since_best: int
    ) -> dict[str, float]:
        """The limits that are reached, with their values: {} = go on, {'seconds': 30.0} = stop."""
        tests = {
            "candidates": (candidates >= self.candidates, self.candidates),
            "nfe": (nfe >= self.nfe, self.nfe),
            "seconds": (seconds >= self.seconds, self.seconds),
            "target": (best is not None and best >= self.target, self.target),
            "patience": (since_best >= self.patience, self.patience),
        }
        return {name: limit for name, (hit, limit) in tests.items() if limit and hit}
