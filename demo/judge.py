"""The exact judge: reads a picture of the demo world and says how much of a prompt it obeys.

No network is involved. Pixels are sorted by their colour direction away from the background, connected pixels of
one colour are an object, and an object's shape is the template that its outline resembles most.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from scipy import ndimage

from .scenes import BACKGROUND, COLOURS, SHAPES, SIZE, Scene, inside_distance, parse

_GRID = 16
_MIN_AREA = 40
_FOREGROUND = 0.5
_MAX_MISFIT = 0.17
_MAX_ASPECT = 1.45


@dataclass(frozen=True)
class Found:
    """One object that the judge sees: `shape` is None when it resembles none; (x, y) is its centre in pixels."""

    colour: str
    shape: str | None
    x: float
    y: float
    area: int


@dataclass(frozen=True)
class Clause:
    """One checkable part of a prompt: its words, and the test on the objects found."""

    text: str
    holds: Callable[[list[Found]], bool]


@lru_cache(maxsize=1)
def _templates() -> np.ndarray:
    """Coverage of each shape on a 16 x 16 grid that its bounding box fills, [shapes, 16, 16]."""
    axis = (torch.arange(256, dtype=torch.float32) - 127.5)
    made = []
    for shape in SHAPES:
        mask = inside_distance(shape, axis[None, :], axis[:, None], torch.tensor(100.0)).numpy() > 0
        made.append(_on_grid(mask[ndimage.find_objects(mask.astype(np.int8))[0]]))
    return np.stack(made)


@lru_cache(maxsize=256)
def _overlap(length: int) -> np.ndarray:
    """The share of every source pixel (columns) that falls into every grid cell (rows), rows summing to 1."""
    edges = np.linspace(0, length, _GRID + 1)
    pixel = np.arange(length)
    low = np.maximum(edges[:-1, None], pixel[None, :])
    high = np.minimum(edges[1:, None], pixel[None, :] + 1)
    return np.clip(high - low, 0, None) * (_GRID / length)


def _on_grid(mask: np.ndarray) -> np.ndarray:
    return _overlap(mask.shape[0]) @ mask.astype(np.float64) @ _overlap(mask.shape[1]).T


def _shape_of(mask: np.ndarray) -> str | None:
    height, width = mask.shape
    if max(height, width) > _MAX_ASPECT * min(height, width):
        return None
    misfit = np.abs(_templates() - _on_grid(mask)).mean(axis=(1, 2))
    best = int(misfit.argmin())
    return SHAPES[best] if misfit[best] <= _MAX_MISFIT else None


def find(image: torch.Tensor | np.ndarray) -> list[Found]:
    """The objects in one picture, float [64, 64, 3] in 0..1, largest first."""
    pixels = np.asarray(image, dtype=np.float32).reshape(SIZE, SIZE, 3)
    palette = np.array(list(COLOURS.values()), dtype=np.float32) - np.array(BACKGROUND, dtype=np.float32)
    lengths = np.linalg.norm(palette, axis=1)
    away = pixels - np.array(BACKGROUND, dtype=np.float32)
    # A pixel on a blurred edge is a mixture of object and background: it keeps the object's direction.
    along = away @ (palette / lengths[:, None]).T
    nearest = along.argmax(axis=-1)
    solid = np.take_along_axis(along / lengths, nearest[..., None], axis=-1)[..., 0] > _FOREGROUND
    objects = []
    for index, colour in enumerate(COLOURS):
        mask = solid & (nearest == index)
        if np.count_nonzero(mask) < _MIN_AREA:
            continue
        labels, _ = ndimage.label(mask)
        for number, box in enumerate(ndimage.find_objects(labels), start=1):
            part = labels[box] == number
            area = int(np.count_nonzero(part))
            if area < _MIN_AREA:
                continue
            rows, columns = np.nonzero(part)
            x, y = columns.mean() + box[1].start + 0.5, rows.mean() + box[0].start + 0.5
            objects.append(Found(colour, _shape_of(part), float(x), float(y), area))
    return sorted(objects, key=lambda one: -one.area)


def _members(objects: list[Found], colour: str, shape: str) -> list[Found]:
    return [one for one in objects if one.colour == colour and one.shape == shape]


def _related(first: list[Found], second: list[Found], relation: str) -> bool:
    if not first or not second:
        return False
    axis = "x" if relation in ("left of", "right of") else "y"
    if relation in ("right of", "below"):
        first, second = second, first
    return max(getattr(one, axis) for one in first) < min(getattr(one, axis) for one in second)


def clauses(scene: Scene) -> list[Clause]:
    """What a picture must meet to show a scene: each group's count, the relation, and nothing else there."""
    made = []
    for group in scene.groups:
        made.append(
            Clause(
                f"count of {group.colour} {group.shape} is {group.count}",
                lambda objects, g=group: len(_members(objects, g.colour, g.shape)) == g.count,
            )
        )
    if scene.relation is not None:
        one, two = scene.groups
        relation = scene.relation
        made.append(
            Clause(
                f"every {one.colour} {one.shape} is {relation} every {two.colour} {two.shape}",
                lambda objects: _related(
                    _members(objects, one.colour, one.shape), _members(objects, two.colour, two.shape), relation
                ),
            )
        )
    wanted = {(group.colour, group.shape) for group in scene.groups}
    made.append(Clause("nothing else", lambda objects: all((o.colour, o.shape) in wanted for o in objects)))
    return made


def judge(images: torch.Tensor, prompt: str | Scene) -> torch.Tensor:
    """The share of the prompt's clauses that each picture meets, float32 [B] on the CPU; 1.0 is a pass.

    `images` is [B, H, W, 3] in 0..1; other sizes than 64 x 64 are resized by area. A row with a pixel that is not
    finite scores NaN. Raises ValueError for a prompt outside the demo world or a tensor of another rank.
    """
    if images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"images must be [B, H, W, 3], not {tuple(images.shape)}")
    tests = clauses(parse(prompt) if isinstance(prompt, str) else prompt)
    pictures = images.detach().to(device="cpu", dtype=torch.float32)
    if pictures.shape[1:3] != (SIZE, SIZE):
        channels_first = pictures.permute(0, 3, 1, 2)
        pictures = torch.nn.functional.interpolate(channels_first, size=(SIZE, SIZE), mode="area").permute(0, 2, 3, 1)
    scores = []
    for picture in pictures:
        if not bool(torch.isfinite(picture).all()):
            scores.append(float("nan"))
            continue
        objects = find(picture.clamp(0, 1).numpy())
        scores.append(sum(test.holds(objects) for test in tests) / len(tests))
    return torch.tensor(scores, dtype=torch.float32)
