"""What the tests of the search share: counting samplers, small verifiers, a fake clock, a recording algorithm."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pack.search import Algorithm, Budget, Candidates, Evaluation, Row, SearchReport, Watcher, algorithm, run
from pack.search.mixture import MixtureSampler
from pack.search.report import CLOCK_COLUMNS
from pack.search.types import Meter, Plan, Request, Search

PIXELS = 4
MEANS = torch.randn(5, PIXELS * 3, generator=torch.Generator().manual_seed(99), dtype=torch.float64).float()


class Counting(MixtureSampler):
    """Counts, on its own, the rows that really enter the denoiser; can break at chosen calls."""

    def __init__(self, flow: bool = True, order: int = 1, steps: int = 6, batch: int = 4, **more: Any) -> None:
        super().__init__(more.pop("means", MEANS), steps=steps, flow=flow, order=order, batch=batch, **more)
        self.rows = 0
        self.backward_rows = 0
        self.calls = {"denoise": 0, "decode": 0}
        self.largest = 0
        self.freed = 0
        self.break_at: dict[str, dict[int, BaseException]] = {"denoise": {}, "decode": {}}

    def _call(self, kind: str) -> None:
        self.calls[kind] += 1
        error = self.break_at[kind].pop(self.calls[kind], None)
        if error is not None:
            raise error

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        self.rows += len(x)
        self.largest = max(self.largest, len(x))
        self._call("denoise")
        clean = super().denoise(x, sigma)
        if clean.requires_grad:
            clean.register_hook(lambda gradient: self._went_back(len(gradient)))
        return clean

    def _went_back(self, rows: int) -> None:
        self.backward_rows += rows

    @property
    def charged(self) -> int:
        """What the rows that went forward and back count as in NFE: the way back is two."""
        return self.rows + 2 * self.backward_rows

    def decode(self, rows: Sequence[Row]) -> list[Tensor]:
        self._call("decode")
        return super().decode(rows)

    def free_memory(self) -> None:
        self.freed += 1


class Keeping(Counting):
    """Counts images whose way back to their latent is still kept when the next are decoded, or the model's is gone."""

    def __init__(self) -> None:
        super().__init__()
        self.ways: list[weakref.ref[Tensor]] = []
        self.most_kept = 0

    def _count(self) -> None:
        self.most_kept = max(self.most_kept, sum(way() is not None for way in self.ways))

    def decode(self, rows: Sequence[Row]) -> list[Tensor]:
        self._count()
        images = super().decode(rows)
        self.ways += [weakref.ref(each) for each in images if each.requires_grad]
        return images

    def pull_back(self, row: Row, gradient: Tensor, meter: Meter) -> Tensor:
        self._count()
        return super().pull_back(row, gradient, meter)


class Pairs(Counting):
    """A latent that is a batch of two: one candidate is two rows, the second starts from the first's mirror noise."""

    rows_per_candidate = 2

    def entry(self, noise: Tensor, sigma: float) -> Tensor:
        first = super().entry(noise, sigma)
        return torch.cat([first, -first])

    def decode(self, rows: Sequence[Row]) -> list[Tensor]:
        self._call("decode")
        clean = [row.x if row.sigma == 0 else row.x0 for row in rows]
        return [torch.sigmoid(c).reshape(len(c), 1, -1, 3) for c in clean]  # type: ignore[union-attr, arg-type]


