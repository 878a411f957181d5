"""CLIP and CLIP_VISION models that the graph has loaded, as towers for verifiers."""

from __future__ import annotations

from typing import Any


class HostImageTower:
    """An image tower from a CLIP_VISION."""

    def __init__(self, clip_vision: Any) -> None:
        self.clip_vision = clip_vision


class HostTextTower:
    """A text tower from a CLIP."""

    def __init__(self, clip: Any) -> None:
        self.clip = clip
