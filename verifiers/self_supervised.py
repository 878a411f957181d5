"""The self-supervised verifier of Ma et al. 2025 (arXiv 2501.09732, sec. 3): how early did the image know what it is?

It compares the x0 prediction midway with the finished image, in the features of DINO, CLIP or SigLIP. No prompt, no
label, no judge; the paper finds it good for class-conditional models and nearly useless for text to image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..search.errors import SearchError
from .clip_file import SOURCE as CLIP
from .image_towers import DINO, SIGLIP, LoadedTower, features, load_image_tower
from .images import CHUNK, embedded, scored
from .kinds import Setting, VerifierKind
from .notes import note

ONLY_FINISHED = (
    "Self-Supervised compares a finished image with its x0 prediction midway, and got none: it judges only the "
    "finished candidates of a search sampler"
)


class SelfSupervised:
    """The cosine, -1..1, between the features of the x0 prediction at a noise share and of the finished image.

    `early` is that noise share: 0.4 in the paper. Scores are NaN where there is no x0 prediction, which is said once,
    in the log and in `notes`.
    """

    differentiable = False  # midway there is nothing to compare, so a gradient has nothing to follow
    needs_prompt = False
    scale: tuple[float, float] | None = None

    def __init__(self, tower: LoadedTower, noise_share: float = 0.4) -> None:
        if not 0 < noise_share < 1:
            raise SearchError(f"noise_share: got {noise_share}; expected a number between 0 and 1")
        self.name = f"Self-Supervised {tower.name}"
        self.early: tuple[float, ...] = (noise_share,)
        self.module = tower.module
        self.notes: list[str] = list(tower.notes)
        self._tower = tower

    def score(self, images: Tensor, prompt: str, early: Sequence[Tensor] | None = None) -> Tensor:
        """images [B, H, W, 3] in 0..1, and as many x0 predictions in a tuple of one -> scores float32 [B] on the CPU.

        The prompt is not looked at. Raises SearchError when `early` does not go with `images`.
        """
        if early is None:
            note(self.notes, ONLY_FINISHED)
            return scored(images, lambda pixels: pixels.new_full((len(pixels),), float("nan")))
        if len(early) != 1 or early[0].ndim != 4 or len(early[0]) != len(images):
            raise SearchError(
                f"early: got {[tuple(batch.shape) for batch in early]}; expected one batch [{len(images)}, H, W, 3] of "
                "x0 predictions"
            )
        before = iter(torch.split(early[0].detach().movedim(-1, 1).float(), CHUNK))

        def of(pixels: Tensor) -> Tensor:
            predicted = next(before)
            cosines = (features(self._tower, pixels) * features(self._tower, predicted)).sum(dim=1)
            return cosines.masked_fill(~predicted.isfinite().flatten(1).all(dim=1).to(cosines.device), float("nan"))

        with torch.no_grad():
            return scored(images.detach(), of)

    def features(self, images: Tensor) -> Tensor:
        """The tower's unit embeddings float32 [B, D] on the CPU of images [B, H, W, 3] in 0..1."""
        return embedded(images, lambda pixels: features(self._tower, pixels))


def load_self_supervised(file: str, noise_share: float = 0.4) -> SelfSupervised:
    """The verifier with the image tower in `file`: DINOv2, DINOv3, SigLIP or CLIP.

    Raises SearchError when the file is missing, damaged or no image tower.
    """
    return SelfSupervised(load_image_tower(file), noise_share)


KIND = VerifierKind(
    key="self_supervised",
    name="Self-Supervised",
    description="How like the finished image its own x0 prediction midway is, in DINO's, SigLIP's or CLIP's features. "
    "It judges only the finished candidates of a search sampler.",
    use_for="Class-conditional models without a classifier, and experiments. Nearly useless for text to image.",
    fooled_by="Plain pictures that are settled early; it looks at neither prompt nor quality.",
    load=load_self_supervised,
    settings=(
        Setting(
            "file", "file", "dinov2-base/model.safetensors",
            "An image tower: DINOv2, DINOv3, SigLIP or CLIP, best in a folder of its own with its JSON files.",
            folders=("verifiers", "clip_vision"),
        ),
        Setting(
            "noise_share", "float", 0.4, "Where on the way the x0 prediction is taken: 1 is pure noise, 0 the end. "
            "The paper has 0.4.", minimum=0.05, maximum=0.95, step=0.05,
        ),
    ),
    sources=(DINO, SIGLIP, CLIP),
)  # fmt: skip
