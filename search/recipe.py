"""Recipes: the JSON that regenerates a candidate's noise, and the noise geometry that it names.

A recipe is a list of operations, applied from left to right:

    {"op": "seed", "seed": 7}                            stock noise of a plain seed (always first, or "given")
    {"op": "given", "seed": 7}                           the noise of a NOISE object that only its owner can make again
    {"op": "near", "seed": 11, "cosine": 0.95}           a neighbour on the sphere, at that cosine
    {"op": "slerp", "with": [...], "fraction": 0.5}      spherical interpolation towards another recipe's noise
    {"op": "mix", "seed": 11, "cosine": 0.9}             cosine * noise + sqrt(1 - cosine^2) * unit Gaussian of the seed
    {"op": "band", "fraction": 0.25, "keep": 0.5, "seeds": [3, 5], "weights": [0.7, 0.5]}
                                                         low-frequency band: its own times keep, and those of the seeds
    {"op": "ascent", "cosine": 0.999}                    moved along a gradient, to a noise at that cosine that only a
                                                         NOISE in memory holds
    {"op": "renoise", "seed": 13, "from": 0.1, "to": 0.9}  the path left its start noise here (sigmas)
    {"op": "step", "seed": 17, "from": 0.9}              from this sigma on, random steps of the search's own
    {"op": "guide", "seeds": [3, 5], "steps": 5, "scale": 12.5, "strength": 0.3, "until": 0.3}
                                                         clean estimates corrected by lookaheads of these seeds
    {"op": "uphill", "strength": 0.2, "from": 1.0, "to": 0.1}
                                                         clean estimates moved along the gradient of their score
    {"op": "pause"}                                      the sampler stopped on the way and began anew from there
    {"op": "step_noise", "seed": 17}                     the random steps of a sampler by a seed of their own
    {"op": "cfg", "scale": 4.5}                          another cfg than the user's own
    {"op": "guidance", "scale": 4.5}                     another guidance value in the positive conditioning
    {"op": "conditioning", "seed": 11, "strength": 0.1}  noise on the embeddings of the positive conditioning
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .bands import low_band, with_low_band
from .errors import SearchError
from .words import some

Operation = dict[str, Any]
FIELDS: dict[str, dict[str, type]] = {
    "seed": {"seed": int},
    "given": {"seed": int},
    "near": {"seed": int, "cosine": float},
    "slerp": {"with": list, "fraction": float},
    "mix": {"seed": int, "cosine": float},
    "band": {"fraction": float, "keep": float, "seeds": list, "weights": list},
    "ascent": {"cosine": float},
    "renoise": {"seed": int, "from": float, "to": float},
    "step": {"seed": int, "from": float},
    "guide": {"seeds": list, "steps": int, "scale": float, "strength": float, "until": float},
    "uphill": {"strength": float, "from": float, "to": float},
    "pause": {},
    "step_noise": {"seed": int},
    "cfg": {"scale": float},
    "guidance": {"scale": float},
    "conditioning": {"seed": int, "strength": float},
}
#: Operations on the way: from there on the start noise alone does not decide the image.
MIDWAY = frozenset({"renoise", "step", "guide", "uphill", "pause"})
#: Operations beside the noise: they change how the model is asked, from the first step to the last.
BESIDE = frozenset({"cfg", "guidance", "conditioning"})
#: The most that Search: Axes makes of them: five times the 100 of the host's widgets for scales, 10 for a strength.
MOST = {"cfg": ("scale", 500), "guidance": ("scale", 500), "conditioning": ("strength", 10)}


def gaussian(like: Tensor, seed: int) -> Tensor:
    """Unit Gaussian of the shape of `like`, drawn on the CPU from `seed` alone."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(like.shape, generator=generator, dtype=torch.float32).to(like.dtype)


