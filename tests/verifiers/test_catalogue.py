"""The README's table and the help page say what the verifiers say of themselves."""

import pytest

from pack.verifiers import VERIFIERS, VerifierKind
from pack.verifiers.catalogue import PAGE, README, page, table, written

HOW = "run `python load_pack.py pack.verifiers.catalogue`"
KINDS = pytest.mark.parametrize("kind", VERIFIERS.values(), ids=VERIFIERS)


def test_the_readme_has_the_table_of_all_verifiers() -> None:
    text = README.read_text(encoding="utf-8")
    assert table() in text, HOW
    assert written(text) == text, HOW


def test_the_help_page_of_the_node_is_that_of_these_verifiers() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), HOW


@KINDS
def test_every_verifier_says_when_to_use_it_and_what_fools_it(kind: VerifierKind) -> None:
    for text in (kind.description, kind.use_for, kind.fooled_by):
        assert text.endswith(".") and "|" not in text and "\n" not in text
    row = next(line for line in table().splitlines() if line.startswith(f"| **{kind.name}** |"))
    assert row.count("|") == 6


@KINDS
def test_a_verifier_that_needs_a_file_says_where_it_comes_from(kind: VerifierKind) -> None:
    with_the_pack = {"demo_classifier", "exact_judge"}
    if any(setting.kind == "file" and not setting.optional for setting in kind.settings):
        assert kind.sources or kind.key in with_the_pack
    for source in kind.sources:
        assert source.address.startswith("https://") and source.licence and any(c.isdigit() for c in source.size)
