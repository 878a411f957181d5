"""The driver: the only loop. It serves what an algorithm asks for and owns everything that costs.

It cuts rows into micro-batches, halves them when memory runs out, meters NFE and seconds, keeps the best,
writes the ledger as it goes, and ends the search at the first limit. An algorithm never sees any of that.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import TypeVar

import torch
from torch import Tensor

from . import judging
from .attempts import Attempt, Captured
from .budget import Budget
from .differentiable import differentiable, gradient_of
from .distinct import Likeness
from .errors import SearchError
from .judging import VerifierFailed
from .podium import Podium
from .recipe import describe
from .report import Evaluation, Kept, Ledger, SearchReport
from .types import (
    BACKWARD_NFE,
    NAN,
    Advance,
    Finish,
    Gradient,
    Judge,
    Plan,
    Predict,
    Renoise,
    Request,
    Row,
    Sampler,
    Slope,
    Verifier,
)

Item = TypeVar("Item")
Result = TypeVar("Result")


class Watcher:
    """Who watches a search: override what is of interest. The methods here do nothing."""

    def progress(self, nfe: int, expected: int | None) -> None:
        """`nfe` forwards were made; `expected` is the driver's guess of the total, if it has one."""

    def evaluated(self, evaluation: Evaluation, images: Tensor, best: bool) -> None:
        """An image was scored; `best` when it leads now. images [b, (T,) H, W, 3] in 0..1."""

    def finish_now(self) -> bool:
        """Whether the user asks to end with the best so far."""
        return False


class Stop(BaseException):
    """A limit is reached. Not an Exception, so that no sampler or algorithm swallows it."""

    def __init__(self, reason: dict[str, float]) -> None:
        super().__init__(reason)
        self.reason = reason


