"""What verifiers tell the user about how they judged: each thing once."""

from __future__ import annotations

import logging

logger = logging.getLogger(__name__)


def note(notes: list[str], text: str) -> None:
    """Put a sentence into a verifier's notes and into the log, unless it is there already."""
    if text not in notes:
        notes.append(text)
        logger.warning(text)


def short(prompt: str) -> str:
    """A prompt in quotes, cut off where it is too long for a sentence."""
    return repr(prompt if len(prompt) <= 60 else prompt[:57] + "...")
