"""LAION's aesthetic predictor v2 (github.com/christophschuhmann/improved-aesthetic-predictor): beauty alone."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..search.errors import SearchError
from .clip_file import LARGE, read_clip
from .dual_tower import CLIPImages, DualTower
from .files import Download, Source, read_tensors, weights_at
from .images import scored
from .kinds import Setting, VerifierKind
from .ports import ImageTower

_NAME = "sac+logos+ava1-l14-linearMSE.pth"
_AT = "https://github.com/christophschuhmann/improved-aesthetic-predictor"
HEAD = Source(
    file=_NAME,
    address=_AT,
    size="3.7 MB",
    licence="see the repository",
    put="ComfyUI's models/verifiers",
    downloads=(
        Download(
            f"{_AT}/raw/main/{_NAME.replace('+', '%2B')}", _NAME,
            "21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0",
        ),
    ),
)
#: FLUX.1-dev has a mean of 5.8, and the best of 96 candidates, some 2.5 standard deviations above it if they are
#: normal, has 6.4 (arXiv 2501.09732).
SCALE = (5.8, 0.24)
_LAYERS = (0, 2, 4, 6, 7)  # between them only dropout


class Aesthetic:
    """An affine function of the image's unit embedding by OpenAI's CLIP ViT-L/14: 4.5 to 7 for ordinary images.

    `weight` [D] and `bias` stand for the five layers of the file, which have no activation between them. Computed in
    float32 whatever the tower's precision.
    """

    name = "LAION Aesthetic"
    needs_prompt = False
    scale: tuple[float, float] | None = SCALE

    def __init__(self, towers: DualTower, weight: Tensor, bias: float) -> None:
        self.towers, self.module = towers, towers.module
        # The host's own towers have weights that no gradient can pass.
        self.differentiable = towers.module is not None
        self.weight, self.bias = weight, bias
        self.notes = towers.notes

    def score(self, images: Tensor, prompt: str) -> Tensor:
        """images [B, H, W, 3] in 0..1 -> scores float32 [B] on the CPU. Non-square images are cropped to the middle."""
        return scored(images, lambda pixels: self.towers.dot(pixels, self.weight) + self.bias)

    def features(self, images: Tensor) -> Tensor:
        """The tower's unit embeddings float32 [B, D] on the CPU of images [B, H, W, 3] in 0..1."""
        return self.towers.features(images)


def read_head(file: str) -> tuple[Tensor, float]:
    """Weight float32 [D] and bias of the predictor in `file`, its layers multiplied together in double precision.

    Raises SearchError when the file is missing, damaged, or no such predictor.
    """
    path = weights_at(file, HEAD)
    with torch.inference_mode(False):
        tensors = read_tensors(path, HEAD)
        matrix, offset = _layer(path, tensors, _LAYERS[0])
        for number in _LAYERS[1:]:
            weight, bias = _layer(path, tensors, number)
            if weight.shape[1] != matrix.shape[0]:
                raise SearchError(f"head: layer {number} of {path.name} does not fit the one before it; {HEAD}")
            matrix, offset = weight @ matrix, weight @ offset + bias
    if matrix.shape[0] != 1:
        raise SearchError(f"head: {path.name} has {matrix.shape[0]} outputs; expected one score; {HEAD}")
    return matrix[0].float(), float(offset[0])


def _layer(path: Path, tensors: dict[str, Tensor], number: int) -> tuple[Tensor, Tensor]:
    weight, bias = (tensors.get(f"layers.{number}.{part}") for part in ("weight", "bias"))
    if weight is None or bias is None or weight.ndim != 2 or bias.shape != weight.shape[:1]:
        raise SearchError(f"head: {path.name} has no usable layers.{number}; {HEAD}")
    return weight.double(), bias.double()


def load_aesthetic(file: str, head: str, activation: str = "auto", clip_vision: ImageTower | None = None) -> Aesthetic:
    """The predictor in `head` on the image tower of `file`, or on a loaded one.

    Raises SearchError when a file is missing or of the wrong kind, or the two do not fit each other.
    """
    weight, bias = read_head(head)
    if clip_vision is not None:
        return Aesthetic(DualTower(clip_vision, None), weight, bias)
    clip = read_clip(file, activation, texts=False, source=LARGE)
    if clip.network.sizes.embedding != len(weight):
        raise SearchError(
            f"head: it is made for embeddings of {len(weight)} numbers, the image tower in {Path(file).name} gives "
            f"{clip.network.sizes.embedding}; it belongs to OpenAI's CLIP ViT-L/14: {LARGE}"
        )
    return Aesthetic(DualTower(CLIPImages(clip), None, clip.network, notes=clip.notes), weight, bias)


KIND = VerifierKind(
    key="aesthetic",
    name="LAION Aesthetic",
    description="How beautiful the picture is, whatever the prompt.",
    load=load_aesthetic,
    settings=(
        Setting(
            "file", "file", "clip-vit-large-patch14/model.safetensors",
            "OpenAI's CLIP ViT-L/14, of which only the image tower is read. LAION's own L/14 does not fit.",
            folders=("verifiers", "clip_vision"),
        ),
        Setting(
            "head", "file", _NAME, "The predictor itself, which is a few MB.", folders=("verifiers",),
        ),
        Setting(
            "activation", "choice", "auto",
            "auto asks config.json, or guesses by size for a file without one: OpenAI's have quick_gelu.",
            options=("auto", "quick_gelu", "gelu"),
        ),
        Setting(
            "clip_vision", "clip_vision", None,
            "OpenAI's CLIP ViT-L/14 that the graph has loaded replaces the file. Its gradient is not known.",
            optional=True,
        ),
    ),
    use_for="Beauty, together with a verifier that reads the prompt.",
    fooled_by="One direction in CLIP's space, soon found: painterly, saturated, glowing pictures of anything.",
    sources=(HEAD, LARGE),
)  # fmt: skip
