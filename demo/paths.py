"""Where the demo world's files live, inside this package and (for training only) in the temporary folder."""

from __future__ import annotations

import tempfile
from pathlib import Path

DEMO = Path(__file__).resolve().parent
MODELS = DEMO / "models"
CLIP = MODELS / "clip" / "noise_search_demo_clip"
VAE = MODELS / "vae" / "noise_search_demo_vae.safetensors"
DIFFUSION = MODELS / "diffusion_models"
CLASSIFIER = MODELS / "verifiers" / "noise_search_demo_classifier.safetensors"
PROMPTS = DEMO / "prompts.txt"
DIFFUSION_FILES: dict[str, Path] = {
    "flow": DIFFUSION / "noise_search_demo_flow.safetensors",
    "eps": DIFFUSION / "noise_search_demo_eps.safetensors",
    "flow_large": DIFFUSION / "noise_search_demo_flow_large.safetensors",
}


def scratch() -> Path:
    """The folder for what training leaves behind (latents, checkpoints); made when missing."""
    folder = Path(tempfile.gettempdir()) / "noise_search_demo"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
