"""Checks of settings that several algorithms share. Each raises SearchError before anything is spent."""

from __future__ import annotations

import math
from collections.abc import Iterable

from .errors import SearchError


def check_choice(algorithm: str, name: str, got: str, expected: Iterable[str]) -> None:
    """`got` is one of `expected`."""
    if got not in (names := list(expected)):
        raise SearchError(f"{algorithm}: got {name}={got!r}; expected one of {', '.join(names)}")


def check_shares(algorithm: str, **shares: float) -> None:
    """Each is 0 to 1."""
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise SearchError(f"{algorithm}: got {name}={share:g}; expected 0 to 1")


def check_at_least(algorithm: str, least: float, **numbers: float) -> None:
    """Each is `least` or more, and finite."""
    for name, number in numbers.items():
        if not least <= number < math.inf:
            raise SearchError(f"{algorithm}: got {name}={number:g}; expected {least:g} or more")


def check_finite(algorithm: str, **numbers: float) -> None:
    """Each is a number, and neither NaN nor infinite."""
    for name, number in numbers.items():
        if not math.isfinite(number):
            raise SearchError(f"{algorithm}: got {name}={number:g}; expected a finite number")


def check_span(algorithm: str, start: float, end: float) -> None:
    """The part of the steps on which an algorithm acts: 0 <= start <= end <= 1."""
    if not 0 <= start <= end <= 1:
        raise SearchError(f"{algorithm}: got start={start:g}, end={end:g}; expected 0 <= start <= end <= 1")
