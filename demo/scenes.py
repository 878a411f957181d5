"""The demo world: scenes of coloured shapes, the English prompts that name them, and the pictures that show them.

A scene is one or two groups such as "two blue squares", and, between two groups, an optional relation such as
"left of". Everything here is a pure function of its arguments; randomness comes from the `random.Random` passed in.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

SIZE = 64
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.87, 0.13, 0.13),
    "green": (0.12, 0.65, 0.22),
    "blue": (0.13, 0.30, 0.88),
    "yellow": (0.95, 0.82, 0.08),
    "purple": (0.62, 0.20, 0.75),
    "black": (0.08, 0.08, 0.08),
}
SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "cross")
PLURALS: dict[str, str] = {"circle": "circles", "square": "squares", "triangle": "triangles", "cross": "crosses"}
NUMBERS: dict[int, str] = {1: "a", 2: "two", 3: "three"}
RELATIONS: tuple[str, ...] = ("left of", "right of", "above", "below")
BACKGROUND: tuple[float, float, float] = (0.95, 0.95, 0.95)
CLASSES: tuple[str, ...] = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)

# Half the width of an object, in pixels, by the number of objects in the picture.
_RADII: dict[int, tuple[float, float]] = {
    1: (9.5, 13.0), 2: (8.5, 11.0), 3: (7.5, 9.5), 4: (7.0, 8.5), 5: (6.8, 7.8), 6: (6.5, 7.3),
}
_MARGIN = 1.5
_GAP = 3.0
_COLOUR_JITTER = 0.04
_LEAD_INS = ("", "a picture of ")
_PHRASES: dict[str, tuple[str, ...]] = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above",),
    "below": ("below",),
}
_COUNT_WEIGHTS = (0.5, 0.3, 0.2)
_INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


@dataclass(frozen=True)
class Group:
    """`count` (1 to 3) objects of one colour and one shape."""

    count: int
    colour: str
    shape: str

    def __post_init__(self) -> None:
        if self.count not in NUMBERS or self.colour not in COLOURS or self.shape not in SHAPES:
            raise ValueError(f"no such group: {self.count!r}, {self.colour!r}, {self.shape!r}; {_known_words()}")

    def __str__(self) -> str:
        noun = self.shape if self.count == 1 else PLURALS[self.shape]
        return f"{NUMBERS[self.count]} {self.colour} {noun}"


@dataclass(frozen=True)
class Scene:
    """One or two groups. `relation` says where the first lies as seen from the second; None is a plain "and"."""

    groups: tuple[Group, ...]
    relation: str | None = None

    def __post_init__(self) -> None:
        if len(self.groups) not in (1, 2):
            raise ValueError(f"a scene has one or two groups, not {len(self.groups)}")
        if self.relation is not None and (self.relation not in RELATIONS or len(self.groups) != 2):
            raise ValueError(f"the relation {self.relation!r} needs two groups and must be one of {RELATIONS}")
        if len(self.groups) == 2:
            first, second = self.groups
            if (first.colour, first.shape) == (second.colour, second.shape):
                raise ValueError("the two groups of a scene must differ in colour or in shape")

    def canonical(self) -> Scene:
        """The same scene in one fixed order, so that "A left of B" equals "B right of A"."""
        if len(self.groups) == 1:
            return self
        first, second = self.groups
        if self.relation is None:
            ordered = sorted(self.groups, key=lambda g: (g.colour, g.shape))
            return Scene(tuple(ordered))
        if self.relation in ("right of", "below"):
            return Scene((second, first), _INVERSE[self.relation])
        return self


@dataclass(frozen=True)
class Placed:
    """One object on the canvas: its class, centre and half width in pixels, and its own RGB colour."""

    colour: str
    shape: str
    x: float
    y: float
    radius: float
    rgb: tuple[float, float, float]


@dataclass(frozen=True)
class Layout:
    """All objects of one picture and its background colour."""

    objects: tuple[Placed, ...]
    background: tuple[float, float, float] = BACKGROUND


def _known_words() -> str:
    return (
        f"numbers: a, one, two, three; colours: {', '.join(COLOURS)}; shapes: {', '.join(SHAPES)}; "
        f"between two groups: and, {', '.join(RELATIONS)}"
    )


def random_group(rng: random.Random) -> Group:
    """A random group; smaller counts are more common."""
    count = rng.choices((1, 2, 3), weights=_COUNT_WEIGHTS)[0]
    return Group(count, rng.choice(list(COLOURS)), rng.choice(SHAPES))


def random_scene(rng: random.Random | int) -> Scene:
    """A random scene: one group in a third of them, else two groups, four in five of these with a relation."""
    rng = random.Random(rng) if isinstance(rng, int) else rng
    first = random_group(rng)
    if rng.random() < 1 / 3:
        return Scene((first,))
    second = random_group(rng)
    while (first.colour, first.shape) == (second.colour, second.shape):
        second = random_group(rng)
    relation = rng.choice(RELATIONS) if rng.random() < 0.8 else None
    return Scene((first, second), relation)


def prompts(scene: Scene) -> list[str]:
    """Every wording of a scene in plain English; the first is the canonical one."""
    if len(scene.groups) == 1:
        bodies = [str(scene.groups[0])]
    else:
        links = ("and",) if scene.relation is None else _PHRASES[scene.relation]
        bodies = [f"{scene.groups[0]} {link} {scene.groups[1]}" for link in links]
    return [lead + body for lead in _LEAD_INS for body in bodies]


def prompt(scene: Scene, rng: random.Random | None = None) -> str:
    """The canonical wording of a scene or, given `rng`, a random one of its wordings."""
    wordings = prompts(scene)
    return wordings[0] if rng is None else rng.choice(wordings)


_NUMBER_WORDS = {"a": 1, "an": 1, "one": 1, "1": 1, "two": 2, "2": 2, "three": 3, "3": 3}
_SHAPE_WORDS = {word: shape for shape in SHAPES for word in (shape, PLURALS[shape])}


def _parse_group(words: Sequence[str], text: str) -> Group:
    if len(words) != 3 or words[0] not in _NUMBER_WORDS or words[1] not in COLOURS or words[2] not in _SHAPE_WORDS:
        raise ValueError(
            f"the prompt {text!r} is not understood at {' '.join(words)!r}: "
            f"a group is a number, a colour and a shape. Known words: {_known_words()}."
        )
    return Group(_NUMBER_WORDS[words[0]], words[1], _SHAPE_WORDS[words[2]])


def parse(text: str) -> Scene:
    """The scene that a prompt names; case, white space and punctuation do not matter.

    Raises ValueError, naming the known words, for a prompt that it does not understand.
    """
    plain = " ".join(re.findall(r"[a-z0-9]+", text.lower()))
    plain = re.sub(r"^(a|an|the) (picture|image|drawing|photo) of ", "", plain)
    match = re.search(r" (?:to the |is to the |is )?(left of|right of|above|below|and) ", f" {plain} ")
    try:
        if match is None:
            return Scene((_parse_group(plain.split(), text),))
        padded = f" {plain} "
        first, second = padded[: match.start()].split(), padded[match.end() :].split()
        relation = None if match.group(1) == "and" else match.group(1)
        return Scene((_parse_group(first, text), _parse_group(second, text)), relation)
    except ValueError as error:
        if "Known words" in str(error):
            raise
        raise ValueError(f"the prompt {text!r} cannot be drawn: {error}. Known words: {_known_words()}.") from error


def _bounds(scene: Scene, rng: random.Random, radii: list[float]) -> list[tuple[float, float, float, float]]:
    """The box (x0, x1, y0, y1) in which each group's objects must lie whole."""
    low, high = _MARGIN, SIZE - _MARGIN
    whole = (low, high, low, high)
    if scene.relation is None:
        return [whole] * len(scene.groups)
    smallest = 2 * max(radii) + 1
    cut = rng.uniform(low + smallest, high - smallest)
    near, far = (low, cut - 1), (cut + 1, high)
    if scene.relation in ("right of", "below"):
        near, far = far, near
    if scene.relation in ("left of", "right of"):
        return [(*near, low, high), (*far, low, high)]
    return [(low, high, *near), (low, high, *far)]