def neighbour(noise: Tensor, seed: int, cosine: float) -> Tensor:
    """A point of the sphere through `noise` whose cosine to it is `cosine` (-1..1).

    The direction is uniform among those orthogonal to `noise`, so the norm is kept exactly, as the zero-order
    search of Ma et al. 2025 (arXiv 2501.09732) needs: mixing noises linearly would shrink the variance.
    """
    flat = noise.double().flatten()
    direction = gaussian(noise, seed).double().flatten()
    direction = direction - flat * (direction @ flat) / (flat @ flat)
    direction = direction * (flat.norm() / direction.norm())
    moved: Tensor = cosine * flat + math.sqrt(1 - cosine**2) * direction
    return moved.reshape(noise.shape).to(noise.dtype)


def slerp(a: Tensor, b: Tensor, fraction: float) -> Tensor:
    """Spherical interpolation from `a` (fraction 0) to `b` (1); the norm goes linearly from |a| to |b|."""
    x, y = a.double().flatten(), b.double().flatten()
    x_norm, y_norm = x.norm(), y.norm()
    angle = torch.arccos((x @ y / (x_norm * y_norm)).clamp(-1, 1))
    if float(angle) < 1e-6:  # equal directions: the formula is 0/0 and any weights do
        mixed: Tensor = (1 - fraction) * x / x_norm + fraction * y / y_norm
    else:
        mixed = torch.sin((1 - fraction) * angle) * x / x_norm + torch.sin(fraction * angle) * y / y_norm
    mixed = mixed / mixed.norm() * ((1 - fraction) * x_norm + fraction * y_norm)
    return mixed.reshape(a.shape).to(a.dtype)


def mixed(noise: Tensor, seed: int, cosine: float) -> Tensor:
    """`cosine` (-1..1) times `noise` plus sqrt(1 - cosine^2) times a unit Gaussian: unit Gaussian again, if `noise` is.

    Unlike a neighbour the norm may move, as it does from one Gaussian noise to the next: the proposal of
    preconditioned Crank-Nicolson (Cotter et al. 2013, arXiv 1202.0709), which leaves N(0, I) as it is.
    """
    fresh = gaussian(noise, seed).double()
    moved: Tensor = cosine * noise.double() + math.sqrt(1 - cosine**2) * fresh
    return moved.to(noise.dtype)


def band_mixed(noise: Tensor, fraction: float, keep: float, seeds: Sequence[int], weights: Sequence[float]) -> Tensor:
    """`noise` with a new low-frequency band: `keep` times its own, and Gaussian coefficients of `seeds` by `weights`.

    The new band is scaled to the norm of the old one, so the norm of the whole noise is kept exactly, and whatever
    lies above the band (`fraction` of the frequencies along each axis) is untouched.
    """
    own = low_band(noise, fraction)
    band = keep * own
    for seed, weight in zip(seeds, weights, strict=True):
        band = band + weight * gaussian(own, seed)
    if not float(band.norm()) > 0:
        raise SearchError(
            f"recipe: got keep={keep}, weights={list(weights)}, which leave nothing of the band; expected a share of it"
        )
    return with_low_band(noise, fraction, band * (own.norm() / band.norm()))


