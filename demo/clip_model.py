"""The demo CLIP: its configuration, its text tower as the diffusion models use it, and saving and loading it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from . import tokens

WIDTH = 128
IMAGE_SIZE = 64


def configuration() -> Any:
    """The Hugging Face configuration of the demo CLIP."""
    from transformers import CLIPConfig

    vocabulary = tokens.vocabulary()
    ends: dict[str, Any] = {
        "bos_token_id": vocabulary[tokens.START],
        "eos_token_id": vocabulary[tokens.END],
        "pad_token_id": vocabulary[tokens.END],
    }
    text = {
        "vocab_size": len(vocabulary), "hidden_size": WIDTH, "intermediate_size": 512, "projection_dim": WIDTH,
        "num_hidden_layers": 3, "num_attention_heads": 4, "max_position_embeddings": tokens.MAX_LENGTH,
        "hidden_act": "quick_gelu", **ends,
    }
    vision = {
        "hidden_size": WIDTH, "intermediate_size": 256, "projection_dim": WIDTH, "num_hidden_layers": 4,
        "num_attention_heads": 4, "image_size": IMAGE_SIZE, "patch_size": 8, "hidden_act": "quick_gelu",
    }
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH, **ends)


def build() -> Any:
    """An untrained CLIPModel of the demo's configuration."""
    from transformers import CLIPModel

    return CLIPModel(configuration())


def save(model: Any, folder: str | Path) -> None:
    """Writes the Hugging Face folder: config.json, model.safetensors (fp16), tokenizer and image preprocessing."""
    from safetensors.torch import save_file

    folder = Path(folder)
    tokens.write(folder)
    config = model.config.to_dict()
    config["architectures"] = ["CLIPModel"]
    config.pop("_name_or_path", None)  # where this machine keeps the files is nobody's business
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True, default=str) + "\n")
    half = {
        name: (value.detach().half() if value.is_floating_point() else value).contiguous()
        for name, value in model.state_dict().items()
        if not name.endswith("position_ids")
    }
    save_file(half, str(folder / "model.safetensors"), metadata={"format": "pt", "license": "Apache-2.0"})
    preprocess = {
        "image_processor_type": "CLIPImageProcessor", "do_convert_rgb": True, "do_resize": True, "resample": 3,
        "size": {"shortest_edge": IMAGE_SIZE}, "do_center_crop": True,
        "crop_size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE}, "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocess, indent=2) + "\n")


def load(folder: str | Path) -> tuple[Any, Any]:
    """The CLIPModel (float32, evaluation mode) and the CLIPTokenizer of a folder."""
    from transformers import CLIPModel, CLIPTokenizer

    model = CLIPModel.from_pretrained(str(folder), dtype=torch.float32).eval()
    return model, CLIPTokenizer.from_pretrained(str(folder))


def tokenize(tokenizer: Any, texts: list[str]) -> torch.Tensor:
    """Token ids, int64 [B, MAX_LENGTH]: start, the text, end, then the end token again as padding."""
    encoded = tokenizer(texts, padding="max_length", max_length=tokens.MAX_LENGTH, truncation=True)
    return torch.tensor(encoded["input_ids"], dtype=torch.long)


def encode_text(model: Any, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What the diffusion models take: context [B, T, 128] and pooled [B, 128].

    The context is the last hidden state after the final layer norm, at every position and without a padding mask; the
    pooled vector is the text projection of the context at the first end token.
    """
    output = model.text_model(input_ids=ids)
    return output.last_hidden_state, model.text_projection(output.pooler_output)


def encode_images(model: Any, images: torch.Tensor) -> torch.Tensor:
    """Image embeddings [B, 128], not normalised, of pictures [B, 64, 64, 3] in 0..1."""
    output = model.vision_model(pixel_values=(images.permute(0, 3, 1, 2) - 0.5) / 0.5)
    return model.visual_projection(output.pooler_output)
