"""Pictures to come close to: the verifier that LPIPS and DISTS share."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from ..search.errors import SearchError
from .images import scored, squashed
from .kinds import Setting

SCORES = {"mean": "the mean over all references", "nearest": "the nearest reference"}
SETTINGS = (
    Setting("references", "image", None, "The image, or several, that candidates should come close to."),
    Setting(
        "over", "choice", "mean", "Of several references: mean = be close to all of them, nearest = to any one.",
        options=tuple(SCORES),
    ),
    Setting(
        "size", "int", 256, "Candidates and references are compared at this height and width, in pixels. Both "
        "measures were fitted on small images; more sees finer detail and costs more.", minimum=64, maximum=1024,
    ),
)  # fmt: skip


class Comparer(nn.Module):
    """A network that says how far two images are apart."""

    @abstractmethod
    def look(self, pixels: Tensor) -> list[Tensor]:
        """Features of pixels [B, 3, H, W] in 0..1, a list of float [B, channels, h, w]."""

    @abstractmethod
    def distance(self, seen: list[Tensor], reference: list[Tensor]) -> Tensor:
        """Distances float32 [B] of the features of B images from those of one (batch 1)."""


class ReferenceVerifier:
    """Minus the distance of an image from reference images [R, H, W, 3]: 0 = the same, lower = further.

    All are resized to `size` x `size`, whatever that does to their proportions, so that candidates of one shape are
    compared with references of another. `over` is one of SCORES.
    """

    differentiable = True
    needs_prompt = False
    half = False  # variances and small differences of features: half precision would save little and round much
    scale: tuple[float, float] | None = None  # it depends on the reference

    def __init__(self, name: str, network: Comparer, references: Tensor | None, over: str, size: int) -> None:
        if over not in SCORES:
            raise SearchError(f"over: got {over!r}; expected one of {', '.join(SCORES)}")
        if references is None:
            raise SearchError(f"references: got nothing; wire the image that {name} compares candidates with")
        if references.ndim != 4 or references.shape[-1] < 3 or not len(references):
            raise SearchError(f"references: got {tuple(references.shape)}; expected [R, H, W, 3]; wire an IMAGE")
        # Copied, because what another node made in inference mode could not take part in a gradient.
        with torch.inference_mode(False):
            pixels = references[..., :3].movedim(-1, 1).to("cpu", torch.float32, copy=True)
        if not bool(pixels.isfinite().all()):
            raise SearchError("references: got pixels that are no finite numbers; wire another image")
        self.name, self.module, self.over = name, network, over
        self.notes: list[str] = []
        self.references = squashed(pixels, size, "bilinear")

    def score(self, images: Tensor, prompt: str) -> Tensor:
        """images [B, H, W, 3] in 0..1 -> scores float32 [B] on the CPU, 0 or less. The prompt is not looked at."""
        return scored(images, self._of)

    def _of(self, pixels: Tensor) -> Tensor:
        seen = self.module.look(squashed(pixels, self.references.shape[-1], "bilinear"))
        distances = []
        for reference in torch.split(self.references, 1):  # one at a time: their features are large
            with torch.no_grad():
                wanted = self.module.look(reference)
            distances.append(self.module.distance(seen, wanted))
        table = torch.stack(distances)
        return -(table.mean(dim=0) if self.over == "mean" else table.amin(dim=0))
