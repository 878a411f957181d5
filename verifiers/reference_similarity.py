"""How like some reference images a candidate is, in the features of DINO, SigLIP or CLIP."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..search.errors import SearchError
from .clip_file import SOURCE as CLIP
from .image_towers import DINO, SIGLIP, LoadedTower, features, load_image_tower
from .images import embedded, scored
from .kinds import Setting, VerifierKind
from .ports import ImageTower

OVER = ("mean", "nearest")


class ReferenceSimilarity:
    """The cosine, -1..1, between the features of an image and of references [R, H, W, 3]: 1 is the same.

    `over` is "mean" (like all of them) or "nearest" (like any one). Pictures of different shapes are compared as the
    tower sees them: it cuts out the middle (DINO, CLIP) or squashes (SigLIP).
    """

    needs_prompt = False
    scale: tuple[float, float] | None = None  # it depends on the references

    def __init__(self, tower: ImageTower, references: Tensor | None, over: str = "mean") -> None:
        if over not in OVER:
            raise SearchError(f"over: got {over!r}; expected one of {', '.join(OVER)}")
        if references is None:
            raise SearchError("references: got nothing; wire the image, or several, that candidates are compared with")
        if references.ndim != 4 or references.shape[-1] < 3 or not len(references):
            raise SearchError(f"references: got {tuple(references.shape)}; expected [R, H, W, 3]; wire an IMAGE")
        if not bool(references.isfinite().all()):
            raise SearchError("references: got pixels that are no finite numbers; wire another image")
        self.name = f"{tower.name} Similarity"
        self.differentiable = bool(getattr(tower, "differentiable", False))
        self.module: nn.Module | None = tower.module if isinstance(tower, LoadedTower) else None
        self.notes: list[str] = list(getattr(tower, "notes", ()))
        self.tower, self.over = tower, over
        self._references = references
        self._wanted: Tensor | None = None

    def score(self, images: Tensor, prompt: str) -> Tensor:
        """images [B, H, W, 3] in 0..1 -> scores float32 [B] on the CPU. The prompt is not looked at."""
        wanted = self._wanted_features()

        def of(pixels: Tensor) -> Tensor:
            seen = features(self.tower, pixels)
            cosines = seen @ wanted.to(seen.device).T
            return cosines.mean(dim=1) if self.over == "mean" else cosines.amax(dim=1)

        return scored(images, of)

    def features(self, images: Tensor) -> Tensor:
        """The tower's unit embeddings float32 [B, D] on the CPU of images [B, H, W, 3] in 0..1."""
        return embedded(images, lambda pixels: features(self.tower, pixels))

    def _wanted_features(self) -> Tensor:
        """The references' features, float32 [R, D] on the CPU: seen once, as soon as the network is where it runs."""
        if self._wanted is None:
            # Made outside inference mode, or they could not take part in a gradient later.
            with torch.inference_mode(False), torch.no_grad():
                pixels = self._references[..., :3].movedim(-1, 1).to("cpu", torch.float32, copy=True)
                self._wanted = torch.cat([features(self.tower, one).cpu() for one in torch.split(pixels, 1)])
        return self._wanted


def load_reference_similarity(
    file: str = "", references: Tensor | None = None, over: str = "mean", clip_vision: ImageTower | None = None
) -> ReferenceSimilarity:
    """The verifier with the image tower in `file`, or with one that the graph has loaded: `clip_vision` goes first.

    Raises SearchError when there is neither, when there are no references, or when the file is no image tower.
    """
    return ReferenceSimilarity(clip_vision or load_image_tower(file), references, over)


KIND = VerifierKind(
    key="reference_similarity",
    name="Reference Similarity",
    description="How like one or several reference images a candidate is, in DINO's, SigLIP's or CLIP's features.",
    use_for="Keep what a picture shows. DINO: the same product, building or creature down to its parts, and the "
    "layout. CLIP: the same style, mood and kind of subject. SigLIP: the same, of the whole picture instead of its "
    "middle. Faces: DINO or SigLIP on close crops; none of them is a face recogniser.",
    fooled_by="A copy of the reference, with its background and crop: give several, on different backgrounds.",
    load=load_reference_similarity,
    settings=(
        Setting(
            "file", "file", "dinov2-base/model.safetensors",
            "An image tower: DINOv2, DINOv3, SigLIP or CLIP, best in a folder of its own with its JSON files. Not read "
            "when clip_vision is wired.",
            folders=("verifiers", "clip_vision"),
        ),
        Setting("references", "image", None, "The image, or several, that candidates should be like."),
        Setting(
            "over", "choice", OVER[0], "Of several references: mean = be like all of them, nearest = like any one.",
            options=OVER,
        ),
        Setting(
            "clip_vision", "clip_vision", None, "An image tower that the graph has loaded, instead of the file.",
            optional=True,
        ),
    ),
    sources=(DINO, SIGLIP, CLIP),
)  # fmt: skip
