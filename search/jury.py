"""The jury: pictures of rows, and what the verifiers say of them, in micro-batches that fit the memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor

from . import judging
from .attempts import Captured
from .differentiable import differentiable, gradient_of
from .distinct import Likeness
from .errors import SearchError
from .judging import VerifierFailed
from .micro_batches import MicroBatches
from .recipe import describe
from .types import NAN, Row, Verifier

Opinion = tuple[judging.Parts, judging.Parts]  # of the verifier and of the held-out one
Way = tuple[Tensor, Tensor]  # images, and the latent they were decoded from, which their gradient reaches
#: A held-out verifier that fails so often in a row is asked no more.
MISSES = 3


class Jury:
    """Decodes rows and asks the verifiers of one search."""

    def __init__(
        self,
        verifier: Verifier,
        held_out: Verifier | None,
        likeness: Likeness | None,
        prompt: str,
        batches: MicroBatches,
    ) -> None:
        self.verifier, self.held_out, self.likeness, self.prompt = verifier, held_out, likeness, prompt
        self.batches, self.sampler = batches, batches.spending.sampler
        self.early = sorted(judging.early_times(verifier) | judging.early_times(held_out))  # noise shares
        self.answered: list[str] = []  # the parts that the held-out verifier has given
        self.missed = self.failures = 0  # how often in a row, and in all, it has failed on one candidate alone
        self.several: bool | None = None  # whether a candidate has several images, as a video has; None = not seen yet

    # what it sees

    def decode(self, rows: Sequence[Row]) -> list[Tensor]:
        """The images [b, (T,) H, W, 3] of every row."""
        images: list[Tensor] = []
        while len(images) < len(rows):
            images += self.batches.fitting("VAE", rows[len(images) :], self.sampler.decode)
        return images

    def nearest(self, sigmas: Sequence[float], time: float) -> float:
        """The sigma whose noise share is nearest to `time`."""
        return min(sigmas, key=lambda sigma: abs(self.sampler.time(sigma) - time))

    def wanted(self, sigmas: Sequence[float]) -> list[float]:
        """The sigmas on a way whose x0 predictions verifiers want to see."""
        return [self.nearest(sigmas, time) for time in self.early]

    def forgetting(self, row: Row) -> Row:
        """A row with one early estimate for each wanted noise share: the nearest there was on its whole way."""
        of = dict(row.early)
        wanted = set(self.wanted(list(of))) if of else set()
        return replace(row, early=tuple((sigma, of[sigma]) for sigma in wanted))

    def as_of(self, row: Row, time: float) -> Row:
        """A row where its early estimate nearest to a noise share was made."""
        sigma = self.nearest([s for s, _ in row.early], time)
        return replace(row, sigma=sigma, x0=dict(row.early)[sigma])

    def shares(self, rows: list[Row], images: list[Tensor] | None) -> Iterator[tuple[list[Row], list[Tensor]]]:
        """Rows to be judged together, with their images: all, or one by one where each has several images, as a video
        has. Those of many would fill the memory.
        """
        first = images or self.decode(rows if self.several is False else rows[:1])
        self.several = first[0].shape[:-3].numel() > 1
        if not self.several:
            yield rows, first + self.decode(rows[len(first) :])
            return
        yield rows[:1], first
        del first
        for row in rows[1:]:
            yield [row], self.decode([row])

    def decode_early(self, rows: list[Row]) -> list[Mapping[float, Tensor]]:
        """Images of every row's x0 predictions at the noise shares that verifiers want to see, frames in one batch."""
        wanted = [{time: self.as_of(row, time) for time in self.early} for row in rows]
        if self.several:
            return [_Looks(each, self.decode) for each in wanted]
        images = iter(self.decode([row for each in wanted for row in each.values()]))
        return [{time: _flat(next(images)) for time in self.early} for _ in rows]

    # what it says

    def judged(
        self, rows: list[Row], images: list[Tensor] | None, finished: bool
    ) -> Iterator[tuple[Row, Tensor, Tensor | None, Opinion]]:
        """Every row with its images, its vector if it is finished, and what verifiers say of them."""
        for some, shown in self.shares(rows, images):
            early = self.decode_early(some) if finished or rows[0].scout else []
            vectors: Sequence[Tensor | None] = [None] * len(some)
            if finished and self.likeness is not None:
                vectors = self.embed(shown)
            yield from zip(some, shown, vectors, self.scores(some, shown, early, finished), strict=True)
            del shown, early  # before the next are decoded

    def embed(self, images: list[Tensor]) -> list[Tensor]:
        """The vectors of candidates that tell which are alike."""
        assert self.likeness is not None
        vectors: list[Tensor] = []
        while len(vectors) < len(images):
            vectors += self.batches.fitting("verifier", images[len(vectors) :], self.likeness.seen)
        return vectors

    def scores(
        self, rows: list[Row], images: list[Tensor], early: list[Mapping[float, Tensor]], finished: bool
    ) -> Iterator[Opinion]:
        """Parts of every row in order. When a verifier raises, it is asked one row at a time up to the bad one."""
        shown = list(zip(images, early or [{}] * len(images), strict=True))
        start, failure = 0, None
        failures = self.failures
        while start < len(rows):
            batch = shown[start : start + 1] if failure else shown[start:]
            with Captured(VerifierFailed) as captured:
                answers = self.batches.fitting("verifier", batch, lambda some: self.ask(some, finished))
            if captured.error is None:
                yield from answers
                start += len(answers)
            elif len(batch) == 1 or failure:
                what = f"candidate {self.batches.spending.candidates}" if finished else "an x0 prediction on the way"
                raise SearchError(
                    f"{captured.error} (at {what}, {describe(rows[start].recipe.operations)}); "
                    "what was found before it is in the ledger"
                ) from captured.error.__cause__
            else:
                failure = captured.error
        if failure and self.failures == failures:
            raise SearchError(f"{failure} (on {len(rows)} candidates at once, on none alone)") from failure.__cause__

    def ask(self, shown: Sequence[tuple[Tensor, Mapping[float, Tensor]]], finished: bool) -> list[Opinion]:
        """Every verifier on the images of several candidates at once; a candidate's score is the mean of its images.

        The held-out one is spared what is not finished: nothing is made of what it would say there.
        """
        counts, early = [len(_flat(images)) for images, _ in shown], shown[0][1]
        together = _together([images for images, _ in shown])
        if len(shown) > 1:
            early = {time: torch.cat([images[time] for _, images in shown]) for time in early}
        verdicts = judging.ask(self.verifier, together, self.prompt, early)
        held_out = self.ask_held_out(together, early, len(shown)) if finished else [{}] * len(together)
        answers = [[judging.mean(list(islice(parts, n))) for n in counts] for parts in map(iter, (verdicts, held_out))]
        return list(zip(*answers, strict=True))

    def ask_held_out(self, images: Tensor, early: Mapping[float, Tensor], candidates: int) -> list[judging.Parts]:
        """What the held-out verifier says of the images of so many candidates.

        It decides nothing, so once it has answered it ends no search: where it fails on one candidate alone, that one
        has NaN, and after three in a row it is asked no more. Raises VerifierFailed before that.
        """
        if self.held_out is None:
            return [{}] * len(images)
        unknown = [dict.fromkeys(self.answered, NAN)] * len(images)
        if self.missed == MISSES:
            return unknown
        with Captured(VerifierFailed) as captured:
            found = judging.ask(self.held_out, images, self.prompt, early)
            self.answered, self.missed = list(found[0]), 0
            return found
        error = captured.error
        assert error is not None
        if not self.answered or candidates > 1 or self.sampler.is_out_of_memory(error.__cause__ or error):
            raise error
        self.missed, self.failures = self.missed + 1, self.failures + 1
        more = "; it was not asked any more" if self.missed == MISSES else ""
        self.batches.spending.report.note(f"held out: {error} (at candidate {self.batches.spending.candidates}){more}")
        return unknown

    # which way it would go

    def followable(self, queue: Sequence[Row]) -> list[Way]:
        """The ways of as many rows as one micro-batch takes, from x0 predictions to images that a gradient passes."""
        size = min(self.batches.sighted(), self.batches.size("verifier")) if self.several is False else 1
        with differentiable():
            ends = [_leaf(row) for row in queue[:size]]
            rows = [replace(row, x0=end) for row, end in zip(queue, ends, strict=False)]
            images = self.batches.fitting("VAE", rows, self.sampler.decode)
        return list(zip(images, ends, strict=False))

    def slopes(self, ways: Sequence[Way]) -> list[Tensor]:
        """The gradients of candidates' scores by the latents that their images were decoded from."""

        def ask(some: Sequence[Way]) -> list[Tensor]:
            images, ends = zip(*some, strict=True)
            with differentiable():
                score = judging.differentiable_score(self.verifier, _together(images), self.prompt)
                try:  # the mean of all, so each is to be weighed by their number; there may be a second try
                    return gradient_of(score * len(some), ends, keep=True)
                except RuntimeError as error:
                    reason = str(error).splitlines()[0]
                    raise SearchError(
                        f"vae, verifier: the gradient of {self.verifier.name} does not come through to the latent "
                        f"({reason}); choose another verifier, or another search algorithm"
                    ) from error

        found: list[Tensor] = []
        while len(found) < len(ways):
            found += self.batches.fitting("verifier", ways[len(found) :], ask)
        return found


def _flat(images: Tensor) -> Tensor:
    """Images [b, (T,) H, W, 3] of one candidate as one batch."""
    return images.reshape(-1, *images.shape[-3:])


def _together(images: Sequence[Tensor]) -> Tensor:
    """Images of several candidates as one batch; those of one are not copied."""
    return torch.cat([_flat(each) for each in images]) if len(images) > 1 else _flat(images[0])


def _leaf(row: Row) -> Tensor:
    """A copy of a row's x0 prediction that a gradient goes back to."""
    assert row.x0 is not None
    return row.x0.clone().requires_grad_()


class _Looks(Mapping[float, Tensor]):
    """Images of one row's x0 predictions by noise share, each decoded when it is asked for; the last stays at hand."""

    def __init__(self, rows: Mapping[float, Row], decode: Callable[[list[Row]], list[Tensor]]) -> None:
        self.rows, self.decode = rows, decode
        self.at_hand: dict[float, Tensor] = {}

    def __getitem__(self, time: float) -> Tensor:
        if time not in self.at_hand:
            self.at_hand.clear()  # before there is another
            [images] = self.decode([self.rows[time]])
            self.at_hand[time] = _flat(images)
        return self.at_hand[time]

    def __iter__(self) -> Iterator[float]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)
