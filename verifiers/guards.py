"""Broken Image: cheap measures without a network, for vetoes rather than for search."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional

from ..search.errors import SearchError
from .images import scored
from .kinds import Setting, VerifierKind

#: Pixels this close to 0 or 1 become 0 or 255 when an image is saved.
_EDGE = 0.5 / 255
_LUMA = (0.299, 0.587, 0.114)


def contrast(pixels: Tensor) -> Tensor:
    """Standard deviation over the places of an image, root mean square of its channels: 0 = flat, at most 0.5."""
    variance: Tensor = pixels.flatten(2).var(dim=2, correction=0).mean(dim=1)
    return variance.sqrt()


def unclipped(pixels: Tensor) -> Tensor:
    """Share of the numbers in an image that are neither black nor white in 8 bits: 0..1."""
    return ((pixels > _EDGE) & (pixels < 1 - _EDGE)).flatten(1).float().mean(dim=1)


def sharpness(pixels: Tensor) -> Tensor:
    """Variance of the Laplacian of the brightness in 0..255 (Pech-Pacheco et al. 2000): below some 100 = blurred."""
    brightness = 255 * (pixels * pixels.new_tensor(_LUMA)[:, None, None]).sum(dim=1, keepdim=True)
    kernel = pixels.new_tensor([[0, 1, 0], [1, -4, 1], [0, 1, 0]])[None, None]
    edges = functional.conv2d(functional.pad(brightness, (1, 1, 1, 1), mode="replicate"), kernel)
    spread: Tensor = edges.flatten(1).var(dim=1, correction=0)
    return spread


WHOLE = "broken or not"
MEASURES: dict[str, Callable[[Tensor], Tensor] | None] = {
    WHOLE: None, "contrast": contrast, "unclipped share": unclipped, "sharpness": sharpness,
}  # fmt: skip


class BrokenImage:
    """1 for a good image, 0 for a broken one: flat (`contrast` below a minimum), or mostly black and white pixels.

    With any other of MEASURES, that number instead. An image with a pixel that is no number scores NaN, as with every
    verifier, and so cannot win either.
    """

    differentiable = False
    needs_prompt = False
    # Made for vetoes, where no scale matters; this one leaves the number as it is.
    scale: tuple[float, float] | None = (0.0, 1.0)

    def __init__(self, measure: str = WHOLE, min_contrast: float = 0.02, min_unclipped: float = 0.02) -> None:
        if measure not in MEASURES:
            raise SearchError(f"measure: got {measure!r}; expected one of {', '.join(MEASURES)}")
        self.name = "Broken Image" if measure == WHOLE else measure.capitalize()
        self.module: nn.Module | None = None
        self.notes: list[str] = []
        self.measure, self.min_contrast, self.min_unclipped = measure, min_contrast, min_unclipped

    def score(self, images: Tensor, prompt: str) -> Tensor:
        """images [B, H, W, 3] in 0..1 -> scores float32 [B]. The prompt is not looked at."""
        return scored(images.detach(), MEASURES[self.measure] or self._whole)

    def _whole(self, pixels: Tensor) -> Tensor:
        return ((contrast(pixels) >= self.min_contrast) & (unclipped(pixels) >= self.min_unclipped)).float()


def load_broken_image(measure: str = WHOLE, min_contrast: float = 0.02, min_unclipped: float = 0.02) -> BrokenImage:
    """The guard. It has no weights."""
    return BrokenImage(measure, min_contrast, min_unclipped)


KIND = VerifierKind(
    key="broken_image",
    name="Broken Image",
    description="Whether an image is broken: flat, or nothing but black and white. For a veto in an ensemble.",
    load=load_broken_image,
    settings=(
        Setting(
            "measure", "choice", WHOLE, "1 or 0, or one of the numbers behind it. Sharpness is the variance of the "
            "Laplacian.", options=tuple(MEASURES),
        ),
        Setting(
            "min_contrast", "float", 0.02, "Below this standard deviation of its pixels, an image counts as flat.",
            minimum=0.0, maximum=0.5, step=0.005,
        ),
        Setting(
            "min_unclipped", "float", 0.02, "At least this share of its numbers must be neither black nor white. Raise "
            "it against burnt images.", minimum=0.0, maximum=1.0, step=0.01,
        ),
    ),
    use_for="A veto: wire it into a Verifier Ensemble with weight 0 and a minimum of 0.5.",
    fooled_by="Everything that is not flat, black or white: it knows nothing of beauty or the prompt.",
)  # fmt: skip
