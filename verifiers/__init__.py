"""Verifiers: models and rules that score images, and the ensemble that makes one score of several.

Standard library and torch only, never ComfyUI; what a model needs beyond that is imported when it is loaded.
"""

from __future__ import annotations

from .ensemble import METHODS, SCALES, VerifierEnsemble, measured_scale
from .kinds import LoadedVerifier, Setting, VerifierKind
from .registry import VERIFIERS

__all__ = [
    "METHODS", "SCALES", "VERIFIERS", "LoadedVerifier", "Setting", "VerifierEnsemble", "VerifierKind", "measured_scale",
]  # fmt: skip
