"""The verifiers of this pack, by key."""

from __future__ import annotations

from . import clip_score, demo_classifier, exact_judge
from .kinds import VerifierKind

_KINDS = (
    clip_score.KIND,
    demo_classifier.KIND,
    exact_judge.KIND,
)

#: Every verifier by key, in the order of the drop-down. Iterated by the tests, so a new one is tested on arrival.
VERIFIERS: dict[str, VerifierKind] = {kind.key: kind for kind in _KINDS}
