"""Contexts in which one kind of failure is an answer."""

from __future__ import annotations

from types import TracebackType

from .types import Sampler


class Attempt:
    """A context in which running out of memory is an answer (`failed`), and nothing else is."""

    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler
        self.failed = False

    def __enter__(self) -> Attempt:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> bool:
        causes = [e for e in (error, error.__cause__ if error else None) if e is not None]
        self.failed = any(self.sampler.is_out_of_memory(e) for e in causes)
        return self.failed


class Captured:
    """A context that keeps an exception of one kind instead of letting it through."""

    def __init__(self, kind: type[BaseException]) -> None:
        self.kind = kind
        self.error: BaseException | None = None

    def __enter__(self) -> Captured:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> bool:
        self.error = error if isinstance(error, self.kind) else None
        return self.error is not None
