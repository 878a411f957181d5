"""The podium: which candidates can still win, who leads, and what is kept to show the best again."""

from __future__ import annotations

import math
from dataclasses import replace

from torch import Tensor

from . import judging
from .distinct import Likeness, distinct, reach
from .report import Evaluation, Kept, ranked
from .types import Row, Verifier


class Podium:
    """The best `top_k` candidates of a search as it goes on; with a likeness, no two of them alike.

    `evaluations` is the search's list of all that was scored: where a score depends on the whole pool, those in it are
    given their new ones.
    """

    def __init__(
        self, verifier: Verifier, likeness: Likeness | None, top_k: int, evaluations: list[Evaluation]
    ) -> None:
        self.verifier, self.likeness, self.top_k, self.evaluations = verifier, likeness, top_k, evaluations
        self.pooled = judging.is_pooled(verifier)
        self.pool: list[judging.Parts] = []  # of the candidates that can still win
        self.pool_ids: list[int] = []
        self.kept: dict[int, Kept] = {}
        self.best: float | None = None
        self.since_best = 0
        self.nearest: Kept | None = None  # to winning, while none can win
        lenient = getattr(verifier, "without_vetoes", None)
        self._lenient: Verifier = lenient() if lenient else verifier

    def __len__(self) -> int:
        """How many candidates took part so far."""
        return len(self.pool)

    def scored(self, evaluation: Evaluation) -> Evaluation:
        """The evaluation with its score beside all candidates so far. Theirs become those of the pool with it, if it is
        a candidate that enters.
        """
        beside = self.pool if self.pooled and evaluation.candidate is not None else []  # else see `compared`
        scores = judging.combine(self.verifier, [*beside, evaluation.parts])
        if beside and evaluation.takes_part:
            self._rescore(self.pool_ids, scores[:-1])
        return replace(evaluation, score=scores[-1])

    def compared(self, rows: list[Row]) -> list[Row]:
        """Unfinished rows that were judged together: where a score depends on the pool, they are the pool.

        Beside finished images they would all look the same: x0 predictions are worse, and how much depends on the step.
        """
        if not self.pooled:
            return rows
        ids = [row.id for row in rows if row.id is not None]
        scores = judging.combine(self.verifier, [self.evaluations[id].parts for id in ids])
        self._rescore(ids, scores)
        return [replace(row, score=score) for row, score in zip(rows, scores, strict=True)]

    def enter(self, evaluation: Evaluation, row: Row, images: Tensor) -> bool:
        """Take in a scored candidate; whether it leads now. Nothing else may enter."""
        if not evaluation.takes_part:
            return False
        self.pool.append(evaluation.parts)
        self.pool_ids.append(evaluation.id)
        if evaluation.can_win or self.pooled:  # a pooled score may become a winning one later
            self.kept[evaluation.id] = Kept(evaluation, _at_rest(row), images)
        best = ranked(self.winners())
        leads = bool(best) and best[0].evaluation.id == evaluation.id
        self.best = best[0].evaluation.score if best else None
        self.since_best = 0 if leads else self.since_best + 1
        self._let_go(best)
        self._cut(best[:1])
        if best:
            self.nearest = None
        elif self._comes_nearest(evaluation):
            self.nearest = Kept(evaluation, _at_rest(row), images).cut
        return leads

    def winners(self) -> list[Kept]:
        """All that are kept and can win as of now."""
        return [kept for kept in self.kept.values() if kept.evaluation.can_win]

    def top(self) -> list[Kept]:
        """The top k as of now, best first; with a threshold, no two of them alike."""
        return self._top(ranked(self.winners()))

    def _comes_nearest(self, evaluation: Evaluation) -> bool:
        """Whether what has just entered would lead if no member had a veto; of what cannot be judged, the first."""
        if self.nearest is None:
            return True
        pair = [self.nearest.evaluation, evaluation]
        pool = dict(zip(self.pool_ids, self.pool, strict=True)) if self.pooled else {e.id: e.parts for e in pair}
        scores = dict(zip(pool, judging.combine(self._lenient, [*pool.values()]), strict=True))
        before, now = (scores[e.id] if math.isfinite(scores[e.id]) else -math.inf for e in pair)
        return now > before

    def _top(self, best: list[Kept]) -> list[Kept]:
        """The top k of all that can win, ranked."""
        if self.likeness is None or not best:
            return best[: self.top_k]
        places = distinct(self.likeness.of([kept.evaluation.id for kept in best]), self.top_k, self.likeness.threshold)
        return [best[place] for place in places]

    def _let_go(self, best: list[Kept]) -> None:
        """Of the ranked ones, forget those that can no longer be among the top k, and the pictures of those that are
        not now.
        """
        likeness, of_top = self.likeness, {kept.evaluation.id for kept in self._top(best)}
        if self.pooled:  # any may rise again
            staying = [*self.kept.values()]
        elif likeness is None or not best:
            staying = best[: self.top_k]
        else:
            staying = best[: reach(likeness.of([k.evaluation.id for k in best]), self.top_k, likeness.threshold)]
        self.kept = {k.evaluation.id: k if k.evaluation.id in of_top else _waiting(k) for k in staying}
        if likeness is not None and not self.pooled:
            likeness.keep(self.kept)

    def _cut(self, best: list[Kept]) -> None:
        """Keep all images of the best alone, where candidates have several: of videos they would fill the memory."""
        whole = [kept.evaluation.id for kept in best]
        self.kept = {id: kept if id in whole else kept.cut for id, kept in self.kept.items()}

    def _rescore(self, ids: list[int], scores: list[float]) -> None:
        """Give what was scored before its score beside what has come since."""
        for id, score in zip(ids, scores, strict=True):
            rescored = self.evaluations[id] = replace(self.evaluations[id], score=score)
            if id in self.kept:
                self.kept[id] = replace(self.kept[id], evaluation=rescored)


def _at_rest(row: Row) -> Row:
    """A row that goes no further: the latent that its picture can be decoded from again."""
    return replace(row, x0=None if row.sigma == 0 else row.x0, early=(), trail=())


def _waiting(kept: Kept) -> Kept:
    """A candidate that may be among the top k later."""
    return replace(kept, images=kept.images.new_empty(0))  # a slice would hold on to all of them
