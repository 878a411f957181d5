"""Training batches for the demo CLIP: pictures, wordings, and which wording is true of which picture.

A batch is made of families of near-identical scenes (one count, colour, shape or relation changed), so that the
contrastive loss has to tell exactly these apart.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch

from . import scenes
from .scenes import CLASSES, COLOURS, RELATIONS, SHAPES, SIZE, Group, Layout, Scene

PATCH = 8


@dataclass(frozen=True)
class Pairs:
    """B scenes with a layout and a wording each."""

    scenes: list[Scene]
    layouts: list[Layout]
    wordings: list[str]


def changed(scene: Scene, rng: random.Random) -> Scene:
    """A scene that differs from `scene` in one count, colour, shape, relation, or in who stands where."""
    while True:
        groups = list(scene.groups)
        relation = scene.relation
        at = rng.randrange(len(groups))
        one = groups[at]
        kinds = ["count", "count", "colour", "shape"]
        if len(groups) == 2:
            kinds += ["relation", "swap", "cross"]
        kind = rng.choice(kinds)
        if kind == "count":
            groups[at] = Group(rng.choice([n for n in (1, 2, 3) if n != one.count]), one.colour, one.shape)
        elif kind == "colour":
            groups[at] = Group(one.count, rng.choice([c for c in COLOURS if c != one.colour]), one.shape)
        elif kind == "shape":
            groups[at] = Group(one.count, one.colour, rng.choice([s for s in SHAPES if s != one.shape]))
        elif kind == "relation":
            relation = rng.choice([r for r in RELATIONS if r != scene.relation])
        elif kind == "swap":
            groups = groups[::-1]
        else:
            first, second = groups
            swap_colour = rng.random() < 0.5
            groups = [
                Group(first.count, second.colour, first.shape) if swap_colour
                else Group(second.count, first.colour, first.shape),
                Group(second.count, first.colour, second.shape) if swap_colour
                else Group(first.count, second.colour, second.shape),
            ]
        if len(groups) == 2 and (groups[0].colour, groups[0].shape) == (groups[1].colour, groups[1].shape):
            continue
        made = Scene(tuple(groups), relation)
        if made.canonical() != scene.canonical():
            return made


def holds(scene: Scene, layout: Layout) -> bool:
    """Whether a scene's relation is true of a layout of the same groups; a scene without one always holds."""
    if scene.relation is None:
        return True
    axis = "x" if scene.relation in ("left of", "right of") else "y"
    first, second = (
        [getattr(o, axis) for o in layout.objects if (o.colour, o.shape) == (group.colour, group.shape)]
        for group in scene.groups
    )
    if scene.relation in ("right of", "below"):
        first, second = second, first
    return max(first) < min(second)


def batch(families: int, size: int, rng: random.Random) -> Pairs:
    """`families` x `size` scenes, each family a random scene and `size` - 1 changes of it, with random wordings."""
    listed: list[Scene] = []
    for _ in range(families):
        base = scenes.random_scene(rng)
        listed.append(base)
        listed += [changed(base, rng) for _ in range(size - 1)]
    layouts = [scenes.layout(scene, rng) for scene in listed]
    return Pairs(listed, layouts, [scenes.prompt(scene, rng) for scene in listed])


def truth(shown: list[Scene], layouts: list[Layout], named: list[Scene]) -> torch.Tensor:
    """Which of the `named` scenes are true of which picture (drawn for `shown` as `layouts`), bool [B, named]."""
    table = torch.zeros(len(shown), len(named), dtype=torch.bool)
    by_members: dict[frozenset[Group], list[int]] = {}
    for index, scene in enumerate(named):
        by_members.setdefault(frozenset(scene.groups), []).append(index)
    for row, scene in enumerate(shown):
        for column in by_members.get(frozenset(scene.groups), ()):
            table[row, column] = holds(named[column], layouts[row])
    return table


def contrastive(logits: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """Both directions of the CLIP loss for logits [B, B + extra], row i's own text being column i.

    A pair that is true without being the row's own counts as neither right nor wrong. The extra columns are texts
    without a picture: wrong answers for the pictures alone.
    """
    rows = len(logits)
    own = torch.eye(rows, logits.shape[1], dtype=torch.bool)
    masked = logits.masked_fill(true & ~own, float("-inf"))
    target = torch.arange(rows)
    forwards = torch.nn.functional.cross_entropy(masked, target)
    return (forwards + torch.nn.functional.cross_entropy(masked[:, :rows].T, target)) / 2


def counts(listed: list[Scene]) -> torch.Tensor:
    """How many objects of each of the 24 classes a scene has, int64 [B, 24]."""
    table = torch.zeros(len(listed), len(CLASSES), dtype=torch.long)
    for row, scene in enumerate(listed):
        for group in scene.groups:
            table[row, CLASSES.index(f"{group.colour} {group.shape}")] = group.count
    return table


def roles(listed: list[Scene]) -> tuple[torch.Tensor, torch.Tensor]:
    """The canonical relation (0 one group, 1 and, 2 left of, 3 above) and the class of the canonical first group."""
    kinds = {None: 1, "left of": 2, "above": 3}
    whole = [scene.canonical() for scene in listed]
    relation = torch.tensor([0 if len(s.groups) == 1 else kinds[s.relation] for s in whole])
    first = torch.tensor([CLASSES.index(f"{s.groups[0].colour} {s.groups[0].shape}") for s in whole])
    return relation, first


def patch_classes(layouts: list[Layout]) -> torch.Tensor:
    """The class under the centre of each 8 x 8 patch, int64 [B, 64]; 24 is the background."""
    side = SIZE // PATCH
    axis = (torch.arange(side, dtype=torch.float32) + 0.5) * PATCH
    table = torch.full((len(layouts), side, side), len(CLASSES), dtype=torch.long)
    for row, picture in enumerate(layouts):
        for one in picture.objects:
            inside = ((axis[None, :] - one.x).abs() < one.radius) & ((axis[:, None] - one.y).abs() < one.radius)
            table[row][inside] = CLASSES.index(f"{one.colour} {one.shape}")
    return table.flatten(1)
