"""A vision-language model that the graph has loaded as a CLIP, for judges that ask questions."""

from __future__ import annotations

from typing import Any


class HostVisionLanguageModel:
    """A vision-language model from a CLIP."""

    def __init__(self, clip: Any) -> None:
        self.clip = clip
