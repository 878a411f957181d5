"""The tiny random CLIP of the tests under both spellings of its tensors, on disk and as other libraries' models."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from pack.demo import tokens
from pack.tests.verifiers.conftest import random_clip
from pack.verifiers.clip_file import OPENAI_MEAN, OPENAI_STD


def open_clip_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """CLIPModel's tensors under open_clip's names."""
    made = {
        "positional_embedding": weights["text_model.embeddings.position_embedding.weight"],
        "token_embedding.weight": weights["text_model.embeddings.token_embedding.weight"],
        "text_projection": weights["text_projection.weight"].T,
        "logit_scale": weights["logit_scale"],
        "visual.proj": weights["visual_projection.weight"].T,
        "visual.class_embedding": weights["vision_model.embeddings.class_embedding"],
        "visual.positional_embedding": weights["vision_model.embeddings.position_embedding.weight"],
        "visual.conv1.weight": weights["vision_model.embeddings.patch_embedding.weight"],
    }
    norms = {
        "ln_final": "text_model.final_layer_norm", "visual.ln_pre": "vision_model.pre_layrnorm",
        "visual.ln_post": "vision_model.post_layernorm",
    }  # fmt: skip
    for tower, prefix in (("text_model", ""), ("vision_model", "visual.")):
        for layer in range(len({name.split(".")[3] for name in weights if name.startswith(f"{tower}.encoder")})):
            here, there = f"{tower}.encoder.layers.{layer}", f"{prefix}transformer.resblocks.{layer}"
            for part in ("weight", "bias"):
                qkv = [weights[f"{here}.self_attn.{name}_proj.{part}"] for name in "qkv"]
                made[f"{there}.attn.in_proj_{part}"] = torch.cat(qkv)
            norms |= {
                f"{there}.attn.out_proj": f"{here}.self_attn.out_proj", f"{there}.ln_1": f"{here}.layer_norm1",
                f"{there}.ln_2": f"{here}.layer_norm2", f"{there}.mlp.c_fc": f"{here}.mlp.fc1",
                f"{there}.mlp.c_proj": f"{here}.mlp.fc2",
            }  # fmt: skip
    for there, here in norms.items():
        made |= {f"{there}.{part}": weights[f"{here}.{part}"] for part in ("weight", "bias")}
    return made


def open_clip_model(weights: dict[str, Tensor], quick_gelu: bool = True) -> Any:
    """open_clip's own model with the weights of `random_clip`, given under CLIPModel's names."""
    open_clip = pytest.importorskip("open_clip")
    model = open_clip.CLIP(
        embed_dim=48,
        vision_cfg={"image_size": 32, "patch_size": 8, "width": 64, "layers": 3, "head_width": 64, "mlp_ratio": 1.25},
        text_cfg={"context_length": 16, "vocab_size": 618, "width": 128, "heads": 2, "layers": 2, "mlp_ratio": 0.75},
        quick_gelu=quick_gelu,
    ).eval()
    missing, unexpected = model.load_state_dict(open_clip_names(weights), strict=False)
    assert not unexpected and set(missing) <= {"attn_mask"}
    return model.requires_grad_(False)


def write_clip(path: Path, weights: dict[str, Tensor] | None = None) -> str:
    """Write a CLIP (`random_clip`, unless other weights are given) and its tokenizer beside it; the file's path.

    A .pt file gets OpenCLIP's names one level down, as HPSv2's has them; a .safetensors file those that it is given.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    tokens.write(path.parent)
    weights = dict(random_clip().state_dict()) if weights is None else weights
    if path.suffix == ".pt":
        torch.save({"epoch": 0, "state_dict": open_clip_names(weights)}, path)
    else:
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path)
    return str(path)


def token_ids(text: str, context: int = 16) -> Tensor:
    """Ids [1, context] as open_clip makes them: cut off, padded with zeros; by transformers' tokenizer."""
    from transformers import CLIPTokenizer

    from pack.demo import paths

    tokenizer = CLIPTokenizer.from_pretrained(str(paths.CLIP))
    words = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"][: context - 2]
    ids = torch.zeros(1, context, dtype=torch.long)
    ids[0, : len(words) + 2] = torch.tensor([tokenizer.bos_token_id, *words, tokenizer.eos_token_id])
    return ids


def soft_pictures(number: int = 3, side: int = 80, seed: int = 1) -> Tensor:
    """Square pictures [number, side, side, 3] without sharp edges, on which bicubic does not leave 0..1."""
    coarse = torch.rand(number, 3, 5, 5, generator=torch.Generator().manual_seed(seed)) * 0.6 + 0.2
    return functional.interpolate(coarse, (side, side), mode="bilinear").movedim(1, -1)


def normal(pixels: Tensor) -> Tensor:
    """Pixels [B, 3, H, W] in 0..1 with OpenAI's statistics."""
    return (pixels - torch.tensor(OPENAI_MEAN)[:, None, None]) / torch.tensor(OPENAI_STD)[:, None, None]
