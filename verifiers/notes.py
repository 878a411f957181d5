"""What verifiers tell the user about how they judged: each thing once."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

logger = logging.getLogger(__name__)


class Note(str):
    """A sentence on one prompt, `about`: it says nothing of a search for another."""

    about: str

    def __new__(cls, text: str, about: str) -> Note:
        """The sentence."""
        made = super().__new__(cls, text)
        made.about = about
        return made


def note(notes: list[str], text: str, about: str | None = None) -> None:
    """Put a sentence into a verifier's notes and into the log, unless it is there already.

    A verifier outlives a search: what is only true of a prompt says which (`about`, the whole of what was read).
    """
    if text not in notes:
        notes.append(text if about is None else Note(text, about))
        logger.warning(text)


def notes_on(verifiers: Iterable[Any], prompt: str) -> list[str]:
    """What verifiers (None is none) have to say of a search for a prompt, each sentence once."""
    said = [each for verifier in verifiers for each in getattr(verifier, "notes", ())]
    return list(dict.fromkeys(str(each) for each in said if prompt in getattr(each, "about", prompt)))


def short(prompt: str) -> str:
    """A prompt in quotes, cut off where it is too long for a sentence."""
    return repr(prompt if len(prompt) <= 60 else prompt[:57] + "...")
