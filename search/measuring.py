"""Measure a curve on the user's own model: how early does the verifier see the best of some finished candidates?

The candidates are rendered whole, by any algorithm that finishes what it begins. Their samplers make an x0 prediction
at every step; some of these are decoded and scored beside the finished images, which costs no model call.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

from torch import Tensor

from . import judging
from .agreement import mean_ranks
from .curves import curve_of
from .errors import SearchError
from .halving_plan import Curve
from .types import NAN, Verifier
from .words import some

#: Where the first and the last look are taken, as shares of the steps.
FIRST, LAST = 0.2, 0.9
#: Fewer candidates say nothing.
FEWEST = 4
#: The cautious curve counts as much as so many candidates.
CAUTION = 16


@dataclass(frozen=True)
class Look:
    """One place on the way: after a share of the steps, the x0 prediction that was made at a noise share."""

    share: float
    time: float


def looks_at(sigmas: Sequence[float], time: Callable[[float], float], count: int) -> list[Look]:
    """`count` looks, evenly from FIRST to LAST of a schedule, or as many as it has steps there.

    `time` is the noise share of a sigma. Raises SearchError for fewer than 4 steps, of which none is ever cut.
    """
    steps = len(sigmas) - 1
    if steps < 4 or count < 1:
        raise SearchError(f"steps: got {steps} steps and {count} looks; expected at least 4 steps and 1 look")
    shares = [FIRST + (LAST - FIRST) * i / max(1, count - 1) for i in range(count)]
    places = sorted({min(max(round(share * steps), 1), steps - 1) for share in shares})
    return [Look(place / steps, time(sigmas[place - 1])) for place in places]


class _AsOf:
    """What a verifier says of the x0 prediction at a look instead of the finished image."""

    def __init__(self, verifier: Verifier, look: Look) -> None:
        self.verifier, self.early = verifier, (look.time,)
        self.name = f"{verifier.name} after {100 * look.share:.4g} %"

    def score(self, images: Tensor, prompt: str, early: Sequence[Tensor] | None = None) -> Tensor:
        """See search.types.Verifier. NaN where there is no x0 prediction."""
        return images.new_full((len(images),), NAN) if early is None else self.verifier.score(early[0], prompt)


class Watching:
    """A verifier that also scores x0 predictions on the way: an ensemble in which they have no say.

    What it makes of a candidate is what the verifier does; what that says of the x0 prediction after 30 % of the steps
    is recorded as "<name> after 30 %". Raises SearchError for a verifier that only judges finished images.
    """

    def __init__(self, verifier: Verifier, looks: Sequence[Look]) -> None:
        if judging.early_times(verifier):
            raise SearchError(
                f"verifier: {verifier.name} judges finished images only (it compares them with their x0 predictions), "
                "so nothing can be seen on the way; choose another"
            )
        self.verifier, self.looks, self.name = verifier, list(looks), verifier.name
        self._own: list[Verifier] = list(getattr(verifier, "members", ())) or [verifier]
        self._as_of = [[_AsOf(member, look) for member in self._own] for look in looks]
        self.members: list[Verifier] = [*self._own, *(one for each in self._as_of for one in each)]
        self.pooled = judging.is_pooled(verifier)
        self.needs_prompt = bool(getattr(verifier, "needs_prompt", True))

    @property
    def shares(self) -> tuple[float, ...]:
        """The shares of the steps after which it looks."""
        return tuple(look.share for look in self.looks)

    @property
    def notes(self) -> list[str]:
        """What the verifier has to tell the user."""
        return list(getattr(self.verifier, "notes", ()))

    def score(self, images: Tensor, prompt: str) -> Tensor:
        """See search.types.Verifier."""
        return self.verifier.score(images, prompt)

    def combine(self, pool: Sequence[judging.Parts]) -> list[float]:
        """The verifier's own score of every candidate of a pool."""
        return judging.combine(self.verifier, pool)

    def measured(self, pool: Sequence[judging.Parts]) -> Measured:
        """What a pool of judged candidates tells. Raises SearchError for fewer than FEWEST, or if all score alike."""
        final = self.combine(pool)
        if len(final) < FEWEST or len(set(final)) < 2:
            got = f"only {len(final)} candidates were judged" if len(final) < FEWEST else "all of them score the same"
            raise SearchError(f"curve: {got}; expected at least {FEWEST} with different scores: raise max_candidates")
        seen = []
        for as_of in self._as_of:
            own = zip(self._own, as_of, strict=True)
            names = {member.name: early.name for member, early in own}
            early = judging.combine(self.verifier, [{a: parts[b] for a, b in names.items()} for parts in pool])
            seen.append(visibility(early, final))
        return Measured(self.name, self.shares, tuple(seen), len(final))


