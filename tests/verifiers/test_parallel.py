"""Jobs run a few at a time, in order, and let go of at once."""

import threading
import time
from collections.abc import Callable
from threading import Event

import pytest

from pack.verifiers.parallel import Job, in_order


class Cancelled(BaseException):
    """Not an Exception, as ComfyUI's own is not."""


def nothing() -> None:
    """Never cancelled."""


def test_results_come_in_the_order_of_the_jobs_whichever_ends_first() -> None:
    gates = [Event() for _ in range(4)]

    def job(i: int) -> Job[int]:
        def run(stop: Event) -> int:
            if i < 3:
                gates[i].wait(5)  # until the next one has ended: they end from last to first
            if i:
                gates[i - 1].set()
            return i

        return run

    assert in_order([job(i) for i in range(4)], 4, nothing) == [0, 1, 2, 3]
    assert in_order([], 4, nothing) == []


def test_no_more_run_at_a_time_than_there_are_workers() -> None:
    lock, running, most = threading.Lock(), 0, 0

    def run(stop: Event) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.01)
        with lock:
            running -= 1

    in_order([run] * 12, 3, nothing)
    assert most == 3


def blocked(begun: list[int], release: Event) -> Callable[[Event], None]:
    def run(stop: Event) -> None:
        begun.append(1)
        release.wait(10)

    return run


def test_a_cancel_is_raised_at_once_and_the_rest_never_begins() -> None:
    begun: list[int] = []
    release = Event()

    def check() -> None:
        if len(begun) == 2:
            raise Cancelled

    start = time.monotonic()
    with pytest.raises(Cancelled):
        in_order([blocked(begun, release)] * 6, 2, check)
    assert time.monotonic() - start < 2
    release.set()
    time.sleep(0.05)
    assert len(begun) == 2


def test_the_first_error_ends_the_wait_and_tells_the_others() -> None:
    told = Event()

    def fails(stop: Event) -> int:
        raise ValueError("no")

    def waits(stop: Event) -> int:
        if stop.wait(5):
            told.set()
        return 1

    with pytest.raises(ValueError, match="no"):
        in_order([waits, fails], 2, nothing)
    assert told.wait(2)
