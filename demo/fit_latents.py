"""Draws the diffusion models' training set, encodes it with the finished VAE, and keeps it in the scratch folder.

A part is also decoded again from slightly noisy latents: the pictures on which the image verifiers learn what the
autoencoder's blur looks like.
"""

from __future__ import annotations

import logging
import random
from dataclasses import dataclass

import torch

from . import paths, scenes, vae
from .scenes import Layout, Placed, Scene

log = logging.getLogger(__name__)

STEPS = 260
BATCH = 250
DECODED_EVERY = 7
SEED = 13


@dataclass
class Decoded:
    """Pictures that went through the VAE, uint8 [N, 64, 64, 3], and what they show."""

    images: torch.Tensor
    scenes: list[Scene]
    layouts: list[Layout]


def fit(steps: int = STEPS) -> None:
    """Writes `steps` x BATCH latents (fp16, as the diffusion model sees them), their scenes, and the decoded part."""
    torch.manual_seed(SEED)
    rng = random.Random(SEED)
    model = vae.narrow(vae.load(paths.VAE)).to(memory_format=torch.channels_last)
    latents, listed = [], []
    images, shown, layouts = [], [], []
    for step in range(steps):
        some = [scenes.random_scene(rng) for _ in range(BATCH)]
        placed = [scenes.layout(scene, rng) for scene in some]
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            encoded = model.encode(scenes.render(placed)).float()
            if step % DECODED_EVERY == 0:
                noise = torch.rand(BATCH, 1, 1, 1) * 0.35 * torch.randn_like(encoded)
                decoded = model.decode(vae.process_out(vae.process_in(encoded) + noise)).float()
                images.append((decoded * 255).round().to(torch.uint8))
                shown += some
                layouts += placed
        latents.append(vae.process_in(encoded).half())
        listed += some
        if step % 20 == 0:
            log.info("latents %d of %d", step, steps)
    # The text features that belong to an earlier run's scenes.
    (paths.scratch() / "text.pt").unlink(missing_ok=True)
    whole = torch.cat(latents)
    log.info("latents mean %.3f std %.3f", float(whole.float().mean()), float(whole.float().std()))
    # Plain words and numbers only: the files can then be read whatever name this package was imported under.
    prompts = [scenes.prompt(scene) for scene in listed]
    torch.save({"latents": whole, "prompts": prompts}, paths.scratch() / "latents.pt")
    objects = [[(o.colour, o.shape, o.x, o.y, o.radius, *o.rgb) for o in one.objects] for one in layouts]
    prompts = [scenes.prompt(scene) for scene in shown]
    torch.save({"images": torch.cat(images), "prompts": prompts, "objects": objects}, paths.scratch() / "decoded.pt")


def load_latents() -> tuple[torch.Tensor, list[Scene]]:
    """The training latents [N, 16, 8, 8] (fp16) and their scenes."""
    stored = torch.load(paths.scratch() / "latents.pt", weights_only=True)
    return stored["latents"], [scenes.parse(text) for text in stored["prompts"]]


def load_decoded() -> Decoded | None:
    """The decoded part of the training set, or None when the `latents` stage has not run."""
    if not (paths.scratch() / "decoded.pt").exists():
        return None
    stored = torch.load(paths.scratch() / "decoded.pt", weights_only=True)
    layouts = [
        Layout(tuple(Placed(colour, shape, x, y, radius, (r, g, b)) for colour, shape, x, y, radius, r, g, b in one))
        for one in stored["objects"]
    ]
    return Decoded(stored["images"], [scenes.parse(text) for text in stored["prompts"]], layouts)
