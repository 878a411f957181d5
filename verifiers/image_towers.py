"""Image towers from the user's files: DINOv2, DINOv3, SigLIP and CLIP, as embeddings of pictures of any shape.

DINO (Oquab et al. 2023, arXiv 2304.07193; Simeoni et al. 2025, arXiv 2508.10104) learned from pictures alone, SigLIP
(Zhai et al. 2023, arXiv 2303.15343) and CLIP from pictures with their captions.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..search.errors import SearchError
from .clip_file import read_clip
from .clip_network import CLIPNetwork
from .files import Download, Source, read_tensors, weights_at
from .ports import ImageTower
from .preprocessing import Preprocessing, read_preprocessing
from .pretrained import Held, filled, in_linear_layers, made_config, read_config

FAMILIES = ("dino", "siglip", "clip")
HUB = "https://huggingface.co"
DINO = Source(
    file="model.safetensors with config.json and preprocessor_config.json",
    address=f"{HUB}/facebook/dinov2-base",
    size="346 MB",
    licence="Apache-2.0",
    put="ComfyUI's models/verifiers/dinov2-base",
    downloads=tuple(
        Download(f"{HUB}/facebook/dinov2-base/resolve/main/{name}", f"dinov2-base/{name}")
        for name in ("model.safetensors", "config.json", "preprocessor_config.json")
    ),
)
SIGLIP = Source(
    file="model.safetensors with config.json and preprocessor_config.json",
    address=f"{HUB}/google/siglip-base-patch16-224",
    size="813 MB",
    licence="Apache-2.0",
    put="ComfyUI's models/verifiers/siglip-base-patch16-224",
    downloads=tuple(
        Download(f"{HUB}/google/siglip-base-patch16-224/resolve/main/{name}", f"siglip-base-patch16-224/{name}")
        for name in ("model.safetensors", "config.json", "preprocessor_config.json")
    ),
)
_HALF = (0.5, 0.5, 0.5)
_SIGLIP = Preprocessing(size=0, short=None, mean=_HALF, std=_HALF)
_KNOWN = {
    "dinov2": "dino", "dinov2_with_registers": "dino", "dinov3_vit": "dino",
    "siglip": "siglip", "siglip_vision_model": "siglip", "clip": "clip", "clip_vision_model": "clip",
}  # fmt: skip


@dataclass
class LoadedTower:
    """An image tower with a network of its own, which a verifier hands to the memory manager as its `module`."""

    name: str
    family: str
    module: CLIPNetwork | Held
    preprocessing: Preprocessing
    notes: tuple[str, ...] = ()
    differentiable: bool = True
    size: int = field(init=False)

    def __post_init__(self) -> None:
        self.size = self.preprocessing.size

    @property
    def width(self) -> int:
        """How many numbers an embedding has."""
        if isinstance(self.module, CLIPNetwork):
            return self.module.sizes.embedding
        return int(self.module.model.config.hidden_size)

    def embed(self, pixels: Tensor) -> Tensor:
        """Embeddings float32 [B, D], not normalised, of pixels [B, 3, size, size] in 0..1."""
        pixels = self.preprocessing.normalise(pixels)
        if isinstance(self.module, CLIPNetwork):
            return self.module.embed_images(pixels)
        out: Tensor = self.module.model(pixel_values=self.module.here(pixels)).pooler_output
        return out.float()


def features(tower: ImageTower, pixels: Tensor) -> Tensor:
    """Embeddings float32 [B, D] of length 1 of pixels [B, 3, H, W] in 0..1, of any shape, by any image tower.

    A loaded tower prepares pictures as its files say; any other as its family does.
    """
    prepared = tower.preprocessing if isinstance(tower, LoadedTower) else usual(tower.family, tower.size)
    return functional.normalize(tower.embed(prepared.fit(pixels)).float(), dim=-1)


def usual(family: str, size: int) -> Preprocessing:
    """How pictures are prepared for a family: DINO sees the middle of a picture an eighth larger, SigLIP the whole
    picture squashed, CLIP the middle square."""
    if family == "dino":
        return Preprocessing(size, short=round(size * 256 / 224))
    return replace(_SIGLIP, size=size) if family == "siglip" else Preprocessing(size, short=size)


def load_image_tower(file: str, family: str = "auto") -> LoadedTower:
    """The image tower that `file` names: a Hugging Face folder, or a weights file with or without its JSON files.

    The family is read from config.json, or else from the names of the tensors; with any other `family` than auto, it
    must be that one. Raises SearchError when the file is missing, damaged, or of no family that is known here.
    """
    if family not in ("auto", *FAMILIES):
        raise SearchError(f"family: got {family!r}; expected auto, {', '.join(FAMILIES)}")
    source = SIGLIP if family == "siglip" else DINO
    path = weights_at(file, source)
    config = read_config(path)
    with torch.inference_mode(False):
        tensors = read_tensors(path, source)
    kind = config.get("model_type") or _recognised(path, tensors)
    found = _KNOWN.get(kind)
    if found is None or family not in ("auto", found):
        wanted = ", ".join(FAMILIES) if family == "auto" else family
        raise SearchError(f"file: {path.name} is a {kind} model; expected one of the family {wanted}; {source}")
    if found == "clip":
        clip = read_clip(file, texts=False)
        prepared = replace(usual("clip", clip.network.sizes.image), mean=clip.mean, std=clip.std)
        return LoadedTower("CLIP", "clip", clip.network, prepared, tuple(clip.notes))
    if found == "siglip":
        return _siglip(path, tensors, config)
    return _dino(path, tensors, config, kind)


def _recognised(path: Path, tensors: dict[str, Tensor]) -> str:
    """The model type that the names of the tensors tell."""
    names = {name.removeprefix("dinov2_with_registers.").removeprefix("dinov2.") for name in tensors}
    if "visual_projection.weight" in names or "visual.conv1.weight" in names:
        return "clip"
    if "vision_model.head.probe" in names or "head.probe" in names:
        return "siglip"
    if "layer.0.attention.q_proj.weight" in names or "model.layer.0.attention.q_proj.weight" in names:
        return "dinov3_vit"
    if "embeddings.patch_embeddings.projection.weight" in names and "encoder.layer.0.layer_scale1.lambda1" in names:
        return "dinov2_with_registers" if "embeddings.register_tokens" in names else "dinov2"
    raise SearchError(
        f"file: {path.name} is no DINOv2, DINOv3, SigLIP or CLIP under Hugging Face's names; give a folder such as "
        f"{DINO.address} or {SIGLIP.address}"
    )


def _dino(path: Path, tensors: dict[str, Tensor], config: dict[str, Any], kind: str) -> LoadedTower:
    import transformers

    classes = {
        "dinov2": ("Dinov2Config", "Dinov2Model"),
        "dinov2_with_registers": ("Dinov2WithRegistersConfig", "Dinov2WithRegistersModel"),
        "dinov3_vit": ("DINOv3ViTConfig", "DINOv3ViTModel"),
    }[kind]
    if not all(hasattr(transformers, name) for name in classes):
        raise SearchError(
            f"file: {path.name} is a {kind} model, which transformers {transformers.__version__} does not know; "
            "update transformers, or use DINOv2"
        )
    notes = () if config else (_guessed(path),)
    told = config or (_dinov3_sizes if kind == "dinov3_vit" else _dinov2_sizes)(path, tensors)
    made = made_config(getattr(transformers, classes[0]), told, path)
    ignored = ("classifier.", "embeddings.mask_token", "dinov2.embeddings.mask_token")
    model = filled(getattr(transformers, classes[1]), made, tensors, path, DINO, ignored)
    # DINOv2 has positions for 518 pixels and is used at 224, DINOv3 at any multiple of its patch.
    patch = made.patch_size
    prepared = read_preprocessing(path.parent, usual("dino", min(224, made.image_size) // patch * patch))
    name = "DINOv3" if kind == "dinov3_vit" else "DINOv2"
    return LoadedTower(name, "dino", Held(model), prepared, notes)


def _siglip(path: Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> LoadedTower:
    from transformers import SiglipVisionConfig, SiglipVisionModel

    notes = () if config else (_guessed(path),)
    told = config.get("vision_config", config) or _siglip_sizes(path, tensors)
    made = made_config(SiglipVisionConfig, told, path)
    kept = {name: t for name, t in tensors.items() if not name.startswith(("text_model.", "logit_"))}
    model = filled(SiglipVisionModel, made, kept, path, SIGLIP, ("vision_model.embeddings.position_ids",))
    prepared = read_preprocessing(path.parent, usual("siglip", made.image_size))
    return LoadedTower("SigLIP", "siglip", Held(in_linear_layers(model)), prepared, notes)


def _guessed(path: Path) -> str:
    return (
        f"{path.name} has no config.json beside it: what its tensors do not tell was taken from the published models "
        "of its size"
    )


def _shape(path: Path, tensors: dict[str, Tensor], name: str, rank: int) -> tuple[int, ...]:
    """The shape of the tensor whose name ends so. Raises SearchError when there is none of that rank."""
    found = [t for full, t in tensors.items() if full == name or full.endswith("." + name)]
    if not found or found[0].ndim != rank:
        raise SearchError(f"file: {path.name} has no usable {name}, and no config.json beside it; download both again")
    return tuple(found[0].shape)


def _count(tensors: dict[str, Tensor], before: str) -> int:
    """How many layers there are under `before`, such as "encoder.layer."."""
    return len({name.split(before, 1)[1].split(".")[0] for name in tensors if before in name})


def _dinov2_sizes(path: Path, tensors: dict[str, Tensor]) -> dict[str, Any]:
    width, _, patch, _ = _shape(path, tensors, "embeddings.patch_embeddings.projection.weight", 4)
    _, positions, _ = _shape(path, tensors, "embeddings.position_embeddings", 3)
    gated = any(name.endswith("encoder.layer.0.mlp.weights_in.weight") for name in tensors)
    sizes = {
        "hidden_size": width, "num_hidden_layers": _count(tensors, "encoder.layer."), "patch_size": patch,
        "num_attention_heads": max(1, width // 64), "image_size": isqrt(positions - 1) * patch,
        "use_swiglu_ffn": gated,
    }  # fmt: skip
    if not gated:
        sizes["mlp_ratio"] = _shape(path, tensors, "encoder.layer.0.mlp.fc1.weight", 2)[0] // width
    if any(name.endswith("embeddings.register_tokens") for name in tensors):
        sizes["num_register_tokens"] = _shape(path, tensors, "embeddings.register_tokens", 3)[1]
    return sizes


def _dinov3_sizes(path: Path, tensors: dict[str, Tensor]) -> dict[str, Any]:
    width, _, patch, _ = _shape(path, tensors, "embeddings.patch_embeddings.weight", 4)
    mlp, _ = _shape(path, tensors, "layer.0.mlp.up_proj.weight", 2)
    gated = any(name.endswith("layer.0.mlp.gate_proj.weight") for name in tensors)
    return {
        "hidden_size": width, "num_hidden_layers": _count({"." + name: t for name, t in tensors.items()}, ".layer."),
        "patch_size": patch, "intermediate_size": mlp, "use_gated_mlp": gated,
        # 64 numbers per head, but 128 in the 7B model
        "num_attention_heads": 32 if width == 4096 else max(1, width // 64),
        "hidden_act": "silu" if gated else "gelu",
        "num_register_tokens": _shape(path, tensors, "embeddings.register_tokens", 3)[1],
        **{f"{x}_bias": any(n.endswith(f"layer.0.attention.{x[0]}_proj.bias") for n in tensors)
           for x in ("query", "key", "value")},
    }  # fmt: skip


def _siglip_sizes(path: Path, tensors: dict[str, Tensor]) -> dict[str, Any]:
    vision = {name: t for name, t in tensors.items() if not name.startswith("text_model.")}
    width, _, patch, _ = _shape(path, vision, "embeddings.patch_embedding.weight", 4)
    positions, _ = _shape(path, vision, "embeddings.position_embedding.weight", 2)
    return {
        "hidden_size": width, "num_hidden_layers": _count(vision, "encoder.layers."), "patch_size": patch,
        "image_size": isqrt(positions) * patch,
        "intermediate_size": _shape(path, vision, "encoder.layers.0.mlp.fc1.weight", 2)[0],
        # from the large model on, all have 16 heads
        "num_attention_heads": 16 if width >= 1024 else max(1, width // 64),
    }  # fmt: skip
