"""The table of all verifiers in the README, and the help page of the Verifier node, from what the verifiers say.

`python load_pack.py pack.verifiers.catalogue` writes both anew.
"""

from __future__ import annotations

import re
from pathlib import Path

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
    """Markdown: what each measures and what fools it, as a list."""
    kinds = "\n".join(f"- **{k.name}**: {k.description} Fooled by: {_small(k.fooled_by)}" for k in VERIFIERS.values())
    return (
        "# Verifier\n\nScores pictures; bigger is better. Choose one in the drop-down, and its settings appear. A "
        "verifier whose file is missing says where to get it and where to put it; **Download Verifier Files** gets it "
        "when you ask for it, and nothing is downloaded by itself.\n\nEvery verifier that is searched against long "
        "enough finds pictures that fool it. Use several in a Verifier Ensemble, and keep one **held_out**. The table "
        f"in the README says when to use which.\n\n{kinds}\n\nNodes of other packs take part when they output an "
        "object with a `name` and `score(images, prompt)` on a VERIFIER socket.\n"
    )


def _small(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]


def written(readme: str) -> str:
    """The README with its table of verifiers as it should be."""
    return re.sub(
        f"{re.escape(_START)}.*?{re.escape(_END)}", lambda _: f"{_START}\n{table()}\n{_END}", readme, flags=re.DOTALL
    )


if __name__ == "__main__":
    README.write_text(written(README.read_text(encoding="utf-8")), encoding="utf-8")
    PAGE.write_text(page(), encoding="utf-8")
