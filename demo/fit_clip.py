"""Trains the demo CLIP's image tower against its frozen text tower.

Besides the contrastive loss, two throw-away heads (how many objects of each class; which class lies under each patch)
teach the tower to see in a fraction of the time. A first phase uses drawn pictures alone; in the second, half of every
batch are decoded pictures of the `latents` stage.
"""

from __future__ import annotations

import logging
import random
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from . import clip_model, paths, scenes
from .augment import augment
from .fit_latents import Decoded, load_decoded
from .pairs import batch, changed, contrastive, counts, patch_classes, truth
from .scenes import CLASSES, Layout, Scene

log = logging.getLogger(__name__)

DRAWN_SCHEDULE, DRAWN_STEPS = 1000, 400
DECODED_STEPS = 600
FAMILIES, FAMILY = 24, 4
RATE = 1e-3
SEED = 14


class Heads(nn.Module):
    """The two throw-away heads of the image tower."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.number = nn.Linear(width, len(CLASSES) * 4)
        self.patch = nn.Linear(width, len(CLASSES) + 1)


def _draw(
    rng: random.Random, decoded: Decoded | None
) -> tuple[list[Scene], list[Layout], torch.Tensor, list[Scene]]:
    """One batch: the scenes, their layouts, the augmented pictures, and further scenes as wrong answers."""
    pairs = batch(FAMILIES if decoded is None else FAMILIES // 2, FAMILY, rng)
    images = scenes.render(pairs.layouts)
    if decoded is None:
        return pairs.scenes, pairs.layouts, augment(images), []
    picked = rng.sample(range(len(decoded.scenes)), FAMILIES // 2 * FAMILY)
    shown = [decoded.scenes[index] for index in picked]
    layouts = [decoded.layouts[index] for index in picked]
    images = torch.cat((images, decoded.images[picked].float() / 255))
    wrong = [changed(scene, rng) for scene in shown for _ in range(2)]
    return pairs.scenes + shown, pairs.layouts + layouts, augment(images), wrong


def fit(steps: int = DRAWN_STEPS) -> None:
    """The first phase: a new image tower, on drawn pictures, and the CLIP folder written again.

    It stops early in a longer schedule, while the learning rate is still high: the second phase brings it down.
    """
    torch.manual_seed(SEED)
    stored, _ = clip_model.load(paths.CLIP)
    model = clip_model.build()
    model.text_model.load_state_dict(stored.text_model.state_dict())
    model.text_projection.load_state_dict(stored.text_projection.state_dict())
    run_phase(model, DRAWN_SCHEDULE, steps, None, SEED)


def fit_decoded(steps: int = DECODED_STEPS) -> None:
    """The second phase: the image tower of the CLIP folder, trained on, half on decoded pictures."""
    model, _ = clip_model.load(paths.CLIP)
    run_phase(model, steps, steps, load_decoded(), SEED + 100)


def run_phase(model: Any, schedule_steps: int, stop: int, decoded: Decoded | None, seed: int) -> None:
    """Trains the image tower of `model` for `stop` steps of a schedule; writes the CLIP folder every 200.

    With `decoded` pictures, half of every batch are such pictures.
    """
    torch.manual_seed(seed)
    rng = random.Random(seed)
    _, tokenizer = clip_model.load(paths.CLIP)
    model.train()
    model.text_model.requires_grad_(False)
    model.text_projection.requires_grad_(False)
    heads = Heads(clip_model.WIDTH)
    learned = [*model.vision_model.parameters(), *model.visual_projection.parameters(), *heads.parameters()]
    learned.append(model.logit_scale)
    optimiser = torch.optim.AdamW(learned, lr=RATE, weight_decay=0.02, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=schedule_steps, pct_start=0.1)
    for step in range(1, stop + 1):
        shown, layouts, images, wrong = _draw(rng, decoded)
        named = shown + wrong
        with torch.no_grad():
            ids = clip_model.tokenize(tokenizer, [scenes.prompt(scene, rng) for scene in named])
            texts = functional.normalize(clip_model.encode_text(model, ids)[1], dim=1)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            seen = model.vision_model(pixel_values=(images.permute(0, 3, 1, 2) - 0.5) / 0.5)
            made = model.visual_projection(seen.pooler_output).float()
            number, patches = heads.number(made).float(), heads.patch(seen.last_hidden_state[:, 1:]).float()
        true = truth(shown, layouts, named)
        logits = model.logit_scale.exp() * functional.normalize(made, dim=1) @ texts.T
        loss = contrastive(logits, true)
        loss = loss + functional.cross_entropy(number.view(-1, 4), counts(shown).flatten())
        loss = loss + 0.5 * functional.cross_entropy(patches.flatten(0, 1), patch_classes(layouts).flatten())
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(learned, 1.0)
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=4.6)
        if step % 50 == 0:
            own = torch.eye(*true.shape, dtype=torch.bool)
            best = logits.detach().masked_fill(true & ~own, -1e9).argmax(1)
            right = float((best == torch.arange(len(best))).float().mean())
            log.info("clip step %d loss %.4f retrieval %.3f", step, float(loss.detach()), right)
        if step % 200 == 0 or step == stop:
            clip_model.save(model, paths.CLIP)
