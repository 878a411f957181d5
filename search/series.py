"""A series of searches, one per prompt, whose winners make up one growing set.

Some verifiers (oracle FID, Inception Score) score an image by what it does to the set of winners so far. They have
`accept(images)` and `reset()`; all others take part too and notice nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from torch import Tensor

from .errors import SearchError
from .report import SearchReport
from .types import Verifier

Job = TypeVar("Job")


class Growing(Protocol):
    """What a verifier of a growing set has beside `score`, which never changes the set."""

    name: str

    def accept(self, images: Tensor) -> None:
        """Add images [B, H, W, 3] in 0..1 to the set."""

    def reset(self) -> None:
        """Empty the set."""


def growing(verifiers: Sequence[Verifier | None]) -> list[Growing]:
    """Those of some verifiers, and of the members of ensembles among them, that keep a set; each comes once."""
    found: list[Growing] = []
    for verifier in verifiers:
        inner: Any = getattr(verifier, "verifier", None)  # a member of an ensemble, or the host's wrapper of a network
        candidate: Any = verifier
        if callable(getattr(candidate, "reset", None)) and callable(getattr(candidate, "accept", None)):
            each = [candidate]
        else:
            each = growing([*getattr(verifier, "members", ()), *([inner] if inner is not None else [])])
        found += [one for one in each if not any(one is other for other in found)]
    return found


def run_series(
    jobs: Sequence[Job],
    search_one: Callable[[int, Job], SearchReport],
    verifiers: Sequence[Verifier | None],
) -> Iterator[SearchReport]:
    """Search for every job in order, and yield its report as soon as there is one.

    `search_one` gets the number of the job, from 0, and the job. Before the first one the sets of `verifiers` (the one
    that is searched with, and the held-out one, if any) are emptied, and after the last one, or when the series ends
    early, they are emptied again: nothing is left for another search. In between they accept every winner, once its
    report is taken and before the next job.

    Whoever takes the reports keeps them: an interrupt of the host passes through, and a SearchError is raised anew
    with the number of the job in front. Raises SearchError when there is no job.
    """
    if not jobs:
        raise SearchError("prompts: got none; write one per line")
    sets = growing(verifiers)
    _reset(sets)
    try:
        for number, job in enumerate(jobs):
            try:
                report = search_one(number, job)
            except SearchError as error:
                many = "result of the 1 before it is" if number == 1 else f"results of the {number} before it are"
                kept = f"; the {many} kept" if number else ""
                raise SearchError(f"prompt {number + 1} of {len(jobs)} ({job}): {error}{kept}") from error
            yield report  # before its images are looked at again, which may fail too
            if report.best is not None:
                images = report.best.images
                for grown in sets:
                    grown.accept(images.reshape(-1, *images.shape[-3:]))
    finally:
        _reset(sets)


def _reset(sets: Sequence[Growing]) -> None:
    for grown in sets:
        grown.reset()
