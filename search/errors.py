"""The one exception that a search raises for its user to read."""

from __future__ import annotations


class SearchError(Exception):
    """A search cannot start or go on. The message says what, got, expected, and which widget to change."""