class Driver:
    """The state of one search."""

    def __init__(
        self,
        sampler: Sampler,
        verifier: Verifier,
        held_out: Verifier | None,
        likeness: Likeness | None,
        budget: Budget,
        prompt: str,
        plan: Plan,
        report: SearchReport,
        top_k: int,
        batch: int,
        ledger: Ledger,
        watcher: Watcher,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.sampler, self.verifier, self.held_out, self.likeness = sampler, verifier, held_out, likeness
        self.budget, self.prompt, self.plan = budget, prompt, replace(plan, allowance=self.allowance)
        self.report, self.ledger, self.watcher = report, ledger, watcher
        self.early = sorted(judging.early_times(verifier) | judging.early_times(held_out))  # noise shares
        self.batch = {"model": batch, "VAE": batch, "verifier": batch}  # 0 = the sampler's own estimate
        self.clock = clock or time.monotonic
        self.created = self.clock()
        self.started: float | None = None
        self.podium = Podium(verifier, likeness, top_k, report.evaluations)
        self.finished = 0  # candidates recorded; counting them in the report anew for each would be quadratic
        self.open: list[Row] = []  # unfinished rows that an algorithm holds
        self.origins: list[Row] = []  # judged rows that were re-noised last: worth finishing if time is up
        self.measured: dict[tuple[float, ...], int] = {}
        self.gradient_nfe = 0  # of one candidate, if gradients are asked for
        self.move_seconds: float | None = None  # of one row in the last micro-batch
        self.row_seconds: float | None = None  # the same with its images and scores
        self.look_seconds = 0.0  # of images and scores, all together
        self.several: bool | None = None  # whether a candidate has several images, as a video has; None = not seen yet
        self.mark = (0, 0)  # NFE and model rows before the micro-batch that is being evaluated

    # the meter, seen by the sampler

    def forward(self, rows: int) -> None:
        """Count `rows` rows before they enter the denoiser; end the search rather than exceed its budget."""
        if self.started is None:
            self.started = self.clock()
            self.report.load_seconds = self.started - self.created
        if self.budget.nfe and self.report.nfe + rows > self.budget.nfe:
            raise Stop({"nfe": self.budget.nfe})
        if self.podium and self.watcher.finish_now():
            raise Stop({"finish now": 1})
        self.report.nfe += rows
        self.watcher.progress(self.report.nfe, self.expected_nfe())

    def backward(self, rows: int) -> None:
        """Count the way back of `rows` rows through the denoiser."""
        self.forward(BACKWARD_NFE * rows)

    def model_rows(self, rows: int) -> None:
        """Count rows that entered the network itself."""
        self.report.model_rows += rows

    @property
    def seconds(self) -> float:
        return 0.0 if self.started is None else self.clock() - self.started

    def expected_nfe(self) -> int | None:
        """The total NFE that the limits allow, as far as they can be known."""
        guesses: list[float] = [self.budget.nfe] if self.budget.nfe else []
        if self.budget.candidates and self.plan.candidate_nfe:
            guesses.append(self.budget.candidates * (self.plan.candidate_nfe + self.gradient_nfe))
        if self.budget.seconds and self.seconds > 0:
            guesses.append(self.report.nfe * max(1.0, self.budget.seconds / self.seconds))
        return max(self.report.nfe, round(min(guesses))) if guesses else None

    # requests

    def serve(self, request: Request) -> list[Row]:
        if not request.rows:  # it would ask for nothing for ever, and no limit would end it
            raise SearchError("the algorithm asked for no rows; expected at least one: raise its settings above 0")
        if isinstance(request, Finish):
            if any(row.scout for row in request.rows):
                raise SearchError("the algorithm asked to finish a scout; expected its noise, begun anew")
            return self.finish(list(request.rows))
        if isinstance(request, Gradient):
            return [self.gradient(row) for row in request.rows]
        if isinstance(request, Advance):
            return self.advance(list(request.rows), tuple(request.sigmas))
        if isinstance(request, Judge):
            return self.judge(list(request.rows), request.fresh)
        if isinstance(request, Predict):
            return self.predict(list(request.rows))
        if isinstance(request, Slope):
            return self.slopes(list(request.rows))
        if isinstance(request, Renoise):
            pairs = zip(request.rows, request.seeds, strict=True)
            noised = [(row, self.sampler.renoise(row, request.sigma, seed)) for row, seed in pairs]
            moved = [replace(new, scout=old.scout, shrink=old.shrink, guide=old.guide) for old, new in noised]
            self.origins = [*{id(row): row for row in request.rows if math.isfinite(row.score)}.values()]
            self.open = list(moved)
            return moved
        raise SearchError(f"the algorithm asked for {request!r}; expected one of search.types.Request")

    def finish(self, rows: list[Row]) -> list[Row]:
        again = [row.x is None and self.is_candidate(row) for row in rows]
        queue = [row for row, finished in zip(rows, again, strict=True) if not finished]
        done: list[Row] = []
        while queue:
            self.open = list(queue)
            self.check()
            sigmas = self.plan.down(queue[0].sigma, self.sampler.sigmas[-1])
            moved = self.move(queue[: self.affordable(sigmas)], sigmas)
            queue = queue[len(moved) :]
            self.open = list(queue)
            done += self.evaluate(moved, finished=True)
        self.origins = []
        fresh = iter(done)
        replies = [row if finished else next(fresh) for row, finished in zip(rows, again, strict=True)]
        return [self.as_it_stands(row) for row in replies]

    def gradient(self, row: Row) -> Row:
        """Finish and score a row at pure noise, then take the gradient of its score back to its start noise."""
        sigmas, cost = self.sampler.sigmas, self.plan.candidate_nfe or 0
        self.gradient_nfe = (1 + BACKWARD_NFE) * cost
        followed = cost + self.gradient_nfe + cost  # a gradient is for the image that is made by following it
        if self.budget.nfe and self.report.nfe + followed > self.budget.nfe:
            return self.finish([row])[0]
        row = replace(row, sigma=sigmas[0], gradient=None)
        self.open = [row]
        self.check()
        [moved] = self.move([row][: self.affordable(sigmas)], sigmas, trail=True)
        assert moved.x is not None
        with differentiable():
            end = moved.x.clone().requires_grad_()
            [images] = self.decode([replace(moved, x=end)])
        self.open = []
        again = self.is_candidate(row)
        [scored] = [self.as_it_stands(row)] if again else self.evaluate([moved], True, [images.detach()])
        self.check()
        scored = replace(scored, sigma=0.0, noise=self.sampler.noise(row), trail=())
        if not math.isfinite(scored.score):
            return scored
        at_end = self.slope(images, end)
        [pulled] = self.fitting("model", [moved], lambda rows: [self.sampler.pull_back(rows[0], at_end, self)])
        return replace(scored, gradient=pulled)

    def slopes(self, rows: list[Row]) -> list[Row]:
        """Score rows on their x0 predictions, one at a time, each with the gradient of its score by it."""
        done: list[Row] = []
        for row in rows:
            self.open = [*done, *rows[len(done) :]]
            self.check()
            assert row.x0 is not None
            with differentiable():
                clean = row.x0.clone().requires_grad_()
                [images] = self.decode([replace(row, x0=clean)])
            self.mark = self.report.nfe, self.report.model_rows
            [scored] = self.evaluate([row], False, [images.detach()])
            done.append(replace(scored, gradient=self.slope(images, clean) if math.isfinite(scored.score) else None))
        self.open = done
        return done

    def slope(self, images: Tensor, end: Tensor) -> Tensor:
        """The gradient of a candidate's score by the latent that its images were decoded from."""

        def ask(shown: Sequence[Tensor]) -> list[Tensor]:
            with differentiable():
                score = judging.differentiable_score(self.verifier, _flat(shown[0]), self.prompt)
                try:
                    return gradient_of(score, [end], keep=True)  # there may be a second try when memory runs out
                except RuntimeError as error:
                    reason = str(error).splitlines()[0]
                    raise SearchError(
                        f"vae, verifier: the gradient of {self.verifier.name} does not come through to the latent "
                        f"({reason}); choose another verifier, or another search algorithm"
                    ) from error

        return self.fitting("verifier", [images], ask)[0]

    def strays(self, row: Row, sigmas: tuple[float, ...]) -> bool:
        """Whether a row that moves along `sigmas` leaves the way that stock takes."""
        schedule = self.sampler.sigmas
        first = schedule.index(sigmas[0]) if sigmas[0] in schedule else len(schedule)
        on_schedule = schedule[first : first + len(sigmas)] == sigmas
        return not on_schedule or (row.x is not None and not self.sampler.exact_pauses)

    def is_candidate(self, row: Row) -> bool:
        """Whether a row was finished and recorded before the search stopped."""
        return row.id is not None and self.report.evaluations[row.id].takes_part

    def as_it_stands(self, row: Row) -> Row:
        """A recorded row with its score as of now: ranks change as the pool grows."""
        assert row.id is not None
        return replace(row, score=self.report.evaluations[row.id].score)

    def advance(self, queue: list[Row], sigmas: tuple[float, ...]) -> list[Row]:
        self.open = list(queue)
        self.afford(len(queue), self.cost(sigmas), sigmas[-1])
        done: list[Row] = []
        while queue:
            self.check()
            moved = self.move(queue[: self.size("model")], sigmas)
            queue = queue[len(moved) :]
            done += moved
            self.open = done + queue
        return done

    def judge(self, queue: list[Row], fresh: bool) -> list[Row]:
        self.open = list(queue)
        ended = queue[0].sigma == self.sampler.sigmas[-1]  # a scout: there is nothing left to predict
        fresh = not ended and (fresh or any(row.x0 is None for row in queue))
        self.afford(len(queue), self.sampler.rows_per_candidate if fresh else 0, queue[0].sigma, looks=len(queue))
        done: list[Row] = []
        while queue:
            self.check()
            if fresh:
                predicted = self.fitting("model", queue, lambda rows: self.sampler.predict(rows, self))
            else:
                predicted, self.mark = queue[: self.size("model")], (self.report.nfe, self.report.model_rows)
            queue = queue[len(predicted) :]
            done = self.podium.compared([*done, *self.evaluate(predicted, finished=False)])
            self.open = done + queue
        return done

    def predict(self, queue: list[Row]) -> list[Row]:
        self.open = list(queue)
        estimate = self.sampler.rows_per_candidate
        self.afford(len(queue), estimate, queue[0].sigma, known=estimate)
        done: list[Row] = []
        while queue:
            self.check()
            predicted = self.fitting("model", queue, lambda rows: self.sampler.predict(rows, self))
            queue = queue[len(predicted) :]
            done += predicted
            self.open = done + queue
        return done

    def finish_open_rows(self) -> None:
        """At the end: finish the best open row if nothing is finished yet, and more where NFE and time are left."""
        rows = sorted(
            (row for row in [*self.open, *self.origins] if not row.scout),
            key=lambda row: (row.x is None, -row.score if math.isfinite(row.score) else math.inf),
        )
        for row in rows:
            sigmas = self.plan.down(row.sigma, self.sampler.sigmas[-1])
            cost = self.cost(sigmas)
            planned = not self.report.stopped.keys().isdisjoint(("nfe", "seconds"))
            if self.podium and (not planned or self.over(1 if cost is None else cost, looks=1)):
                continue
            with Captured(Stop) as captured:
                self.evaluate(self.move([row], sigmas), finished=True)
            if captured.error:
                break
        self.report.seconds = self.seconds

    def result(self) -> SearchReport:
        """The report with the best candidates in it. Raises SearchError when there is none."""
        self.report.top = self.shown(self.podium.top())
        if not self.report.top:
            verdicts = [e.verdict for e in self.report.finished]
            if not verdicts:
                raise SearchError(
                    f"budget: {self.report.stopped} was reached before one candidate was finished; raise that limit"
                )
            raise SearchError(
                f"no candidate can win: of {len(verdicts)}, verifier {self.verifier.name} could not judge "
                f"{verdicts.count('not judged')} (NaN) and vetoed {verdicts.count('vetoed')}; "
                "change the verifier or its veto threshold"
            )
        return self.report

    def shown(self, top: list[Kept]) -> list[Kept]:
        """The same with all their pictures, or one of several; says so when fewer are distinct than are asked for."""
        wanted = self.podium.top_k
        if self.likeness is not None and len(top) < min(wanted, len(self.report.judged)):
            self.note(
                f"distinct: {len(top)} of the {wanted} images asked for; all others are alike to one of them "
                f"(cosine of at least {self.likeness.threshold:g} by {self.likeness.name})"
            )
        return [*map(self.whole, top[:1]), *(kept if len(kept.images) else self.whole(kept).cut for kept in top[1:])]

    def whole(self, kept: Kept) -> Kept:
        """A candidate with all its images."""
        if kept.whole and len(kept.images):
            return kept
        [images] = self.decode([kept.row])
        return replace(kept, images=images, whole=True)

    # what it costs

    def cost(self, sigmas: tuple[float, ...]) -> int | None:
        """NFE of taking one candidate along `sigmas`: known from the sampler, or measured once it was done."""
        forwards = self.sampler.cost(sigmas)
        return self.measured.get(sigmas) if forwards is None else forwards * self.sampler.rows_per_candidate

    def check(self) -> None:
        """Between micro-batches: stop at the limits that need no new image to be reached."""
        if self.podium and self.watcher.finish_now():
            raise Stop({"finish now": 1})
        reached = self.budget.reached(candidates=0, nfe=self.report.nfe, seconds=self.seconds, best=None, since_best=0)
        if reached and (self.podium or self.open):
            raise Stop(reached)

    def afford(self, rows: int, cost: int | None, end: float, looks: int = 0, known: int = 0) -> None:
        """Refuse a mid-way request that would leave too little to finish one image: then it would be for nothing.

        `known`: NFE of the way from `end` on that the request itself pays for, as an estimate does for the next step.
        """
        reserve = max(0, (self.cost(self.plan.down(end, self.sampler.sigmas[-1])) or 0) - known)
        reached = self.over(rows * (1 if cost is None else cost) + reserve, looks + 1)
        if reached:
            raise Stop(reached)

    def allowance(self) -> float:
        """The NFE that a limit on seconds pays for in all, at the pace so far; infinite where nothing tells."""
        timed = self.budget.seconds and self.seconds
        return self.report.nfe * self.budget.seconds / self.seconds if timed else math.inf

    def over(self, nfe: float, looks: int) -> dict[str, float]:
        """The limits on NFE and seconds that so many more NFE and looks would pass, at the pace so far."""
        forward = (self.seconds - self.look_seconds) / max(1, self.report.nfe)
        look = self.look_seconds / max(1, len(self.report.evaluations))
        wanted = {"nfe": self.report.nfe + nfe, "seconds": self.seconds + nfe * forward + looks * look}
        limits = {"nfe": self.budget.nfe, "seconds": self.budget.seconds}
        return {name: limit for name, limit in limits.items() if limit and wanted[name] > limit}

    def affordable(self, sigmas: tuple[float, ...]) -> int:
        """How many candidates the next micro-batch may hold: within the limits that are left, none that cannot matter.

        An automatic micro-batch lets the first image be seen as early as can be, and where each image may be the last,
        each before the next is begun.
        """
        size, cost = self.size("model"), self.cost(sigmas)
        if not self.batch["model"] and (self.budget.target or not self.report.evaluations):
            size = 1
        if self.budget.patience:
            size = min(size, max(1, self.budget.patience - self.podium.since_best))
        if self.budget.candidates:
            size = min(size, self.budget.candidates - self.finished)
        if self.budget.nfe and cost:
            size = min(size, (self.budget.nfe - self.report.nfe) // cost)
        if size < 1:
            raise Stop({"nfe": self.budget.nfe} if self.budget.nfe else {"candidates": self.budget.candidates})
        return 1 if cost is None else size  # an unknown cost is measured on one row

    def size(self, phase: str) -> int:
        """The micro-batch of a phase; a seconds budget starts with one row, then takes what still fits in time."""
        size = self.batch[phase] or self.sampler.micro_batch()
        if phase == "model" and self.budget.seconds:
            left = self.budget.seconds - self.seconds
            size = 1 if self.row_seconds is None else min(size, max(1, int(left / max(self.row_seconds, 1e-6))))
        return size

    # work that may run out of memory

    def fitting(
        self, phase: str, items: Sequence[Item], work: Callable[[Sequence[Item]], list[Result]]
    ) -> list[Result]:
        """`work` on as many items as one micro-batch takes; halved when memory runs out. Returns that prefix."""
        size, alone = min(self.size(phase), len(items)), 0
        while True:
            nfe, model_rows = self.report.nfe, self.report.model_rows
            if phase == "model":
                self.mark = nfe, model_rows
            with Attempt(self.sampler) as attempt:
                return work(items[:size])
            if attempt.failed:
                self.report.lost_nfe += self.report.nfe - nfe
                self.report.nfe, self.report.model_rows = nfe, model_rows
                self.sampler.free_memory()
                if size == 1:
                    alone += 1
                    if alone == 3:
                        raise SearchError(
                            f"the {phase} ran out of memory on a single candidate, three times in a row; "
                            "use a smaller latent or a smaller model"
                        )
                    self.note(f"{phase}: out of memory on one candidate at NFE {nfe}, tried again")
                else:
                    self.note(f"{phase}: out of memory at NFE {nfe}, batch {size} -> {(size + 1) // 2}")
                    size = self.batch[phase] = (size + 1) // 2

    def note(self, text: str) -> None:
        if text not in self.report.notes:
            self.report.notes.append(text)

    def move(self, rows: list[Row], sigmas: tuple[float, ...], **trail: bool) -> list[Row]:
        before, nfe = self.seconds, self.report.nfe  # 0 before the first forward, so that loading is not counted
        if len(sigmas) < 2:
            self.mark = self.report.nfe, self.report.model_rows
            return rows
        keep = [self.nearest(sigmas[:-1], time) for time in self.early]
        moved = self.fitting("model", rows, lambda batch: self.sampler.advance(batch, sigmas, self, keep, **trail))
        moved = [
            replace(self.forgetting(new), as_stock=old.as_stock and not self.strays(old, sigmas))
            for old, new in zip(rows, moved, strict=False)
        ]
        if moved:
            self.measured[sigmas] = -((nfe - self.report.nfe) // len(moved))
            self.row_seconds = self.move_seconds = (self.seconds - before) / len(moved)
        return moved

    # images and scores

    def nearest(self, sigmas: Sequence[float], time: float) -> float:
        """The sigma whose noise share is nearest to `time`."""
        return min(sigmas, key=lambda sigma: abs(self.sampler.time(sigma) - time))

    def forgetting(self, row: Row) -> Row:
        """A row with one early estimate for each wanted noise share: the nearest there was on its whole way."""
        of = dict(row.early)
        wanted = {self.nearest(list(of), time) for time in self.early} if of else set()
        return replace(row, early=tuple((sigma, of[sigma]) for sigma in wanted))

    def evaluate(self, rows: list[Row], finished: bool, images: list[Tensor] | None = None) -> list[Row]:
        """Decode (unless that is done), score and record rows in order.

        Stops at the first that reaches a limit; the rest cannot win.
        """
        before = self.clock()
        rows = [self.as_ended(row) for row in rows] if finished else rows
        nfe, model_rows = self.mark
        spent, entered = self.report.nfe - nfe, self.report.model_rows - model_rows
        done: list[Row] = []
        reason: dict[str, float] = {}
        for row, shown, vector, (parts, held_out) in self.judged(rows, images, finished):
            share = (len(done) + 1) / len(rows)
            evaluation = Evaluation(
                id=len(self.report.evaluations),
                candidate=self.finished if finished else None,
                parent=row.parent if row.id is None else row.id,
                sigma=row.sigma,
                score=NAN,
                parts=parts,
                held_out=held_out,
                nfe=nfe + round(spent * share),
                model_rows=model_rows + round(entered * share),
                seconds=self.seconds,
                seed=row.recipe.seed,
                recipe=row.recipe.operations,
                after_stop=bool(reason),
                scout=row.scout,
            )
            if self.likeness is not None and vector is not None:
                self.likeness.vectors[evaluation.id] = vector
            done.append(self.record(evaluation, row, shown))
            if finished and not reason:
                reason = self.budget.reached(
                    candidates=self.finished, nfe=0, seconds=0, best=self.podium.best, since_best=self.podium.since_best
                )
        looked = self.clock() - before
        self.look_seconds += looked
        if self.move_seconds is not None:
            self.row_seconds = self.move_seconds + looked / len(rows)
        if reason:
            raise Stop(reason)
        return done

    def judged(
        self, rows: list[Row], images: list[Tensor] | None, finished: bool
    ) -> Iterator[tuple[Row, Tensor, Tensor | None, tuple[judging.Parts, judging.Parts]]]:
        """Every row with its images, its vector if it is finished, and what verifiers say of them."""
        for some, shown in self.shares(rows, images):
            early = self.decode_early(some) if finished or rows[0].scout else []
            vectors: Sequence[Tensor | None] = [None] * len(some)
            if finished and self.likeness is not None:
                vectors = self.embed(shown)
            yield from zip(some, shown, vectors, self.scores(some, shown, early, finished), strict=True)
            del shown, early  # before the next are decoded

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

    @staticmethod
    def as_ended(row: Row) -> Row:
        """A finished row, with a pause in its recipe if stock would have ended elsewhere."""
        if row.as_stock or not row.recipe.replayable:
            return row
        return replace(row, recipe=row.recipe.then(op="pause"))

    def decode(self, rows: list[Row]) -> list[Tensor]:
        images: list[Tensor] = []
        while len(images) < len(rows):
            images += self.fitting("VAE", rows[len(images) :], self.sampler.decode)
        return images

    def decode_early(self, rows: list[Row]) -> list[Mapping[float, Tensor]]:
        """Images of every row's x0 predictions at the noise shares that verifiers want to see, frames in one batch."""
        wanted = [{time: self.as_of(row, time) for time in self.early} for row in rows]
        if self.several:
            return [_Looks(each, self.decode) for each in wanted]
        images = iter(self.decode([row for each in wanted for row in each.values()]))
        return [{time: _flat(next(images)) for time in self.early} for _ in rows]

    def as_of(self, row: Row, time: float) -> Row:
        """A row where its early estimate nearest to a noise share was made."""
        sigma = self.nearest([s for s, _ in row.early], time)
        return replace(row, sigma=sigma, x0=dict(row.early)[sigma])

    def embed(self, images: list[Tensor]) -> list[Tensor]:
        """The vectors of candidates that tell which are alike."""
        assert self.likeness is not None
        vectors: list[Tensor] = []
        while len(vectors) < len(images):
            vectors += self.fitting("verifier", images[len(vectors) :], self.likeness.seen)
        return vectors

    def scores(
        self, rows: list[Row], images: list[Tensor], early: list[Mapping[float, Tensor]], finished: bool
    ) -> Iterator[tuple[judging.Parts, judging.Parts]]:
        """Parts of every row in order. When a verifier raises, it is asked one row at a time up to the bad one."""
        shown = list(zip(images, early or [{}] * len(images), strict=True))
        start, failure = 0, None
        while start < len(rows):
            batch = shown[start : start + 1] if failure else shown[start:]
            with Captured(VerifierFailed) as captured:
                answers = self.fitting("verifier", batch, lambda some: self.ask(some, finished))
            if captured.error is None:
                yield from answers
                start += len(answers)
            elif len(batch) == 1 or failure:
                what = f"candidate {self.finished}" if finished else "an x0 prediction on the way"
                raise SearchError(
                    f"{captured.error} (at {what}, {describe(rows[start].recipe.operations)}); "
                    "what was found before it is in the ledger"
                ) from captured.error.__cause__
            else:
                failure = captured.error
        if failure:
            raise SearchError(f"{failure} (on {len(rows)} candidates at once, on none alone)") from failure.__cause__

    def ask(
        self, shown: Sequence[tuple[Tensor, Mapping[float, Tensor]]], finished: bool
    ) -> list[tuple[judging.Parts, judging.Parts]]:
        """Every verifier on the images of several candidates at once; a candidate's score is the mean of its images.

        The held-out one is spared what is not finished: nothing is made of what it would say there.
        """
        flat = [_flat(images) for images, _ in shown]
        counts, together, early = [len(each) for each in flat], flat[0], shown[0][1]
        if len(shown) > 1:
            together = torch.cat(flat)
            early = {time: torch.cat([images[time] for _, images in shown]) for time in early}
        answers = []
        for verifier in (self.verifier, self.held_out if finished else None):
            parts = iter(judging.ask(verifier, together, self.prompt, early) if verifier else [{}] * len(together))
            answers.append([judging.mean(list(islice(parts, count))) for count in counts])
        return list(zip(*answers, strict=True))

    def record(self, evaluation: Evaluation, row: Row, images: Tensor) -> Row:
        """Put one evaluation in the ledger and keep it if it is among the best."""
        evaluation = self.podium.scored(evaluation)
        row = replace(row, id=evaluation.id, score=evaluation.score)
        leads = self.podium.enter(evaluation, row, images)
        self.report.evaluations.append(evaluation)
        self.finished += evaluation.candidate is not None
        try:
            self.ledger.append(evaluation)
        except OSError as error:  # a full disk must not end the search
            self.note(f"the ledger could not be written: {error}")
        self.watcher.evaluated(evaluation, images, leads)
        return replace(row, x=None, x0=None, early=(), trail=()) if evaluation.candidate is not None else row


def _flat(images: Tensor) -> Tensor:
    """Images [b, (T,) H, W, 3] of one candidate as one batch."""
    return images.reshape(-1, *images.shape[-3:])


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
