"""Trains the demo's diffusion models on the stored latents: rectified flow (small and large) and eps."""

from __future__ import annotations

import logging
import random
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from . import clip_model, paths, scenes
from .fit_latents import load_latents
from .grow import grow
from .mmdit import MMDiT, load
from .sampling import FLOW_MULTIPLIER, eps_sigmas

log = logging.getLogger(__name__)

DROPOUT = 0.12
AVERAGE = 0.999
SETTINGS: dict[str, dict[str, Any]] = {
    "flow": {"depth": 2, "steps": 7000, "batch": 128, "rate": 2e-3, "seed": 15, "start": None},
    "flow_further": {"depth": 2, "steps": 10500, "batch": 64, "rate": 1.2e-3, "seed": 25, "start": "flow"},
    # Both of these start from the small flow model, whose reading of the text they keep.
    "flow_large": {"depth": 3, "steps": 4000, "batch": 64, "rate": 1e-3, "seed": 17, "start": "flow",
                   "schedule": 4800},
    "eps": {"depth": 2, "steps": 1000, "batch": 64, "rate": 1.2e-3, "seed": 16, "start": "flow", "schedule": 4500},
}


class TextTable:
    """The text features of every training prompt, computed once (fp16) and kept in the scratch folder."""

    def __init__(self, listed: list[scenes.Scene]) -> None:
        rng = random.Random(0)
        wordings = [scenes.prompt(scene, rng) for scene in listed]
        unique = ["", *dict.fromkeys(wordings)]
        row = {text: index for index, text in enumerate(unique)}
        self.rows = torch.tensor([row[text] for text in wordings])
        stored = paths.scratch() / "text.pt"
        if stored.exists():
            self.context, self.pooled = torch.load(stored)
            return
        model, tokenizer = clip_model.load(paths.CLIP)
        contexts, pooleds = [], []
        for start in range(0, len(unique), 512):
            ids = clip_model.tokenize(tokenizer, unique[start : start + 512])
            with torch.no_grad():
                context, pooled = clip_model.encode_text(model, ids)
            contexts.append(context.half())
            pooleds.append(pooled.half())
        self.context, self.pooled = torch.cat(contexts), torch.cat(pooleds)
        torch.save((self.context, self.pooled), stored)

    def of(self, picked: torch.Tensor, dropped: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Context [B, T, 128] and pooled [B, 128] of training rows; the empty prompt's where `dropped` is true."""
        rows = torch.where(dropped, torch.zeros_like(picked), self.rows[picked])
        return self.context[rows].float(), self.pooled[rows].float()


def noised(kind: str, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A training input, its timestep [B] and its target, for latents [B, 16, h, w] at random noise levels."""
    noise = torch.randn_like(latents)
    if kind == "flow":
        time = torch.rand(len(latents))
        # A shift of 2 puts more of the training where the layout is decided, at high noise.
        sigma = (2 * time / (1 + time))[:, None, None, None]
        return (1 - sigma) * latents + sigma * noise, sigma.flatten() * FLOW_MULTIPLIER, noise - latents
    index = torch.randint(0, 1000, (len(latents),))
    sigma = eps_sigmas()[index][:, None, None, None]
    return (latents + sigma * noise) / (sigma**2 + 1).sqrt(), index.float(), noise


def _save(weights: dict[str, torch.Tensor], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    half = {name: value.half().contiguous() for name, value in weights.items()}
    save_file(half, str(path), metadata={"format": "pt", "license": "Apache-2.0"})


def fit(name: str, steps: int | None = None) -> None:
    """Runs one of SETTINGS and writes the model's averaged weights, also every 500 steps on the way."""
    settings = SETTINGS[name]
    steps = steps or settings["steps"]
    # A stage that another one continues may stop early in a longer schedule.
    length = max(steps, settings.get("schedule", 0))
    batch = settings["batch"]
    path = paths.DIFFUSION_FILES[name.removesuffix("_further")]
    kind = "eps" if name == "eps" else "flow"
    torch.manual_seed(settings["seed"])
    latents, listed = load_latents()
    texts = TextTable(listed)
    if settings["start"] is None:
        model = MMDiT(settings["depth"])
        model.reset()
    else:
        model = load(paths.DIFFUSION_FILES[settings["start"]])
        if len(model.joint_blocks) < settings["depth"]:
            model = grow(model, settings["depth"])
    model.train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=settings["rate"], weight_decay=0.01, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, settings["rate"], total_steps=length, pct_start=0.05)
    average = {key: value.detach().clone() for key, value in model.state_dict().items()}
    running = 0.0
    for step in range(1, steps + 1):
        picked = torch.randint(0, len(latents), (batch,))
        context, pooled = texts.of(picked, torch.rand(batch) < DROPOUT)
        x, time, target = noised(kind, latents[picked].float())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            made = model(x, time, context, pooled)
        loss = functional.mse_loss(made.float(), target)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        decay = min(AVERAGE, step / (step + 20))
        with torch.no_grad():
            for key, value in model.state_dict().items():
                average[key].lerp_(value, 1 - decay)
        running += float(loss.detach())
        if step % 100 == 0:
            log.info("%s step %d loss %.4f", name, step, running / 100)
            running = 0.0
        if step % 500 == 0 or step == steps:
            _save(average, path)