def visibility(early: Sequence[float], final: Sequence[float]) -> float:
    """How much of final scores is in early ones: the correlation of their normal scores, -1..1.

    Of few candidates this is known far better than what `curves.measured_curve` asks, the early scores of the finally
    best alone: that of 16 candidates of FLUX and SDXL is off by 0.50 after 30 % and 0.40 after 60 % of the steps, this
    by 0.29 and 0.20 (root mean squares, benchmarks/curves.py), and too high by 0.03 at most. An early score that is no
    number counts as the worst, because such a candidate would not go on; 0 where all are equal.
    """
    worst = [score if math.isfinite(score) else -math.inf for score in early]
    a, b = (_normal_scores(scores) for scores in (worst, final))
    return 0.0 if len(set(a)) < 2 else statistics.correlation(a, b)


def _normal_scores(scores: Sequence[float]) -> list[float]:
    return [NormalDist().inv_cdf((rank + 0.5) / len(scores)) for rank in mean_ranks(scores)]


@dataclass(frozen=True)
class Measured:
    """Visibilities `seen` after `shares` of the steps, measured on so many candidates of so many prompts."""

    verifier: str
    shares: tuple[float, ...]
    seen: tuple[float, ...]
    candidates: int
    prompts: int = 1

    def curve(self, caution: float = CAUTION) -> Curve:
        """The curve to plan with: made to rise, and drawn towards the cautious one, which counts `caution` candidates.

        So what 16 candidates say is believed by two thirds. A plan hedges against a worse curve already
        (`halving_plan`), but one for a curve that chance made far too sharp would drop the best. benchmarks/curves.py
        measures what `caution` does to plans: 8 and 16 do best after 16 candidates, and cannot be told apart.
        """
        believed = self.candidates / (self.candidates + caution)
        cautious = curve_of("cautious")
        points = zip(self.shares, rising(self.seen), strict=True)
        return Curve(tuple((share, believed * seen + (1 - believed) * cautious.at(share)) for share, seen in points))

    def check(self, verifier: str, shares: tuple[float, ...]) -> None:
        """Raise SearchError unless this was measured of that verifier after these shares of the steps."""
        if (self.verifier, self.shares) != (verifier, shares):
            raise SearchError(
                f"earlier: got a measurement of {self.verifier} after {_percent(self.shares)}; expected one of "
                f"{verifier} after {_percent(shares)}: measure both with the same verifier, steps and looks"
            )

    def with_earlier(self, other: Measured) -> Measured:
        """Both measurements together, each counting by its candidates. Raises SearchError for two that differ."""
        other.check(self.verifier, self.shares)
        total = self.candidates + other.candidates
        pairs = zip(self.seen, other.seen, strict=True)
        seen = tuple((a * self.candidates + b * other.candidates) / total for a, b in pairs)
        return Measured(self.verifier, self.shares, seen, total, self.prompts + other.prompts)

    def table(self) -> str:
        """The measurement as lines for people."""
        head = f"{self.verifier}: {some(self.candidates, 'candidate')}, {some(self.prompts, 'prompt')}"
        used = self.curve()
        rows = [f"{s:10.0%}{x:10.2f}{used.at(s):10.2f}" for s, x in zip(self.shares, self.seen, strict=True)]
        return "\n".join([head, f"{'steps done':>10}{'seen':>10}{'planned':>10}", *rows])

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Measured:
        """Read `to_json` back. Raises SearchError for anything else."""
        try:
            got: Any = json.loads(text)
            shares, seen = (tuple(float(x) for x in got[name]) for name in ("shares", "seen"))
            made = cls(str(got["verifier"]), shares, seen, int(got["candidates"]), int(got["prompts"]))
            whole = len(shares) == len(seen) and made.candidates >= FEWEST and made.prompts >= 1
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            whole = False
        if not whole:
            short = text if len(text) <= 80 else text[:80] + "..."
            raise SearchError(f"measured_curve: got {short!r}; expected the text that Measure Curve gives")
        made.curve()  # says what is wrong with shares and visibilities
        return made


def rising(values: Sequence[float]) -> list[float]:
    """The nearest sequence that never falls, by squares: means of neighbours that are out of order."""
    blocks: list[tuple[float, int]] = []
    for value in values:
        mean, count = value, 1
        while blocks and blocks[-1][0] > mean:
            before, more = blocks.pop()
            mean, count = (before * more + mean * count) / (more + count), more + count
        blocks.append((mean, count))
    return [mean for mean, count in blocks for _ in range(count)]


def _percent(shares: Sequence[float]) -> str:
    return ", ".join(f"{share:.0%}" for share in shares)
