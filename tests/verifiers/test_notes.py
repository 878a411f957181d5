"""Notes of verifiers: what is true of one prompt is not said of another."""

from __future__ import annotations

from types import SimpleNamespace

from pack.verifiers.notes import note, notes_on


def test_a_note_on_a_prompt_belongs_to_searches_for_that_prompt() -> None:
    notes: list[str] = []
    note(notes, "has no scale")
    note(notes, "read half of 'a red cat'", about="A photo of a red cat")
    note(notes, "read half of 'a dog'", about="a dog")
    note(notes, "read half of 'a dog'", about="a dog")
    verifier = SimpleNamespace(notes=notes)
    assert len(notes) == 3
    assert notes_on([verifier, None], "a red cat") == ["has no scale", "read half of 'a red cat'"]
    assert notes_on([verifier, verifier], "a dog") == ["has no scale", "read half of 'a dog'"]
    assert notes_on([verifier], "a bird") == ["has no scale"]
    assert all(type(each) is str for each in notes_on([verifier], "a dog"))


def test_a_verifier_without_notes_says_nothing() -> None:
    assert notes_on([object(), None], "a dog") == []
