"""Trains the demo CLIP's text tower against a small network that sees the scene itself instead of its wording.

The text tower is then frozen: the image tower is fitted to it, and the diffusion models read it.
"""

from __future__ import annotations

import logging
import random

import torch
from torch import nn

from . import clip_model, paths
from .pairs import batch, contrastive, counts, roles
from .scenes import CLASSES

log = logging.getLogger(__name__)

STEPS = 700
FAMILIES, FAMILY = 40, 6
RATE = 1.5e-3
SEED = 12


class SceneTower(nn.Module):
    """Embeds the facts of a scene: counts by class, the relation, and again the counts of the canonical first group."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(24 * 4 + 4 + 24 * 4, 512), nn.GELU(), nn.Linear(512, width))

    def forward(self, number: torch.Tensor, relation: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
        hot = nn.functional.one_hot(number, 4).float()
        ordered = (relation >= 2).float()[:, None, None]
        lead = hot * nn.functional.one_hot(first, len(CLASSES)).float()[:, :, None] * ordered
        kind = nn.functional.one_hot(relation, 4).float()
        return self.net(torch.cat((hot.flatten(1), kind, lead.flatten(1)), dim=1))


def fit(steps: int = STEPS) -> None:
    """Trains the text tower and writes the whole (otherwise untrained) CLIP folder."""
    torch.manual_seed(SEED)
    rng = random.Random(SEED)
    model = clip_model.build()
    clip_model.save(model, paths.CLIP)
    _, tokenizer = clip_model.load(paths.CLIP)
    width = clip_model.WIDTH
    scene_tower = SceneTower(width)
    heads = nn.ModuleDict(
        {"counts": nn.Linear(width, 24 * 4), "relation": nn.Linear(width, 4), "first": nn.Linear(width, 24)}
    )
    scale = nn.Parameter(torch.tensor(2.6))
    learned = [*model.text_model.parameters(), *model.text_projection.parameters()]
    learned += [*scene_tower.parameters(), *heads.parameters(), scale]
    optimiser = torch.optim.AdamW(learned, lr=RATE, weight_decay=0.02, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps, pct_start=0.1)
    for step in range(1, steps + 1):
        pairs = batch(FAMILIES, FAMILY, rng)
        number = counts(pairs.scenes)
        relation, first = roles(pairs.scenes)
        _, pooled = clip_model.encode_text(model, clip_model.tokenize(tokenizer, pairs.wordings))
        seen = scene_tower(number, relation, first)
        logits = nn.functional.normalize(pooled, dim=1) @ nn.functional.normalize(seen, dim=1).T
        logits = scale.clamp(max=4.6).exp() * logits
        whole = [hash(scene.canonical()) for scene in pairs.scenes]
        same = torch.tensor(whole)[:, None] == torch.tensor(whole)[None, :]
        loss = contrastive(logits, same)
        loss = loss + nn.functional.cross_entropy(heads["counts"](pooled).view(-1, 4), number.flatten())
        loss = loss + 0.3 * nn.functional.cross_entropy(heads["relation"](pooled), relation)
        ordered = relation >= 2
        loss = loss + 0.3 * nn.functional.cross_entropy(heads["first"](pooled)[ordered], first[ordered])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(learned, 1.0)
        optimiser.step()
        schedule.step()
        if step % 25 == 0:
            right = float((logits.masked_fill(same & ~torch.eye(len(same), dtype=torch.bool), -1e9).argmax(1)
                           == torch.arange(len(same))).float().mean())
            log.info("text step %d loss %.4f retrieval %.3f", step, float(loss.detach()), right)
    with torch.no_grad():
        model.logit_scale.copy_(scale.clamp(max=4.6))
    clip_model.save(model, paths.CLIP)
