"""Trains the demo autoencoder on pictures drawn on the fly and writes its weights file."""

from __future__ import annotations

import copy
import logging
import random

import torch
from safetensors.torch import save_file
from torch import nn

from . import paths, scenes
from .vae import LATENT_CHANNELS, SCALE, SHIFT, THIN_WIDTHS, VAE, widen

log = logging.getLogger(__name__)

STEPS = 2600
BATCH = 16
RATE = 2e-3
SEED = 11


def pictures(count: int, rng: random.Random) -> torch.Tensor:
    """`count` freshly drawn random pictures, [count, 3, 64, 64] in 0..1, channels last in memory."""
    drawn = scenes.render([scenes.layout(scenes.random_scene(rng), rng) for _ in range(count)])
    return drawn.permute(0, 3, 1, 2)


def _loss(made: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    difference = made - wanted
    edges = difference.diff(dim=-1).square().mean() + difference.diff(dim=-2).square().mean()
    return difference.square().mean() + 0.1 * difference.abs().mean() + 0.5 * edges


def _fold(thin: VAE, norm: nn.BatchNorm2d) -> VAE:
    """Moves the latent normalisation into the encoder's last convolution, so that latents suit `process_in`."""
    folded = copy.deepcopy(thin)
    last = folded.taesd_encoder[-1]
    gain = 1 / (norm.running_var + norm.eps).sqrt()
    with torch.no_grad():
        last.weight.mul_((gain / SCALE)[:, None, None, None])
        last.bias.copy_((last.bias - norm.running_mean) * gain / SCALE + SHIFT)
    return folded


def _save(thin: VAE, norm: nn.BatchNorm2d) -> None:
    wide = widen(_fold(thin, norm))
    paths.VAE.parent.mkdir(parents=True, exist_ok=True)
    half = {name: value.detach().half().contiguous() for name, value in wide.state_dict().items()}
    save_file(half, str(paths.VAE), metadata={"format": "pt", "license": "Apache-2.0"})


def fit(steps: int = STEPS) -> None:
    """Trains for `steps` steps and writes the file, also every 300 steps on the way."""
    torch.manual_seed(SEED)
    rng = random.Random(SEED)
    model = VAE(THIN_WIDTHS).to(memory_format=torch.channels_last)
    norm = nn.BatchNorm2d(LATENT_CHANNELS, affine=False, momentum=0.02)
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=1e-4, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps, pct_start=0.08)
    for step in range(1, steps + 1):
        batch = pictures(BATCH, rng)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            raw = model.taesd_encoder(batch)
        latents = norm(raw.float())
        # Noise makes nearby latents decode alike, which the diffusion models' small errors need.
        latents = latents + torch.rand(len(batch), 1, 1, 1) * 0.3 * torch.randn_like(latents)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            made = model.taesd_decoder(latents / SCALE + SHIFT)
        loss = _loss(made.float(), batch)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 50 == 0:
            log.info("vae step %d loss %.5f", step, float(loss))
        if step % 300 == 0:
            _save(model, norm)
    # The running statistics lag behind the weights; measure them again on the finished network.
    norm.reset_running_stats()
    norm.momentum = None
    with torch.no_grad():
        for _ in range(40):
            norm(model.taesd_encoder(pictures(32, rng)))
    _save(model, norm)
