"""The ports of a search: what an algorithm may ask for, and what a sampler and a verifier must do."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from torch import Tensor

from .guidance import LookaheadGuide
from .recipe import Recipe

NAN = float("nan")
#: What the way back through the denoiser counts as, in forwards.
BACKWARD_NFE = 2


@dataclass(frozen=True)
class Row:
    """One candidate on its way: paused at one sigma, or finished.

    A row at the first sigma holds no state: its recipe says which noise it starts from. `x` and `x0` are on
    the CPU, in the sampler's own space, shaped as the latent [b, *latent] (b = 1 unless the latent is a batch).
    """

    recipe: Recipe
    sigma: float
    x: Tensor | None = None  # the state at `sigma`; None before the first move
    x0: Tensor | None = None  # the last clean estimate on the way here
    parent: int | None = None  # ledger id of the evaluation this row grew from
    id: int | None = None  # ledger id of this row's own last evaluation
    score: float = NAN  # of that evaluation; NaN = not judged, or could not be
    early: tuple[tuple[float, Tensor], ...] = ()  # (sigma, clean estimate) of steps that a verifier wants to see
    as_stock: bool = True  # stock passes here too, on its way from this row's start noise
    scout: bool = False  # a cheap trial: it may be judged at its end, and never becomes a candidate
    shrink: int = 1  # of a scout: its latent is smaller by this factor along height and width
    guide: LookaheadGuide | None = None  # corrects every clean estimate that the model makes for this row
    noise: Tensor | None = None  # the unit start noise, where no recipe makes it (see "ascent") or a gradient is by it
    gradient: Tensor | None = None  # of the score by that noise, or by `x0` (see Slope)
    trail: tuple[Tensor, ...] = ()  # what the model answered on the way here, where `pull_back` will need it


class Meter(Protocol):
    """What a sampler tells about every forward it makes, before it makes it."""

    def forward(self, rows: int) -> None:
        """`rows` rows are about to enter the denoiser. May raise to end the search: let it through."""

    def backward(self, rows: int) -> None:
        """A gradient of `rows` rows is about to go back through the denoiser: each counts as BACKWARD_NFE forwards."""

    def model_rows(self, rows: int) -> None:
        """`rows` rows entered the network itself (conditional, unconditional and regions counted apart)."""


class Sampler(Protocol):
    """The one door to a model. Stateless to its caller; never looks at a budget."""

    sigmas: tuple[float, ...]  # the whole schedule, descending; step 0 is pure noise
    rows_per_candidate: int  # b: the batch of the latent, which is one candidate
    exact_pauses: bool  # whether a row that stops on the way and goes on ends as if it had not stopped
    family: str  # of the model, as search.curves names it; "" for one that it does not know
    look_cost: float  # what decoding and scoring an x0 prediction takes beside the model, in NFE; an estimate
    #: What rows may differ in beside their start noise, by the name of the recipe's operation, with the user's own
    #: value: "cfg" or "guidance"; "conditioning" (0); "step_noise" (0).
    axes: Mapping[str, float]

    def small_refusal(self, shrink: int) -> str | None:
        """Why rows cannot be that many times smaller along height and width here, or None."""

    def noise(self, row: Row) -> Tensor:
        """The unit start noise of a row [b, *latent]."""

    def advance(
        self,
        rows: Sequence[Row],
        sigmas: Sequence[float],
        meter: Meter,
        keep: Sequence[float] = (),
        trail: bool = False,
    ) -> list[Row]:
        """Move rows (all at sigmas[0]) to sigmas[-1] together, each exactly as if it ran alone.

        The clean estimates at the sigmas in `keep` are added to the rows' `early`: they are free. With `trail`, the
        rows remember what `pull_back` needs of their way.
        """

    def pull_back(self, row: Row, gradient: Tensor, meter: Meter) -> Tensor:
        """What a `gradient` by the end `x` of a row, moved along the whole schedule with its trail, is by its unit
        start noise.

        Enters the denoiser once more for every forward of the way, one at a time, and goes back through it. Raises
        SearchError where no gradient passes.
        """

    def renoise(self, row: Row, sigma: float, seed: int) -> Row:
        """Add noise of `seed` to take a row up to `sigma`, by the model's own forward process. No model call."""

    def predict(self, rows: Sequence[Row], meter: Meter) -> list[Row]:
        """Fill `x0` with a fresh clean estimate at the rows' own sigma: one forward. Fills `x` of rows at the start."""

    def decode(self, rows: Sequence[Row]) -> list[Tensor]:
        """Images of every row, each [b, H, W, 3] or [b, T, H, W, 3] in 0..1: of `x` at sigma 0, else of `x0`.

        Where that requires a gradient, it reaches the images; raises SearchError where it cannot.
        """

    def cost(self, sigmas: Sequence[float]) -> int | None:
        """Denoiser forwards that `advance` makes for one row, or None when that depends on the image."""

    def coefficients(self, sigma: float) -> tuple[float, float]:
        """a and b of x = a * x0 + b * noise at a sigma: (1 - sigma, sigma) of flow models, else mostly (1, sigma)."""

    def time(self, sigma: float) -> float:
        """Noise share t in 0..1 of a sigma: b / (a + b) when x = a * x0 + b * noise (sigma itself for flow models)."""

    def sigma(self, time: float) -> float:
        """The sigma at a noise share; inverse of `time` within the model's range."""

    def micro_batch(self) -> int:
        """How many candidates fit in one forward, by the host's own estimate (at least 1)."""

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Whether an exception means that memory ran out."""

    def free_memory(self) -> None:
        """Give back what can be given back, after memory ran out."""


class Verifier(Protocol):
    """Scores images; bigger is better; NaN means that it could not judge.

    An object that also has `members` (verifiers with different names) and `combine(pool) -> [float]` is an
    ensemble: what each member says is recorded, and `combine` makes the scores of a pool of candidates,
    each a dict from member name to score. With `pooled = True` a score depends on the whole pool (ranks).

    A verifier with `early = (t, ...)` wants to see the x0 predictions at these noise shares too: it is asked
    `score(images, prompt, early)`, with a tuple of as many batches [B, H, W, 3], or with None where there are none
    (an image that no sampler made, or an x0 prediction itself): then it answers NaN.

    A verifier with `features(images) -> [B, D]` embeds images too, and may be asked which of them are alike.
    """

    name: str

    def score(self, images: Tensor, prompt: str) -> Tensor:
        """images [B, H, W, 3] float32 in 0..1 -> scores [B]; row i depends on image i alone."""


@dataclass(frozen=True)
class Advance:
    """Move rows along `sigmas` (the first is where they are). Reply: the moved rows."""

    rows: Sequence[Row]
    sigmas: Sequence[float]


@dataclass(frozen=True)
class Finish:
    """Take rows to sigma 0, decode and score them: they become candidates. Reply: the rows, scored, without state.

    A row that is a candidate already costs nothing: it comes back with its score as the pool stands then.
    """

    rows: Sequence[Row]


@dataclass(frozen=True)
class Gradient:
    """Finish rows that are at pure noise, one at a time, as Finish does; reply: the rows with `noise`, and `gradient`.

    `gradient` is that of the score by the unit start noise [b, *latent]. A row without a score has none, nor has one
    that the budget has no room for: a gradient costs three times what rendering the row does, on top of that.
    A row that is a candidate already is rendered again for it, but not recorded again.
    """

    rows: Sequence[Row]


@dataclass(frozen=True)
class Judge:
    """Score rows mid-way on an x0 prediction: a fresh one (one forward each), or the one that their last step made on
    the way, which is free but one step older. Scouts at their end are scored as they are. Reply: the rows, scored;
    where a score depends on a pool, that is the rows of this request alone.
    """

    rows: Sequence[Row]
    fresh: bool = True


@dataclass(frozen=True)
class Slope:
    """Score rows mid-way on the x0 prediction that they carry, and say how it should change to score more.

    Reply: the rows, scored, with `gradient`: that of the score by `x0`, or None for a row without a score. It goes
    through decoder and verifier and not through the model, so it costs no NFE.
    """

    rows: Sequence[Row]


@dataclass(frozen=True)
class Predict:
    """A fresh clean estimate of each row at its own sigma (one forward each). Reply: the rows with `x` and `x0`.

    With it an algorithm can take steps of its own: all rows move by what it makes of x and x0.
    """

    rows: Sequence[Row]


@dataclass(frozen=True)
class Renoise:
    """Take each row up to `sigma` with the noise of its seed. Reply: the re-noised rows."""

    rows: Sequence[Row]
    sigma: float
    seeds: Sequence[int]


Request = Advance | Finish | Gradient | Judge | Predict | Renoise | Slope
Search = Generator[Request, Any, None]
Reply = Generator[Request, Any, list[Row]]


def advance(rows: Sequence[Row], sigmas: Sequence[float]) -> Reply:
    """Move rows along `sigmas`; use as `rows = yield from advance(rows, sigmas)`."""
    moved: list[Row] = yield Advance(rows, sigmas)
    return moved


def finish(rows: Sequence[Row]) -> Reply:
    """Finish and score rows; use as `rows = yield from finish(rows)`."""
    scored: list[Row] = yield Finish(rows)
    return scored


def gradient(rows: Sequence[Row]) -> Reply:
    """Finish and score rows, and ask where to go from there; use as `rows = yield from gradient(rows)`."""
    scored: list[Row] = yield Gradient(rows)
    return scored


def judge(rows: Sequence[Row], fresh: bool = True) -> Reply:
    """Score rows mid-way; use as `rows = yield from judge(rows)`."""
    scored: list[Row] = yield Judge(rows, fresh)
    return scored


def slope(rows: Sequence[Row]) -> Reply:
    """Score rows mid-way, with the gradient by their x0 predictions; use as `rows = yield from slope(rows)`."""
    scored: list[Row] = yield Slope(rows)
    return scored


def predict(rows: Sequence[Row]) -> Reply:
    """Clean estimates of rows where they are; use as `rows = yield from predict(rows)`."""
    predicted: list[Row] = yield Predict(rows)
    return predicted


def renoise(rows: Sequence[Row], sigma: float, seeds: Sequence[int]) -> Reply:
    """Re-noise rows up to `sigma`; use as `rows = yield from renoise(rows, sigma, seeds)`."""
    moved: list[Row] = yield Renoise(rows, sigma, seeds)
    return moved


@dataclass(frozen=True)
class Plan:
    """What an algorithm may know before it starts: the schedule and the size of the budget, never the meter."""

    sigmas: tuple[float, ...]
    time: Callable[[float], float]
    sigma: Callable[[float], float]
    coefficients: Callable[[float], tuple[float, float]]
    candidate_nfe: int | None  # denoiser forwards of one whole candidate, if known
    nfe: int = 0  # the limit to plan for; 0 = none
    candidates: int = 0
    seconds: float = 0.0
    pauses: bool = True  # rows may be judged on the way here, and go on as if they had not been
    small_refusal: Callable[[int], str | None] = lambda shrink: "its sampler has no smaller latents"
    axes: Mapping[str, float] = field(default_factory=dict)
    family: str = ""  # of the model (see Sampler)
    verifiers: tuple[str, ...] = ()  # names of those that decide: the verifier, or the members that count
    cost: Callable[[Sequence[float]], int | None] = lambda sigmas: len(sigmas) - 1  # NFE of a candidate along sigmas
    call_nfe: int = 1  # NFE of one model call for a candidate: the rows of its latent
    #: Whole candidates that a limit on seconds still pays for, at the pace so far; infinite where nothing tells.
    left: Callable[[], float] = lambda: math.inf
    #: What a share of a candidate's forwards, on rows smaller by a factor, takes with a look, in whole candidates; the
    #: share of the pixels too where time is no limit.
    timed: Callable[[float, int], float] = lambda share, shrink: share / shrink**2

    @cached_property
    def noise_scale(self) -> float:
        """What the model multiplies all noise by, beside what its schedule says: 1 mostly, 8 for HiDream-O1."""
        a, b = self.coefficients(self.sigma(0.5))  # where noise, not scaled, and image have the same share
        return round(b / a, 6)  # 1 to the last bit, where it is 1

    def whole(self) -> float:
        """The whole candidates that the limit on NFE allows in all; infinite where nothing tells."""
        return self.nfe / self.candidate_nfe if self.nfe and self.candidate_nfe else math.inf

    def left_after(self, spent: float, finished: int) -> float:
        """What the limits pay for after `spent` whole candidates' worth of NFE, in whole candidates.

        Where time is a limit, no more than the candidates that may follow the `finished` ones: it may never be reached.
        """
        more = self.candidates - finished if self.candidates and self.seconds else math.inf
        return min(self.whole() - spent, self.left(), more)

    def scout(self, share: float, shrink: int = 1) -> float:
        """What a scout takes, in whole candidates, by the dearer of the limits.

        It takes that share of the steps, whatever its size; fewer pixels save time.
        """
        return max(share if self.nfe else 0.0, self.timed(share, shrink))

    def coarse(self, steps: int) -> tuple[float, ...]:
        """At most `steps` steps along the whole schedule, at evenly chosen sigmas of it, both ends included."""
        last = len(self.sigmas) - 1
        steps = min(steps, last)
        return tuple(self.sigmas[round(i * last / steps)] for i in range(steps + 1))

    def down(self, start: float, stop: float) -> tuple[float, ...]:
        """The part of the schedule from sigma `start` down to `stop`, both ends included.

        A sigma of the schedule that differs from an end by rounding alone makes no step of its own.
        """
        if (start, stop) == (self.sigmas[0], self.sigmas[-1]):
            return self.sigmas  # as the user made it, equal neighbours included
        inside = (s for s in self.sigmas if stop * (1 + 1e-6) < s < start * (1 - 1e-6))
        return (start, *inside, stop) if start > stop else (start,)


@dataclass(frozen=True)
class Algorithm:
    """A search algorithm with its settings: `search(space, plan, **settings)` is the generator that runs."""

    name: str
    search: Callable[..., Search]
    settings: dict[str, Any] = field(default_factory=dict)
    acts_midway: bool = False  # pauses rows between the first and the last sigma
    needs_gradient: bool = False  # of the score by the start noise
    guides: bool = False  # by the gradient of the score by x0 predictions
    compares_across: bool = False  # holds scores of one Judge against those of others, so mere ranks tell it nothing
    #: Instead of searching, names the algorithm that does, and why. Asked once, before the search.
    choose: Callable[[Plan], tuple[Algorithm, str]] | None = None
