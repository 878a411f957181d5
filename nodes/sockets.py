"""The socket types of the pack. Any node of any pack that outputs such an object takes part.

VERIFIER: an object with `name` and `score(images [B, H, W, 3] in 0..1, prompt) -> tensor [B]`.
"""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..search.errors import SearchError

CATEGORY = "noise search"

Verifier = io.Custom("VERIFIER")
NoiseCandidates = io.Custom("NOISE_CANDIDATES")
SearchAlgorithm = io.Custom("SEARCH_ALGORITHM")
SearchReport = io.Custom("SEARCH_REPORT")


def report_output() -> io.Output:
    """The report of a search, as every node that makes one gives it."""
    return SearchReport.Output(
        display_name="report", tooltip="Every candidate with its scores: for Search Report Plot, Contact Sheet, "
        "Pick From Report, Seed Probe and Save Search Report."
    )  # fmt: skip


def verifier_output() -> io.Output:
    """A verifier, as every node that makes one gives it."""
    return Verifier.Output(display_name="verifier", tooltip="For verifier or held_out of a search, and Score Images.")


def check_verifier(name: str, verifier: Any) -> None:
    """Refuse what cannot score: it came in through the input called `name`."""
    if not isinstance(getattr(verifier, "name", None), str) or not callable(getattr(verifier, "score", None)):
        got = "nothing" if verifier is None else f"a {type(verifier).__name__}"
        raise SearchError(
            f"{name}: got {got}; expected an object with a name and score(images, prompt): wire a Verifier node"
        )
