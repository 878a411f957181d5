"""Writes what is frozen by its hash: the evaluation prompts, and the list of the weights' hashes."""

from __future__ import annotations

import hashlib
import random

from . import paths, scenes
from .scenes import Scene

SEED = 2026
# How many prompts of each kind; of the first three there are no more than 24 each.
KINDS: dict[str, int] = {
    "one object": 24,
    "two of a kind": 24,
    "three of a kind": 24,
    "two objects, and": 60,
    "two objects with a relation": 60,
    "three to six objects in two groups": 48,
}


def kind(scene: Scene) -> str:
    """Which of KINDS a scene is."""
    total = sum(group.count for group in scene.groups)
    if len(scene.groups) == 1:
        return ("one object", "two of a kind", "three of a kind")[total - 1]
    if total > 2:
        return "three to six objects in two groups"
    return "two objects, and" if scene.relation is None else "two objects with a relation"


def write_prompts() -> None:
    """Writes prompts.txt: KINDS of each, no scene twice, in mixed order, in random wordings."""
    rng = random.Random(SEED)
    left = dict(KINDS)
    seen: set[Scene] = set()
    lines = []
    while any(left.values()):
        scene = scenes.random_scene(rng)
        if left[kind(scene)] == 0 or scene.canonical() in seen:
            continue
        left[kind(scene)] -= 1
        seen.add(scene.canonical())
        lines.append(scenes.prompt(scene, rng))
    rng.shuffle(lines)
    paths.PROMPTS.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_hashes() -> None:
    """Writes SHA256SUMS over every file below demo/models but itself and the model card, in `sha256sum`'s format."""
    sums = paths.MODELS / "SHA256SUMS"
    lines = []
    for path in sorted(paths.MODELS.rglob("*")):
        if path.is_file() and path.name not in ("SHA256SUMS", "MODEL_CARD.md"):
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            lines.append(f"{digest}  {path.relative_to(paths.MODELS).as_posix()}")
    sums.write_text("\n".join(lines) + "\n", encoding="utf-8")
