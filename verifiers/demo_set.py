"""The demo world's verifiers, loaded from the files that come with the pack."""

from __future__ import annotations

from ..demo.paths import CLASSIFIER, CLIP
from ..search.types import Verifier
from .clip_score import load_clip_score
from .demo_classifier import load_demo_classifier
from .ensemble import VerifierEnsemble
from .exact_judge import load_exact_judge


def demo_ensemble() -> VerifierEnsemble:
    """CLIPScore and the classifier (classes from the prompt), as a z-score ensemble."""
    return VerifierEnsemble(
        [load_clip_score(file=str(CLIP / "model.safetensors")), load_demo_classifier(str(CLASSIFIER))]
    )


def demo_judge() -> Verifier:
    """The exact judge."""
    return load_exact_judge()
