"""A tiny Qwen3-VL with random weights: in ComfyUI, through its own loader, and the same in transformers."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

import comfy.sd
import comfy.text_encoders.llama as llama
import pytest
import torch

#: Older ComfyUI versions do not know Qwen3-VL.
HAS_QWEN3VL = importlib.util.find_spec("comfy.text_encoders.qwen3vl") is not None

VOCABULARY = 151936  # the tokenizer is the real one
TEXT = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
    "num_attention_heads": 2, "num_key_value_heads": 1,
}  # fmt: skip
VISION = {"hidden_size": 32, "intermediate_size": 48, "depth": 4, "deepstack_visual_indexes": [0, 2]}
SHARED = {
    "num_heads": 2, "patch_size": 16, "temporal_patch_size": 2, "in_channels": 3, "spatial_merge_size": 2,
    "num_position_embeddings": 2304,
}  # fmt: skip


def reference(tied: bool) -> Any:
    """A transformers Qwen3VLForConditionalGeneration; `tied` as in the 4B: the output layer is the embedding."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20], "mrope_interleaved": True}
    text = {**TEXT, "head_dim": 128, "rms_norm_eps": 1e-6, "rope_parameters": rope, "tie_word_embeddings": tied}
    config = Qwen3VLConfig(
        text_config=text, vision_config={**VISION, **SHARED, "out_hidden_size": TEXT["hidden_size"]},
        tie_word_embeddings=tied, image_token_id=151655, vision_start_token_id=151652, vision_end_token_id=151653,
    )  # fmt: skip
    torch.manual_seed(3)
    model = Qwen3VLForConditionalGeneration(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(4)
    for name, weight in model.named_parameters():  # fresh weights are so small that images would hardly matter
        weight += 0.15 * torch.randn(weight.shape, generator=generator) * (0.3 if weight.ndim == 1 else 1)
        if "embed_tokens" in name or "lm_head" in name:
            weight *= 3
    return model


def clip(model: Any, tied: bool, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The CLIP that ComfyUI's loader makes of the weights of `reference`, as it makes it of a file of that naming."""
    import comfy.text_encoders.qwen3vl as qwen3vl

    @dataclass
    class Tiny(llama.Qwen3VL_8BConfig):  # type: ignore[misc]
        pass

    kind = "qwen3vl_4b" if tied else "qwen3vl_8b"
    monkeypatch.setitem(qwen3vl.QWEN3VL_CONFIGS, kind, lambda **more: Tiny(**TEXT, lm_head=not tied, **more))
    monkeypatch.setitem(qwen3vl.QWEN3VL_VISION, kind, VISION)
    monkeypatch.setattr(qwen3vl, "QWEN3VL_VISION_COMMON", SHARED)
    if tied:  # the loader tells the two apart by their width
        monkeypatch.setattr(comfy.sd, "detect_te_model", lambda weights: comfy.sd.TEModel.QWEN3VL_4B)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if tied:
        del weights["lm_head.weight"]
    return comfy.sd.load_text_encoder_state_dicts([weights], clip_type=comfy.sd.CLIPType.STABLE_DIFFUSION)