def layout(scene: Scene, rng: random.Random) -> Layout:
    """Random places, sizes and colours for a scene's objects: none overlap, and the relation holds for every pair."""
    flat = [group for group in scene.groups for _ in range(group.count)]
    membership = [index for index, group in enumerate(scene.groups) for _ in range(group.count)]
    smallest, largest = _RADII[len(flat)]
    places: list[tuple[float, float]] = []
    radii: list[float] = []
    while len(places) < len(flat):
        radii = [rng.uniform(smallest, largest) for _ in flat]
        boxes = _bounds(scene, rng, radii)
        places = []
        for index, radius in enumerate(radii):
            x0, x1, y0, y1 = boxes[membership[index]]
            if x1 - x0 < 2 * radius or y1 - y0 < 2 * radius:
                break
            for _ in range(25):
                x, y = rng.uniform(x0 + radius, x1 - radius), rng.uniform(y0 + radius, y1 - radius)
                if all(
                    max(abs(x - px), abs(y - py)) >= radius + pr + _GAP
                    for (px, py), pr in zip(places, radii, strict=False)
                ):
                    places.append((x, y))
                    break
            else:
                break
    jitter = _COLOUR_JITTER
    objects = []
    for group, (x, y), radius in zip(flat, places, radii, strict=True):
        red, green, blue = (min(1.0, max(0.0, c + rng.uniform(-jitter, jitter))) for c in COLOURS[group.colour])
        objects.append(Placed(group.colour, group.shape, x, y, radius, (red, green, blue)))
    shade = rng.uniform(-0.015, 0.015)
    return Layout(tuple(objects), (BACKGROUND[0] + shade, BACKGROUND[1] + shade, BACKGROUND[2] + shade))


