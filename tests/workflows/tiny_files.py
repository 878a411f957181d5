"""Tiny random weights under the names of the real files, where the templates with real models look for them."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from pack.tests.verifiers.conftest import sample
from pack.tests.verifiers.tiny_clip import write_clip

#: The vocabulary of OpenAI's CLIP, whose tokenizer ComfyUI brings.
WORDS = 49408


def write_verifiers(folder: Path) -> None:
    """Fill models/verifiers with what the verifiers of both templates read."""
    for key, name in (("image_reward", "ImageReward"), ("pick_score", "PickScore_v1"), ("hps", "HPSv2")):
        place = folder / name
        place.mkdir(parents=True)
        sample(key).settings(place)
    write_clip(folder / "clip-vit-large-patch14" / "model.safetensors")
    _as_published(folder / "HPSv2")


def _as_published(folder: Path) -> None:
    """Leave HPSv2's file alone in its folder, as it is downloaded: its words are those of OpenAI's CLIP."""
    [file] = folder.glob("*.pt")
    content = torch.load(file, weights_only=True)
    words = content["state_dict"]["token_embedding.weight"]
    content["state_dict"]["token_embedding.weight"] = words.repeat(WORDS // len(words) + 1, 1)[:WORDS].clone()
    shutil.rmtree(folder)
    folder.mkdir()
    torch.save(content, file)


def write_models(folder: Path) -> None:
    """Fill ComfyUI's own folders. Loaders that cannot take a tiny file get an empty one, so that they list its name.

    Needs a ComfyUI that this process can import.
    """
    from pack.tests.nodes import tiny
    from pack.tests.workflows.tiny_loaders import decoder

    for place in ("checkpoints", "diffusion_models", "text_encoders", "vae"):
        (folder / place).mkdir(exist_ok=True)
    save_file(tiny.flux().model.diffusion_model.state_dict(), folder / "diffusion_models" / "flux1-dev.safetensors")
    save_file(decoder(16), folder / "vae" / "ae.safetensors")
    for listed in (
        "checkpoints/sd_xl_base_1.0.safetensors", "text_encoders/clip_l.safetensors",
        "text_encoders/t5xxl_fp16.safetensors",
    ):  # fmt: skip
        (folder / listed).touch()
