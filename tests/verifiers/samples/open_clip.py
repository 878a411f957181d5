"""A CLIP as the hub has it for open_clip: the weights, and a JSON file that describes them."""

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file

MODEL = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
PREPROCESSING = {
    "mean": [0.4, 0.5, 0.6], "std": [0.3, 0.2, 0.25], "interpolation": "bicubic", "resize_mode": "shortest",
}  # fmt: skip


def write(folder: Path, model: dict[str, Any] = MODEL, preprocessing: dict[str, Any] = PREPROCESSING) -> str:
    """Write random weights for a model and its description; the path of the weights."""
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": preprocessing}))
    torch.manual_seed(31)
    made = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    for parameter in made.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    save_file(made.state_dict(), folder / "open_clip_model.safetensors")
    return str(folder / "open_clip_model.safetensors")


def settings(folder: Path) -> dict[str, Any]:
    return {"file": write(folder)}