def inside_distance(shape: str, dx: torch.Tensor, dy: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
    """Distance in pixels from a point to the outline of a shape, positive inside; all tensors broadcast.

    `dx` and `dy` are the point's offsets from the centre (y grows downwards); `radius` is half the object's width.
    """
    ax, ay = dx.abs(), dy.abs()
    if shape == "circle":
        return radius - torch.sqrt(dx * dx + dy * dy)
    if shape == "square":
        return 0.9 * radius - torch.maximum(ax, ay)
    if shape == "cross":
        arm = 0.34 * radius
        across = torch.minimum(radius - ax, arm - ay)
        return torch.maximum(across, torch.minimum(arm - ax, radius - ay))
    if shape == "triangle":
        top, base = 0.95 * radius, 0.85 * radius
        height = top + base
        side = ((dy + top) * radius - ax * height) / torch.sqrt(radius * radius + height * height)
        return torch.minimum(side, base - dy)
    raise ValueError(f"unknown shape {shape!r}; known: {SHAPES}")


def render(layouts: Sequence[Layout]) -> torch.Tensor:
    """Pictures of layouts, float32 [B, 64, 64, 3] in 0..1, flat fill with anti-aliased edges."""
    image = torch.tensor([one.background for one in layouts], dtype=torch.float32)
    image = image[:, None, None, :].expand(-1, SIZE, SIZE, -1).clone()
    if not layouts:
        return image.reshape(0, SIZE, SIZE, 3)
    axis = torch.arange(SIZE, dtype=torch.float32) + 0.5
    for shape in SHAPES:
        found = [(row, one) for row, picture in enumerate(layouts) for one in picture.objects if one.shape == shape]
        if not found:
            continue
        values = torch.tensor([(one.x, one.y, one.radius, *one.rgb) for _, one in found], dtype=torch.float32)
        dx = axis[None, None, :] - values[:, 0, None, None]
        dy = axis[None, :, None] - values[:, 1, None, None]
        alpha = (inside_distance(shape, dx, dy, values[:, 2, None, None]) + 0.5).clamp_(0, 1).unsqueeze(-1)
        rows = torch.tensor([row for row, _ in found])
        # Objects never overlap, so adding each one's difference from the background is the same as painting it.
        paint = alpha * (values[:, None, None, 3:] - image.new_tensor([layouts[row].background for row, _ in found])[
            :, None, None, :
        ])
        image.index_add_(0, rows, paint)
    return image.clamp_(0, 1)


def draw(scene: Scene, rng: random.Random) -> torch.Tensor:
    """One random picture of a scene, float32 [64, 64, 3] in 0..1."""
    return render([layout(scene, rng)])[0]