@dataclass(frozen=True)
class Recipe:
    """What regenerates one candidate's noise (see the module's text for the operations)."""

    operations: tuple[Operation, ...]

    @classmethod
    def of_seed(cls, seed: int) -> Recipe:
        """The stock noise of a plain seed."""
        return cls(({"op": "seed", "seed": seed},))

    @classmethod
    def of_given(cls, seed: int) -> Recipe:
        """The noise of a NOISE object that is no plain seed; `seed` is what it says its step noise starts from."""
        return cls(({"op": "given", "seed": seed},))

    def then(self, **operation: Any) -> Recipe:
        """This recipe with one more operation."""
        return Recipe((*self.operations, operation))

    @property
    def seed(self) -> int | None:
        """The plain seed that a stock sampler turns into the same image, or None if there is no such seed."""
        return self.step_seed if len(self.operations) == 1 and self.operations[0]["op"] == "seed" else None

    @property
    def step_seed(self) -> int:
        """The seed of the step noise: a neighbour keeps its pivot's; what was changed on the way has its own."""
        changed = [int(o["seed"]) for o in self.operations if o["op"] in {*MIDWAY, "step_noise"} and "seed" in o]
        return changed[-1] if changed else int(self.operations[0]["seed"])

    @property
    def replayable(self) -> bool:
        """True while a NOISE decides the image: nothing of the search's own on the way, and the model asked as ever."""
        return all(o["op"] not in MIDWAY | BESIDE for o in self.operations)

    @property
    def beside(self) -> tuple[Operation, ...]:
        """The operations that change how the model is asked, in order; () = as the user's own graph asks it."""
        return tuple(o for o in self.operations if o["op"] in BESIDE)

    @property
    def ascended(self) -> bool:
        """Whether the start noise was moved along a gradient, so that no text can make it again."""
        return any(o["op"] == "ascent" for o in self.operations)

    def noise(
        self, draw: Callable[[int], Tensor], given: Tensor | None = None, ascended: Tensor | None = None
    ) -> Tensor:
        """The unit start noise. `draw` makes the stock noise of a seed; `given` stands for the "given" operation, and
        `ascended` is what the last "ascent" led to.
        """
        noise = torch.empty(0)
        for operation in self.operations:
            kind = operation["op"]
            if kind == "seed":
                noise = draw(int(operation["seed"]))
            elif kind == "given":
                if given is None:
                    raise SearchError(
                        "this recipe starts from a NOISE that another node made, so it cannot be made from the text "
                        "alone; expected a recipe that starts with a seed: wire that NOISE to Noise Candidate instead"
                    )
                noise = given
            elif kind == "near":
                noise = neighbour(noise, int(operation["seed"]), float(operation["cosine"]))
            elif kind == "slerp":
                other = Recipe(tuple(operation["with"])).noise(draw, given)
                noise = slerp(noise, other, float(operation["fraction"]))
            elif kind == "mix":
                noise = mixed(noise, int(operation["seed"]), float(operation["cosine"]))
            elif kind == "band":
                shares = {name: operation[name] for name in FIELDS["band"]}
                noise = band_mixed(noise, **shares)
            elif kind == "ascent":
                noise = _led_to(ascended, noise)
            elif kind in MIDWAY:
                break  # from here on the path is no longer decided by its start noise
        return noise

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(list(self.operations))

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """Read `to_json` back. Raises SearchError that says what is wrong and where."""
        if not text.strip():
            raise SearchError("recipe: it is empty; paste a recipe from a report, such as that of Save Search Report")
        try:
            operations = json.loads(text)
        except (ValueError, RecursionError) as error:  # ValueError: no JSON, or a number of thousands of digits
            raise SearchError(f"recipe: got text that is not JSON ({error}); expected what the report shows") from None
        return cls(_checked(operations, "recipe"))


def _led_to(ascended: Tensor | None, noise: Tensor) -> Tensor:
    if ascended is None:
        raise SearchError(
            "this recipe moved its noise along a gradient, which the text does not hold; expected the NOISE of the "
            "search that found it: wire that, or use its LATENT"
        )
    if ascended.shape != noise.shape:
        raise SearchError(
            f"latent: got one for noise of shape {tuple(noise.shape)}; this NOISE was moved along a gradient at "
            f"{tuple(ascended.shape)}: expected a latent of that size"
        )
    return ascended


