"""The driver: the only loop. It serves what an algorithm asks for and owns everything that costs.

It cuts rows into micro-batches (MicroBatches), meters NFE and seconds and ends the search at the first limit
(Spending), has images made and judged (Jury), keeps the best (Podium) and writes the ledger as it goes. An algorithm
never sees any of that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from .attempts import Captured
from .budget import Budget
from .differentiable import differentiable
from .distinct import Likeness
from .errors import SearchError
from .jury import Jury
from .micro_batches import MicroBatches
from .podium import Podium
from .report import Evaluation, Kept, Ledger, SearchReport
from .spending import Spending, Stop
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
from .watcher import Watcher


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
        self.sampler, self.verifier, self.likeness = sampler, verifier, likeness
        self.report, self.ledger, self.watcher = report, ledger, watcher
        self.podium = Podium(verifier, likeness, top_k, report.evaluations)
        self.spending = Spending(sampler, budget, plan, report, self.podium, watcher, clock)
        self.plan = replace(plan, left=self.spending.left, timed=self.spending.timed)
        self.batches = MicroBatches(self.spending, batch)
        self.jury = Jury(verifier, held_out, likeness, prompt, self.batches)
        self.nearest_file: str | None = None  # of what came nearest to winning, while nothing can win
        self.open: list[Row] = []  # unfinished rows that an algorithm holds
        self.origins: list[Row] = []  # judged rows that were re-noised last: worth finishing if time is up

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
            moved = self.move(queue[: self.batches.affordable(sigmas)], sigmas)
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
        self.spending.gradient_nfe = (1 + BACKWARD_NFE) * cost
        followed = cost + self.spending.gradient_nfe + cost  # a gradient is for the image that is made by following it
        if "nfe" in self.spending.passed(followed, 0):
            return self.finish([row])[0]
        row = replace(row, sigma=sigmas[0], gradient=None)
        self.open = [row]
        self.check()
        [moved] = self.move([row][: self.batches.affordable(sigmas)], sigmas, trail=True)
        assert moved.x is not None
        with differentiable():
            end = moved.x.clone().requires_grad_()
            began = self.spending.clock()
            [images] = self.jury.decode([replace(moved, x=end)])
        self.open = []
        again = self.is_candidate(row)
        [scored] = [self.as_it_stands(row)] if again else self.evaluate([moved], True, [images.detach()], began)
        self.check()
        scored = replace(scored, sigma=0.0, noise=self.sampler.noise(row), trail=())
        if not math.isfinite(scored.score):
            return scored
        [at_end] = self.jury.slopes([(images, end)])
        del images, end  # and what their gradient keeps: the way back through the model needs the room
        spending = self.spending
        [pulled] = self.batches.fitting(
            "model", [moved], lambda rows: [self.sampler.pull_back(rows[0], at_end, spending)]
        )
        return replace(scored, gradient=pulled)

    def slopes(self, queue: list[Row]) -> list[Row]:
        """Score rows on their x0 predictions, each with the gradient of its score by it."""
        done: list[Row] = []
        while queue:
            self.open = [*done, *queue]
            self.check()
            estimate = self.sampler.rows_per_candidate  # has paid for the next step
            self.spending.afford(0, 0, queue[0].sigma, looks=len(queue), known=estimate)
            began = self.spending.clock()
            ways = self.jury.followable(queue)
            rows, queue = queue[: len(ways)], queue[len(ways) :]
            self.batches.unmoved()
            scored = self.evaluate(rows, False, [images.detach() for images, _ in ways], began)
            began = self.spending.clock()
            judged = [i for i, row in enumerate(scored) if math.isfinite(row.score)]
            slopes = dict(zip(judged, self.jury.slopes([ways[i] for i in judged]), strict=True))
            self.batches.looked(0, self.spending.clock() - began, finished=False)
            done += [replace(row, gradient=slopes.get(i)) for i, row in enumerate(scored)]
            del ways  # and all that their gradient keeps, before the next are decoded
        self.open = done
        return done

    def check(self) -> None:
        """Between micro-batches: end the search if a limit is reached that needs no new image to be."""
        self.spending.check(bool(self.open))

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
        looks = sum(row.scout for row in queue)  # a scout that nobody looks at is for nothing
        done: list[Row] = []
        while queue:
            self.check()
            # anew for every micro-batch: the first may be the first to say what such rows take
            self.spending.afford(len(queue), self.spending.cost(sigmas), sigmas[-1], looks, shrink=queue[0].shrink)
            moved = self.move(queue[: self.batches.size("model")], sigmas)
            queue = queue[len(moved) :]
            done += moved
            self.open = done + queue
        return done

    def judge(self, queue: list[Row], fresh: bool) -> list[Row]:
        self.open = list(queue)
        ended = queue[0].sigma == self.sampler.sigmas[-1]  # a scout: there is nothing left to predict
        fresh = not ended and (fresh or any(row.x0 is None for row in queue))
        estimate = self.sampler.rows_per_candidate if fresh else 0
        done: list[Row] = []
        while queue:
            self.check()
            # anew for every micro-batch: the first looks may be the first to say what looks take
            self.spending.afford(len(queue), estimate, queue[0].sigma, looks=len(queue), shrink=queue[0].shrink)
            if fresh:
                predicted = self.predicted(queue)
            else:
                predicted = queue[: self.batches.sighted()]
                self.batches.unmoved()
            queue = queue[len(predicted) :]
            done = self.podium.compared([*done, *self.evaluate(predicted, finished=False)])
            self.open = done + queue
        return done

    def predict(self, queue: list[Row]) -> list[Row]:
        self.open = list(queue)
        estimate = self.sampler.rows_per_candidate
        self.spending.afford(len(queue), estimate, queue[0].sigma, known=estimate)
        done: list[Row] = []
        while queue:
            self.check()
            predicted = self.predicted(queue)
            queue = queue[len(predicted) :]
            done += predicted
            self.open = done + queue
        return done

    def predicted(self, queue: list[Row]) -> list[Row]:
        """As many rows as one micro-batch takes, with new estimates."""
        ask = self.sampler.predict
        return self.batches.fitting("model", queue, lambda rows: ask(rows, self.spending), queue[0].shrink)

    def finish_open_rows(self) -> None:
        """At the end: finish the best open row if nothing is finished yet, and more where NFE and time are left."""
        rows = sorted(
            (row for row in [*self.open, *self.origins] if not row.scout),
            key=lambda row: (row.x is None, -row.score if math.isfinite(row.score) else math.inf),
        )
        planned = not self.report.stopped.keys().isdisjoint(("nfe", "seconds"))
        for row in rows:
            if self.podium and (not planned or self.spending.ends(row.sigma)):
                continue
            sigmas = self.plan.down(row.sigma, self.sampler.sigmas[-1])
            with Captured(Stop) as captured:
                self.evaluate(self.move([row], sigmas), finished=True)
            if isinstance(captured.error, Stop):
                self.report.stopped = captured.error.reason
                break
        self.report.seconds = self.spending.seconds

    def has_time(self) -> bool:
        """Whether a limit on seconds ended the search ahead, and still pays for a whole image."""
        return "seconds" in self.report.stopped and not self.spending.ends(self.sampler.sigmas[0])

    def result(self) -> SearchReport:
        """The report with the best candidates in it. Raises SearchError when there is none."""
        self.report.top = self.shown(self.podium.top())
        if not self.report.top:
            if not self.report.finished:
                raise SearchError(
                    f"budget: {self.report.stopped} was reached before one candidate was finished; raise that limit"
                )
            raise SearchError(
                f"no candidate can win: {self.report.why_none_wins}; change the verifier or its veto threshold"
                + (f"; what came nearest is in {self.nearest_file}" if self.nearest_file else "")
            )
        return self.report

    def shown(self, top: list[Kept]) -> list[Kept]:
        """The same with all their pictures, or one of several; says so when fewer are distinct than are asked for."""
        wanted = self.podium.top_k
        if self.likeness is not None and len(top) < min(wanted, len(self.report.judged)):
            self.report.note(
                f"distinct: {len(top)} of the {wanted} images asked for; all others are alike to one of them "
                f"(cosine of at least {self.likeness.threshold:g} by {self.likeness.name})"
            )
        return [*map(self.whole, top[:1]), *(kept if len(kept.images) else self.whole(kept).cut for kept in top[1:])]

    def whole(self, kept: Kept) -> Kept:
        """A candidate with all its images."""
        if kept.whole and len(kept.images):
            return kept
        [images] = self.jury.decode([kept.row])
        return replace(kept, images=images, whole=True)

    def move(self, rows: list[Row], sigmas: tuple[float, ...], **trail: bool) -> list[Row]:
        spending, jury = self.spending, self.jury
        before, nfe = spending.seconds, self.report.nfe
        if len(sigmas) < 2:
            self.batches.unmoved()
            return rows
        keep = jury.wanted(sigmas[:-1])
        go = self.sampler.advance
        moved = self.batches.fitting(
            "model", rows, lambda batch: go(batch, sigmas, spending, keep, **trail), rows[0].shrink
        )
        moved = [
            replace(jury.forgetting(new), as_stock=old.as_stock and not self.strays(old, sigmas))
            for old, new in zip(rows, moved, strict=False)
        ]
        if moved:
            spending.measured[sigmas] = -((nfe - self.report.nfe) // len(moved))  # rounded up
            self.batches.moved(len(moved), spending.seconds - before)
        return moved

    # images and scores

    def evaluate(
        self, rows: list[Row], finished: bool, images: list[Tensor] | None = None, began: float | None = None
    ) -> list[Row]:
        """Decode (unless that is done, since `began` on the clock), score and record rows in order.

        Stops at the first that reaches a limit; the rest cannot win.
        """
        before = self.spending.clock() if began is None else began
        rows = [self.as_ended(row) for row in rows] if finished else rows
        nfe, model_rows = self.batches.mark
        spent, entered = self.report.nfe - nfe, self.report.model_rows - model_rows
        done: list[Row] = []
        reason: dict[str, float] = {}
        for row, shown, vector, (parts, held_out) in self.jury.judged(rows, images, finished):
            share = (len(done) + 1) / len(rows)
            evaluation = Evaluation(
                id=len(self.report.evaluations),
                candidate=self.spending.candidates if finished else None,
                parent=row.parent if row.id is None else row.id,
                sigma=row.sigma,
                score=NAN,
                parts=parts,
                held_out=held_out,
                nfe=nfe + round(spent * share),
                model_rows=model_rows + round(entered * share),
                seconds=self.spending.seconds,
                seed=row.recipe.seed,
                recipe=row.recipe.operations,
                after_stop=bool(reason),
                scout=row.scout,
            )
            if self.likeness is not None and vector is not None:
                self.likeness.vectors[evaluation.id] = vector
            done.append(self.record(evaluation, row, shown))
            if finished and not reason:
                reason = self.spending.reached()
        self.batches.looked(len(rows), self.spending.clock() - before, finished)
        if reason:
            raise Stop(reason)
        return done

    @staticmethod
    def as_ended(row: Row) -> Row:
        """A finished row, with a pause in its recipe if stock would have ended elsewhere."""
        if row.as_stock or not row.recipe.replayable:
            return row
        return replace(row, recipe=row.recipe.then(op="pause"))

    def record(self, evaluation: Evaluation, row: Row, images: Tensor) -> Row:
        """Put one evaluation in the ledger and keep it if it is among the best."""
        evaluation = self.podium.scored(evaluation)
        row = replace(row, id=evaluation.id, score=evaluation.score)
        leads = self.podium.enter(evaluation, row, images)
        self.report.evaluations.append(evaluation)
        self.spending.candidates += evaluation.candidate is not None
        try:
            self.ledger.append(evaluation)
        except OSError as error:  # a full disk must not end the search
            self.report.note(f"the ledger could not be written: {error}")
        if leads:
            self.watcher.leads(self.podium.kept[evaluation.id])
        nearest = self.podium.nearest
        if nearest and nearest.evaluation.id == evaluation.id:
            self.nearest_file = self.watcher.nearest(nearest)
        self.watcher.evaluated(evaluation, images, leads)
        return replace(row, x=None, x0=None, early=(), trail=()) if evaluation.candidate is not None else row
