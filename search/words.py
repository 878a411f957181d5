"""Words that sentences for the user share."""

from __future__ import annotations


def some(count: int, noun: str) -> str:
    """So many of something: '1 image', '2 images', '3 branches'."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}{'es' if noun.endswith('ch') else 's'}"
