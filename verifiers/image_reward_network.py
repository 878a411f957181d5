"""The network of ImageReward: BLIP's two towers, the text looking at the image in every layer, and an affine head."""

from __future__ import annotations

import re
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..search.errors import SearchError
from .files import Source
from .pretrained import Held, filled, made_config

#: The mean and standard deviation of the raw reward on the authors' own pictures.
MEAN, STD = 0.16717362830052426, 1.0333394966054072
_VISION, _TEXT, _HEAD = "blip.visual_encoder.", "blip.text_encoder.", "mlp.layers."
_IN_VISION = (
    (r"^cls_token$", "embeddings.class_embedding"),
    (r"^pos_embed$", "embeddings.position_embedding"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"^blocks\.(\d+)\.norm([12])\.", r"encoder.layers.\1.layer_norm\2."),
    (r"^blocks\.(\d+)\.attn\.qkv\.", r"encoder.layers.\1.self_attn.qkv."),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"encoder.layers.\1.self_attn.projection."),
    (r"^blocks\.(\d+)\.mlp\.", r"encoder.layers.\1.mlp."),
    (r"^norm\.", "post_layernorm."),
)


class ImageRewardNetwork(nn.Module):
    """Rewards float32 [B] of normalised pixels [B, 3, size, size] for one text."""

    def __init__(self, vision: nn.Module, text: nn.Module, head: nn.Sequential, size: int, tokens: int) -> None:
        super().__init__()
        self.vision, self.text, self.head = Held(vision), Held(text), head
        self.size, self.tokens = size, tokens
        self.eval()

    def forward(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """`ids` and `mask` are int64 [1, T]; `mask` is 1 where a token counts."""
        # Its last state only: BLIP's pooled output is normalised twice.
        seen = self.vision.model(pixel_values=self.vision.here(pixels)).last_hidden_state
        read = self.text.model(
            input_ids=self.text.here(ids).expand(len(pixels), -1),
            attention_mask=self.text.here(mask).expand(len(pixels), -1),
            encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.long, device=seen.device),
        )
        x = read.last_hidden_state[:, 0]
        for layer in self.head:
            x = layer(x.to(layer.weight.dtype))
        out: Tensor = (x[:, 0].float() - MEAN) / STD
        return out


def read_network(path: Path, tensors: dict[str, Tensor], source: Source) -> ImageRewardNetwork:
    """The network with the tensors of ImageReward.pt, which also holds some that scoring does not need.

    Raises SearchError when a tensor that it does need is missing or of the wrong shape.
    """
    from transformers import BlipTextModel, BlipVisionModel

    vision_config, text_config = configs(path, tensors, source)
    seen, read, head = parts(tensors)
    unused = ("embeddings.position_ids",)
    vision = filled(BlipVisionModel, vision_config, seen, path, source)
    text = filled(BlipTextModel, text_config, read, path, source, unused, add_pooling_layer=False)
    made = _affine(path, head, text_config.hidden_size, source)
    return ImageRewardNetwork(vision, text, made, vision_config.image_size, text_config.vocab_size)


def parts(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of the image tower, the text tower and the head, under the names that transformers has for them."""
    seen, read, head = (
        {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        for prefix in (_VISION, _TEXT, _HEAD)
    )
    for pattern, name in _IN_VISION:
        seen = {re.sub(pattern, name, old): t for old, t in seen.items()}
    return seen, read, head


def configs(path: Path, tensors: dict[str, Tensor], source: Source) -> tuple[Any, Any]:
    """The configs of both towers by the shapes of the tensors; heads have 64 numbers, as in BERT and ViT-L."""
    from transformers import BlipTextConfig, BlipVisionConfig

    def shape(name: str, rank: int) -> tuple[int, ...]:
        if name not in tensors or tensors[name].ndim != rank:
            raise SearchError(f"file: {path.name} has no usable {name}, so it is no ImageReward; {source}")
        return tuple(tensors[name].shape)

    def layers(prefix: str) -> int:
        return len({name[len(prefix) :].split(".")[0] for name in tensors if name.startswith(prefix)})

    width, _, patch, _ = shape(f"{_VISION}patch_embed.proj.weight", 4)
    positions = shape(f"{_VISION}pos_embed", 3)[1]
    seen = {
        "hidden_size": width, "intermediate_size": shape(f"{_VISION}blocks.0.mlp.fc1.weight", 2)[0],
        "num_hidden_layers": layers(f"{_VISION}blocks."), "num_attention_heads": max(1, width // 64),
        "image_size": isqrt(positions - 1) * patch, "patch_size": patch, "layer_norm_eps": 1e-6,
    }  # fmt: skip
    tokens, text_width = shape(f"{_TEXT}embeddings.word_embeddings.weight", 2)
    read = {
        "vocab_size": tokens, "hidden_size": text_width, "encoder_hidden_size": width,
        "intermediate_size": shape(f"{_TEXT}encoder.layer.0.intermediate.dense.weight", 2)[0],
        "num_hidden_layers": layers(f"{_TEXT}encoder.layer."), "num_attention_heads": max(1, text_width // 64),
        "max_position_embeddings": shape(f"{_TEXT}embeddings.position_embeddings.weight", 2)[0],
        # Builds the attention to the image; the network itself is run as an encoder.
        "is_decoder": True,
        "bos_token_id": None, "eos_token_id": None, "sep_token_id": None,
    }  # fmt: skip
    return made_config(BlipVisionConfig, seen, path), made_config(BlipTextConfig, read, path)


def _affine(path: Path, tensors: dict[str, Tensor], width: int, source: Source) -> nn.Sequential:
    """The linear layers of the head, with nothing between them: dropouts keep the numbers apart in the file."""
    with torch.inference_mode(False):
        made = []
        for number in sorted({int(name.split(".")[0]) for name in tensors if name.split(".")[0].isdigit()}):
            weight, bias = tensors.get(f"{number}.weight"), tensors.get(f"{number}.bias")
            if weight is None or bias is None or weight.ndim != 2 or weight.shape[1] != width:
                raise SearchError(f"file: {path.name} has no usable {_HEAD}{number}, so it is no ImageReward; {source}")
            width = weight.shape[0]
            layer = nn.Linear(weight.shape[1], width, device="meta")
            layer.load_state_dict({"weight": weight.float(), "bias": bias.float()}, assign=True)
            made.append(layer)
    if width != 1:
        raise SearchError(f"file: {path.name} has no {_HEAD} that ends in one number; {source}")
    return nn.Sequential(*made).requires_grad_(False)
