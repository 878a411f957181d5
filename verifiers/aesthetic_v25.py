"""Aesthetic Predictor V2.5 (github.com/discus0434/aesthetic-predictor-v2-5): beauty, of art as of photos."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..search.errors import SearchError
from .files import Download, Source, read_tensors, weights_at
from .image_towers import HUB, LoadedTower, features, load_image_tower
from .images import embedded, scored
from .kinds import Setting, VerifierKind

_FILE = "aesthetic_predictor_v2_5.pth"
_AT = "https://github.com/discus0434/aesthetic-predictor-v2-5"
_TOWER = "siglip-so400m-patch14-384"
HEAD = Source(
    file=_FILE,
    address=_AT,
    size="5.3 MB",
    licence="AGPL-3.0",
    put="ComfyUI's models/verifiers",
    downloads=(Download(f"{_AT}/raw/main/models/{_FILE}", _FILE),),
)
TOWER = Source(
    file="model.safetensors with config.json and preprocessor_config.json",
    address=f"{HUB}/google/{_TOWER}",
    size="3.51 GB",
    licence="Apache-2.0",
    put=f"ComfyUI's models/verifiers/{_TOWER}",
    downloads=tuple(
        Download(f"{HUB}/google/{_TOWER}/resolve/main/{name}", f"{_TOWER}/{name}")
        for name in ("model.safetensors", "config.json", "preprocessor_config.json")
    ),
)
_LAYERS = (0, 2, 4, 6, 8)  # between them only dropout


class AestheticV25:
    """An affine function of the image's unit embedding by SigLIP so400m: 1 to 10, where 5.5 and more is great.

    `weight` [D] and `bias` stand for the five layers of the head, which have no activation between them. Computed in
    float32 whatever the tower's precision. Non-square images are squashed, not cropped.
    """

    name = "Aesthetic Predictor V2.5"
    differentiable = True
    needs_prompt = False
    scale: tuple[float, float] | None = None

    def __init__(self, tower: LoadedTower, weight: Tensor, bias: float) -> None:
        self.module = tower.module
        self.notes: list[str] = list(tower.notes)
        self._tower, self._weight, self._bias = tower, weight, bias

    def score(self, images: Tensor, prompt: str) -> Tensor:
        """images [B, H, W, 3] in 0..1 -> scores float32 [B] on the CPU. The prompt is not looked at."""

        def of(pixels: Tensor) -> Tensor:
            seen = features(self._tower, pixels)
            return seen @ self._weight.to(seen.device) + self._bias

        return scored(images, of)

    def features(self, images: Tensor) -> Tensor:
        """The tower's unit embeddings float32 [B, D] on the CPU of images [B, H, W, 3] in 0..1."""
        return embedded(images, lambda pixels: features(self._tower, pixels))


def load_aesthetic_v25(file: str, head: str) -> AestheticV25:
    """The predictor in `head` on the SigLIP of `file`.

    Raises SearchError when a file is missing or of the wrong kind, or the two do not fit each other.
    """
    weight, bias = _read_head(weights_at(head, HEAD))
    tower = load_image_tower(str(weights_at(file, TOWER)), family="siglip")
    if tower.width != len(weight):
        raise SearchError(
            f"head: it is made for embeddings of {len(weight)} numbers, the SigLIP in {Path(file).name} gives "
            f"{tower.width}; it belongs to so400m: {TOWER}"
        )
    return AestheticV25(tower, weight, bias)


def _read_head(path: Path) -> tuple[Tensor, float]:
    """Weight float32 [D] and bias of the layers of a head, multiplied together in double precision."""
    with torch.inference_mode(False):
        tensors = read_tensors(path, HEAD)
        matrix, offset = torch.eye(0, dtype=torch.float64), torch.zeros(0, dtype=torch.float64)
        for number in _LAYERS:
            weight, bias = (tensors.get(f"scoring_head.{number}.{part}") for part in ("weight", "bias"))
            if weight is None or bias is None or weight.ndim != 2 or bias.shape != weight.shape[:1]:
                raise SearchError(f"head: {path.name} has no usable scoring_head.{number}; {HEAD}")
            weight, bias = weight.double(), bias.double()
            if number == _LAYERS[0]:
                matrix, offset = weight, bias
            elif weight.shape[1] != len(matrix):
                raise SearchError(f"head: layer {number} of {path.name} does not fit the one before it; {HEAD}")
            else:
                matrix, offset = weight @ matrix, weight @ offset + bias
    if len(matrix) != 1:
        raise SearchError(f"head: {path.name} has {len(matrix)} outputs; expected one score; {HEAD}")
    return matrix[0].float(), float(offset[0])


KIND = VerifierKind(
    key="aesthetic_v25",
    name="Aesthetic Predictor V2.5",
    description="How beautiful the picture is, whatever the prompt: 1 to 10, where 5.5 and more is great.",
    use_for="Beauty of illustrations and anime as well as photos, together with a verifier that reads the prompt.",
    fooled_by="Polish, detail and pleasing faces, whatever the prompt asked for; plain or rough styles score low.",
    load=load_aesthetic_v25,
    settings=(
        Setting(
            "file", "file", f"{_TOWER}/model.safetensors",
            "Google's SigLIP so400m at 384 pixels, of which only the image tower is read.",
            folders=("verifiers", "clip_vision"),
        ),
        Setting("head", "file", _FILE, "The predictor itself, which is a few MB.", folders=("verifiers",)),
    ),
    sources=(HEAD, TOWER),
)  # fmt: skip
