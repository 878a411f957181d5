"""CLIP and CLIP_VISION models that the graph has loaded, as towers for verifiers.

They run where and as ComfyUI keeps them: in float32 on weights that are mostly stored in half precision, and without
gradients, because a node's weights are made in inference mode.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.clip_model
import comfy.model_management
import comfy.sd1_clip
import torch
from torch import Tensor
from torch.nn import functional

from ..search.errors import SearchError
from ..verifiers.clip_text import load_tokenizer
from ..verifiers.dual_tower import CLIPTexts
from ..verifiers.images import normalised

_FAMILIES = {"clip_vision_model": "clip", "dinov2": "dino", "dinov3": "dino"}
_TEXT_TOWERS = {"clip_l": "CLIP-L", "clip_h": "CLIP-H", "clip_g": "CLIP-bigG"}


class HostImageTower:
    """An image tower from a CLIP_VISION: CLIP's projected embedding, DINO's class token."""

    def __init__(self, clip_vision: Any) -> None:
        model, kind = getattr(clip_vision, "model", None), getattr(clip_vision, "model_type", None)
        if model is None or kind is None:
            raise SearchError(f"clip_vision: got a {type(clip_vision).__name__}; wire the output of Load CLIP Vision")
        if kind not in _FAMILIES:
            raise SearchError(
                f"clip_vision: got a {kind}, of which ComfyUI leaves out the layer that makes one embedding of the "
                "image; choose a SigLIP file in the verifier instead, or wire a CLIP or DINO"
            )
        self.family = _FAMILIES[kind]
        if self.family == "clip" and not isinstance(model.visual_projection, torch.nn.Module):
            raise SearchError("clip_vision: this one has no projection, so its numbers fit no text; wire another")
        layers = clip_vision.config.get("num_hidden_layers")
        self.name = f"{kind} with {layers} layers from the graph"
        self.size: int = clip_vision.image_size
        self.notes: list[str] = []
        if self.family == "clip" and layers == 24:
            self.notes.append(
                "ComfyUI reads every CLIP_VISION of 24 layers as OpenAI's ViT-L/14: scores are wrong if it is another's"
            )
        self._host = clip_vision

    def embed(self, pixels: Tensor) -> Tensor:
        """See verifiers.ports.ImageTower."""
        comfy.model_management.load_model_gpu(self._host.patcher)
        mean, std = tuple(self._host.image_mean), tuple(self._host.image_std)
        with torch.inference_mode():
            pixels = normalised(pixels.to(self._host.load_device), mean, std)
            embedded: Tensor = self._host.model(pixel_values=pixels, intermediate_output=-2)[2]
            return embedded.float()


class HostTextTower:
    """The text tower of CLIP inside a CLIP: the prompt as it stands, whatever it holds in brackets, projected."""

    def __init__(self, clip: Any) -> None:
        inner = getattr(clip, "cond_stage_model", None)
        found = [name for name in _TEXT_TOWERS if _is_text_tower(getattr(inner, name, None))]
        if not found:
            raise SearchError(
                f"clip_text: got a {type(inner or clip).__name__} without CLIP's own text tower; wire a CLIP-L or "
                "CLIP-H, such as that of SDXL, SD2 or FLUX"
            )
        part, self.name = found[0], f"{_TEXT_TOWERS[found[0]]} from the graph"
        self._host, self._transformer = clip, getattr(inner, part).transformer
        if any(str(key).startswith(f"{part}.") for key in clip.patcher.patches):
            raise SearchError(f"clip_text: {self.name} has a LoRA and fits no image tower; wire it without the LoRA")
        projection = self._transformer.text_projection.weight
        if _is_absent(projection):
            raise SearchError(
                f"clip_text: {self.name} was loaded from a file without text_projection, as most checkpoints are; load "
                "a text encoder that has it with Load CLIP, or choose a file in the verifier"
            )
        self.width = int(projection.shape[0])
        self._context = int(self._transformer.text_model.embeddings.position_embedding.weight.shape[0])
        tokens = int(self._transformer.text_model.embeddings.token_embedding.weight.shape[0])
        words = load_tokenizer(Path(comfy.sd1_clip.__file__).parent / "sd1_tokenizer", "", tokens)
        self._texts = CLIPTexts(self, words, self.width, self._context, self.name)
        self.notes = self._texts.notes
        self.notes.append(f"{self.name} is taken as published: one that was trained further fits no image tower")

    def embed(self, text: str, long_prompts: str = "chunk") -> Tensor:
        """See verifiers.ports.TextTower."""
        return self._texts.embed(text, long_prompts)

    def embed_text(self, ids: Tensor, end: int) -> Tensor:
        """See verifiers.dual_tower.TokenTower."""
        self._host.load_model()
        # ComfyUI adds all positions at once, so a text must have all of them.
        ids = functional.pad(ids, (0, self._context - ids.shape[1]), value=end)
        lengths = [1 + at for at in (ids == end).int().argmax(dim=1).tolist()]
        with torch.inference_mode():
            embedded: Tensor = self._transformer(ids.to(self._host.patcher.load_device), num_tokens=lengths)[2]
            return embedded.float()


def _is_text_tower(part: Any) -> bool:
    return isinstance(getattr(part, "transformer", None), comfy.clip_model.CLIPTextModel)


def _is_absent(projection: Tensor) -> bool:
    """Whether a projection was in no file: ComfyUI leaves zeros, ones on the diagonal or whatever memory held."""
    weight = projection.detach().float().cpu()
    if not bool(weight.isfinite().all()) or bool((weight == 0).all(dim=1).any()):
        return True
    identity = weight.shape[0] == weight.shape[1] and torch.equal(weight, torch.eye(len(weight)))
    return identity or not 1e-4 < float(weight.std()) < 1