def _checked(operations: Any, where: str) -> tuple[Operation, ...]:
    if not isinstance(operations, list) or not operations:
        raise SearchError(f"{where}: got {operations!r}; expected a list of operations that starts with a seed")
    for index, operation in enumerate(operations):
        kind = operation.get("op") if isinstance(operation, dict) else None
        if not isinstance(kind, str) or kind not in FIELDS or (index == 0) != (kind in ("seed", "given")):
            raise SearchError(
                f"{where}, operation {index}: got {operation!r}; expected one of {sorted(FIELDS)}, "
                "with a seed (or given) at the start and nowhere else"
            )
        for name, expected in FIELDS[kind].items():
            value = operation.get(name)
            accepted = (int, float) if expected is float else expected
            finite = expected is not float or (isinstance(value, int | float) and math.isfinite(value))
            if isinstance(value, bool) or not isinstance(value, accepted) or not finite:
                raise SearchError(
                    f"{where}, operation {index} ({kind}): got {name}={value!r}; expected {expected.__name__}"
                )
        if kind in ("near", "mix", "ascent") and not -1 <= operation["cosine"] <= 1:
            raise SearchError(f"{where}, operation {index}: got cosine={operation['cosine']}; expected -1 to 1")
        if "seed" in operation and not _is_seed(operation["seed"]):
            raise SearchError(f"{where}, operation {index}: got seed={operation['seed']}; expected 0 to 2**64 - 1")
        if kind in MOST:
            name, most = MOST[kind]
            if not 0 <= operation[name] <= most:
                raise SearchError(
                    f"{where}, operation {index} ({kind}): got {name}={operation[name]}; expected 0 to {most}"
                )
        if kind == "guide" and not all(map(_is_seed, operation["seeds"])):
            raise SearchError(
                f"{where}, operation {index} (guide): got seeds={operation['seeds']!r}; expected whole numbers from 0 "
                "to 2**64 - 1"
            )
        if kind == "band":
            _check_band(operation, f"{where}, operation {index} (band)")
        if kind == "slerp":
            if not 0 <= operation["fraction"] <= 1:
                raise SearchError(
                    f"{where}, operation {index} (slerp): got fraction={operation['fraction']}; expected 0 to 1"
                )
            _checked(operation["with"], f"{where}, operation {index} (slerp, with)")
    return tuple(operations)


def _is_seed(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 64


def _check_band(operation: Operation, where: str) -> None:
    seeds, weights, keep, fraction = (operation[name] for name in ("seeds", "weights", "keep", "fraction"))
    if not 0 < fraction <= 1:
        raise SearchError(f"{where}: got fraction={fraction}; expected more than 0 and at most 1")
    if not all(map(_is_seed, seeds)):
        raise SearchError(f"{where}: got seeds={seeds!r}; expected whole numbers from 0 to 2**64 - 1")
    shares = [keep, *weights]
    if len(weights) != len(seeds) or not all(type(s) in (int, float) and -1 <= s <= 1 for s in shares):
        raise SearchError(
            f"{where}: got keep={keep}, weights={weights!r}; expected -1 to 1, "
            f"and one weight for each of {len(seeds)} seeds"
        )


def describe(operations: Sequence[Operation]) -> str:
    """A short human name of a recipe: 'seed 7', 'seed 7, 3 moves', 're-noised once' or '4 branches' behind it."""
    first = operations[0]
    text = f"{'seed' if first['op'] == 'seed' else 'given noise'} {first['seed']}"
    moves = sum(o["op"] in ("near", "slerp", "mix", "band", "ascent") for o in operations)
    renoised = sum(o["op"] == "renoise" for o in operations)
    branches = sum(o["op"] == "step" for o in operations)
    guides = sum(len(o["seeds"]) for o in operations if o["op"] == "guide")
    text += f", {some(moves, 'move')}" if moves else ""
    text += f", re-noised {f'{renoised} times' if renoised > 1 else 'once'}" if renoised else ""
    text += f", guided by {some(guides, 'lookahead')}" if guides else ""
    text += f", {some(branches, 'branch')}" if branches else ""
    steps = [o["seed"] for o in operations if o["op"] == "step_noise"]
    text += f", step noise {steps[-1]}" if steps else ""
    for kind in ("cfg", "guidance"):
        scales = [o["scale"] for o in operations if o["op"] == kind]
        text += f", {kind} {scales[-1]:.4g}" if scales else ""
    strengths = [o["strength"] for o in operations if o["op"] == "conditioning"]
    return text + (f", conditioning noise {' + '.join(f'{s:.3g}' for s in strengths)}" if strengths else "")