class Videos(Counting):
    """Every picture is a video of five frames that grow brighter; counts how many videos there are at a time."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.made: list[weakref.ref[Tensor]] = []
        self.most = 0

    def decode(self, rows: Sequence[Row]) -> list[Tensor]:
        shades = torch.linspace(0.8, 1.0, 5)[:, None, None, None]
        videos = [images[:, None] * shades for images in super().decode(rows)]
        self.made += map(weakref.ref, videos)
        self.most = max(self.most, sum(made() is not None for made in self.made))
        return videos


def values(images: Tensor) -> Tensor:
    """The clean vectors behind images of the mixture sampler [B, D], in double precision."""
    return torch.logit(images.double().reshape(len(images), -1), eps=1e-9)


class Scorer:
    """A verifier from a function of the clean vectors."""

    def __init__(self, name: str, function: Callable[[Tensor], Tensor]) -> None:
        self.name, self.function = name, function
        self.images = 0
        self.calls = 0
        self.break_at: dict[int, BaseException] = {}

    def score(self, images: Tensor, prompt: str) -> Tensor:
        self.images += len(images)
        self.calls += 1
        error = self.break_at.pop(self.calls, None)
        if error is not None:
            raise error
        return self.function(values(images))


def first(name: str = "first") -> Scorer:
    """The first number of the clean vector."""
    return Scorer(name, lambda clean: clean[:, 0])


def second(name: str = "second") -> Scorer:
    """The second number of the clean vector."""
    return Scorer(name, lambda clean: clean[:, 1])


def often_nan() -> Scorer:
    """Cannot judge the images with the highest scores, nor some others."""
    nan = torch.tensor(float("nan"), dtype=torch.float64)
    return Scorer("often-nan", lambda clean: torch.where(clean[:, 0] > 0.3, nan, clean[:, 0]))


class RankMean:
    """A pooled ensemble: the mean over members of the share of the pool that a candidate is not worse than."""

    name = "rank mean"
    pooled = True

    def __init__(self, *members: Scorer) -> None:
        self.members = members

    def score(self, images: Tensor, prompt: str) -> Tensor:
        raise AssertionError("the driver asks the members")

    def combine(self, pool: Sequence[dict[str, float]]) -> list[float]:
        def share(name: str, value: float) -> float:
            return sum(other[name] <= value for other in pool) / len(pool)

        names = [name for name in pool[0] if name in {m.name for m in self.members}] if pool else []
        return [sum(share(name, one[name]) for name in names) / len(names) for one in pool]


class Veto:
    """An ensemble that vetoes what its second member puts below a threshold."""

    name = "veto"

    def __init__(self, threshold: float) -> None:
        self.members = (first(), second())
        self.threshold = threshold

    def score(self, images: Tensor, prompt: str) -> Tensor:
        raise AssertionError("the driver asks the members")

    def combine(self, pool: Sequence[dict[str, float]]) -> list[float]:
        return [parts["first"] if parts["second"] >= self.threshold else float("-inf") for parts in pool]


class Clock:
    """A clock that moves only when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Timed(Counting):
    """Takes `base` + `each` seconds a row for a forward, and `look` a row for a decode, on a fake clock; the first
    forward `warm` more, the first decode `first_look`, and loading `load` before all. Smaller rows are faster by their
    size to the `power`.
    """

    power = 2.0

    def __init__(
        self, clock: Clock, base: float, each: float, look: float = 0.3, load: float = 0.0, warm: float = 0.0,
        first_look: float = 0.0, **more: Any,
    ) -> None:  # fmt: skip
        super().__init__(**more)
        self.clock, self.base, self.each, self.look = clock, base, each, look
        self.load, self.warm, self.first_look = load, warm, first_look
        self.longest, self.shrink = 0.0, 1

    def advance(self, rows: Any, sigmas: Any, meter: Meter, keep: Any = (), **more: Any) -> list[Row]:
        self.clock.now, self.load = self.clock.now + self.load, 0.0
        before, self.shrink = self.clock.now, rows[0].shrink
        moved = super().advance(rows, sigmas, meter, keep, **more)
        self.longest, self.shrink = max(self.longest, self.clock.now - before), 1
        return moved

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        self.clock.now += (self.base + self.each * len(x)) / self.shrink**self.power + self.warm
        self.warm = 0.0
        return super().denoise(x, sigma)

    def decode(self, rows: Any) -> list[Tensor]:
        self.clock.now += self.look * len(rows) + self.first_look
        self.first_look = 0.0
        return super().decode(rows)


class Seen(Watcher):
    """Remembers what a watcher is told."""

    def __init__(self) -> None:
        self.evaluations: list[Evaluation] = []
        self.best: tuple[Evaluation, Tensor] | None = None
        self.expected: list[int | None] = []
        self.nfe: list[int] = []

    def progress(self, nfe: int, expected: int | None) -> None:
        self.nfe.append(nfe)
        self.expected.append(expected)

    def evaluated(self, evaluation: Evaluation, images: Tensor, best: bool) -> None:
        self.evaluations.append(evaluation)
        if best:
            self.best = evaluation, images


class Recorded:
    """Wraps an algorithm: remembers every request and reply, and whether its generator was closed."""

    def __init__(self, name: str, **settings: object) -> None:
        self.inner = algorithm(name, **settings)
        self.requests: list[Request] = []
        self.replies: list[list[Row]] = []
        self.closed = False
        self.algorithm = Algorithm(name, self.search, self.inner.settings, self.inner.acts_midway)

    def search(self, space: Any, plan: Plan, **settings: Any) -> Search:
        inner = self.inner.search(space, plan, **settings)
        try:
            request = next(inner)
            while True:
                assert not self.closed
                self.requests.append(request)
                reply = yield request
                self.replies.append(reply)
                request = inner.send(reply)
        finally:
            self.closed = True
            inner.close()


def search(
    name: str | Algorithm,
    sampler: MixtureSampler,
    budget: Budget,
    verifier: Any = None,
    *,
    first_seed: int = 7,
    seed: int = 3,
    **more: Any,
) -> SearchReport:
    """`run` with the defaults of these tests."""
    chosen = algorithm(name) if isinstance(name, str) else name
    verifier = verifier if verifier is not None else first()
    candidates = more.pop("candidates", Candidates.of_seed(first_seed))
    return run(chosen, sampler, verifier, budget, candidates=candidates, seed=seed, **more)


def columns(evaluations: Iterable[Evaluation], drop: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Every column of every evaluation but the clock ones and `drop`, as JSON (so that NaN equals NaN)."""
    away = {*CLOCK_COLUMNS, *drop}
    return [{k: v for k, v in e.record().items() if k not in away} for e in evaluations]


def lines(folder: Path) -> list[dict[str, Any]]:
    """The ledger file: its settings line, then one line per evaluation, each strict JSON."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    text = (folder / "ledger.jsonl").read_text(encoding="utf-8")
    assert text.endswith("\n")
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def forwards(sigmas: Sequence[float], order: int) -> int:
    """Denoiser calls of one row along `sigmas`, counted independently of the sampler."""
    total = 0
    for _, following in zip(sigmas, sigmas[1:], strict=False):
        total += 1
        total += order == 2 and following > 0
    return total
