"""The table of all verifiers in the README, and the help page of the Verifier node, from what the verifiers say.

`python load_pack.py pack.verifiers.catalogue` writes both anew.
"""

from __future__ import annotations

import re
from pathlib import Path

from .files import Source
from .kinds import VerifierKind
from .registry import VERIFIERS

ROOT = Path(__file__).resolve().parents[1]
README, PAGE = ROOT / "README.md", ROOT / "web" / "docs" / "NoiseSearchVerifier.md"
_START, _END = "<!-- verifiers: written by pack.verifiers.catalogue -->", "<!-- end of verifiers -->"


def table() -> str:
    """Markdown: what each verifier measures, its files with size and licence, when to use it and what fools it."""
    head = "| verifier | measures | files, size, licence | use it for | fooled by |\n|---|---|---|---|---|\n"
    return head + "\n".join(_row(kind) for kind in VERIFIERS.values())


def _row(kind: VerifierKind) -> str:
    files = "<br>".join(f"[{s.file}]({s.address}), {s.size}, {s.licence}" for s in kind.sources) or "none"
    return f"| **{kind.name}** | {kind.description} | {files} | {kind.use_for} | {kind.fooled_by} |"


def page() -> str:
    """Markdown: the same as a list, with where files belong."""
    parts = [
        "# Verifier\n\nScores pictures; bigger is better. Choose one in the drop-down, and its settings appear. Files "
        "belong into `models/verifiers`; a verifier whose file is missing says where to get it, and **Download "
        "Verifier Files** gets it when you ask for it. Nothing is downloaded by itself.\n\nEvery verifier that is "
        "searched against long enough finds pictures that fool it. Use several in a Verifier Ensemble, and keep one "
        "**held_out**.",
        *(_section(kind) for kind in VERIFIERS.values()),
        "Nodes of other packs take part when they output an object with a `name` and `score(images, prompt)` on a "
        "VERIFIER socket.",
    ]
    return "\n\n".join(parts) + "\n"


def _section(kind: VerifierKind) -> str:
    lines = [f"## {kind.name}", "", kind.description, ""]
    lines += [f"- use it for: {kind.use_for}", f"- fooled by: {kind.fooled_by}"]
    lines += [f"- files: {_file(source)}" for source in kind.sources]
    lines += [f"- **{setting.name}**: {setting.tooltip}" for setting in kind.settings]
    return "\n".join(lines)


def _file(source: Source) -> str:
    return f"{source.file} ({source.size}, licence {source.licence}), {source.address}, into {source.put}"


def written(readme: str) -> str:
    """The README with its table of verifiers as it should be."""
    return re.sub(
        f"{re.escape(_START)}.*?{re.escape(_END)}", lambda _: f"{_START}\n{table()}\n{_END}", readme, flags=re.DOTALL
    )


if __name__ == "__main__":
    README.write_text(written(README.read_text(encoding="utf-8")), encoding="utf-8")
    PAGE.write_text(page(), encoding="utf-8")
