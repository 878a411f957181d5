"""Trains the demo classifier on drawn pictures and, where the `latents` stage left some, on decoded ones."""

from __future__ import annotations

import logging
import random

import torch
from torch.nn import functional

from . import paths, scenes
from .augment import augment
from .classifier import Classifier, save
from .fit_latents import load_decoded
from .pairs import counts

log = logging.getLogger(__name__)

STEPS = 500
BATCH = 64
RATE = 3e-3
SEED = 18


def fit(steps: int = STEPS) -> None:
    """Trains for `steps` steps and writes the weights file, also every 300 steps on the way."""
    torch.manual_seed(SEED)
    rng = random.Random(SEED)
    decoded = load_decoded()
    model = Classifier()
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps, pct_start=0.1)
    for step in range(1, steps + 1):
        drawn = [scenes.random_scene(rng) for _ in range(BATCH if decoded is None else BATCH // 2)]
        images = scenes.render([scenes.layout(scene, rng) for scene in drawn])
        if decoded is not None:
            picked = rng.sample(range(len(decoded.scenes)), BATCH - len(drawn))
            images = torch.cat((images, decoded.images[picked].float() / 255))
            drawn = drawn + [decoded.scenes[index] for index in picked]
        present = (counts(drawn) > 0).float()
        logits = model(augment(images).permute(0, 3, 1, 2))
        loss = functional.binary_cross_entropy_with_logits(logits, present)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 100 == 0:
            log.info("classifier step %d loss %.4f", step, float(loss.detach()))
        if step % 300 == 0 or step == steps:
            save(model, paths.CLASSIFIER)
