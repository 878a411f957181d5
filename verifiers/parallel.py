"""Run a few slow jobs at a time, such as requests to a server, in a way that the user can cancel at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import TypeVar

T = TypeVar("T")
Job = Callable[[Event], T]

#: Seconds between two looks at whether the user has cancelled.
GLANCE = 0.05


def in_order(jobs: Sequence[Job[T]], workers: int, check_cancel: Callable[[], object]) -> list[T]:
    """What `jobs` return, in their order, with at most `workers` of them running at a time.

    `check_cancel` is called again and again from this thread. What it or a job raises ends the wait at once: jobs that
    have not begun never do, and those under way are told so by their event and left to end by themselves (in daemon
    threads: a server that does not answer holds up neither the caller nor the end of the program).
    """
    waiting: SimpleQueue[tuple[int, Job[T]]] = SimpleQueue()
    done: SimpleQueue[tuple[int, T | None, BaseException | None]] = SimpleQueue()
    stop = Event()

    def work() -> None:
        while not stop.is_set():
            try:
                index, job = waiting.get_nowait()
            except Empty:
                return
            try:
                done.put((index, job(stop), None))
            except BaseException as error:  # raised again in the thread that waits
                stop.set()
                done.put((index, None, error))

    for numbered in enumerate(jobs):
        waiting.put(numbered)
    results: dict[int, T] = {}
    try:
        for _ in range(min(workers, len(jobs))):
            Thread(target=work, daemon=True).start()
        while len(results) < len(jobs):
            check_cancel()
            try:
                index, result, error = done.get(timeout=GLANCE)
            except Empty:
                continue
            if error is not None:
                raise error
            results[index] = result  # type: ignore[assignment]  # without an error there is a result
    finally:
        stop.set()
    return [results[i] for i in range(len(jobs))]
