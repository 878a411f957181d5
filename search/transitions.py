"""Random steps down the schedule: from a state and its clean estimate at one sigma to a state at a lower one.

A state is x = a * x0 + b * noise; `at` and `to` are the coefficients (a, b) of the two sigmas, so that one formula
serves flow models, (1 - sigma, sigma), and eps and v models, (1, sigma). A deterministic step keeps the noise that it
finds in x. A random one replaces a share of it with fresh noise, which makes copies of one state part:

    x' = a' * x0 + b' * (sqrt(1 - fresh^2) * (x - a * x0) / b + fresh * noise)

How large that share is, is up to the schedule and not to the scale of a model's noise (b = 8 sigma of HiDream-O1): the
functions that say it get b over that scale.

Stock's ancestral steps are this too: going down deterministically below the target and adding noise up to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor

from .recipe import gaussian
from .seeds import child_seed
from .types import Plan, Reply, Row, predict

Coefficients = tuple[float, float]


def stepped(x: Tensor, x0: Tensor, at: Coefficients, to: Coefficients, fresh: float, noise: Tensor) -> Tensor:
    """One step with a `fresh` share (0..1) of the new state's noise drawn anew; `noise` is a unit Gaussian."""
    (a, b), (c, d) = at, to
    moved: Tensor = c * x0 + d * math.sqrt(1 - fresh**2) / b * (x - a * x0) + d * fresh * noise
    return moved


def deterministic(at: Coefficients, to: Coefficients, eta: float) -> float:
    """Fresh share of the probability-flow ODE (DDIM with eta 0): none."""
    return 0.0


def ddim(at: Coefficients, to: Coefficients, eta: float) -> float:
    """Fresh share of DDIM(eta): 1 is DDPM, the posterior of the forward process. It depends on b / a alone."""
    (a, b), (c, d) = at, to
    return min(1.0, eta * math.sqrt(max(0.0, 1 - (a * d / (b * c)) ** 2)))


def ancestral(at: Coefficients, to: Coefficients, eta: float) -> float:
    """Fresh share of stock's euler_ancestral: DDIM(eta) of eps and v models, the rectified-flow form of flow models.

    The latter goes down to b' * (1 + (b' / b - 1) * eta) and re-noises; at few steps it takes fresher noise.
    """
    (a, b), (c, d) = at, to
    if a == c:
        return ddim(at, to, eta)
    down = d * (1 + (d / b - 1) * eta)
    kept = c / (1 - down) * down / d
    return math.sqrt(min(1.0, max(0.0, 1 - kept**2)))


def renoised(at: Coefficients, to: Coefficients, eta: float) -> float:
    """Fresh share of re-noising the clean estimate: `eta` itself. 1 forgets all noise, as consistency models step."""
    return min(1.0, eta)


#: Transitions with one model call each, by name: (at, to, eta) -> the fresh share of noise.
FRESH: dict[str, Callable[[Coefficients, Coefficients, float], float]] = {
    "ancestral": ancestral,
    "ddim": ddim,
    "renoise": renoised,
    "ode": deterministic,
}


def step_noise(row: Row, like: Tensor, sigma: float) -> Tensor:
    """The unit noise of a row's random step from `sigma` on: of the row's own seed, and of this step alone."""
    return gaussian(like, child_seed(row.recipe.step_seed, "step", round(sigma * 1e6)))


def parted(row: Row, seed: int | None) -> Row:
    """The row with random steps of `seed` from here on; with None, those that it has."""
    if seed is None:
        return row
    return replace(row, recipe=row.recipe.then(op="step", seed=seed, **{"from": row.sigma}))


def random_step(row: Row, plan: Plan, sigma: float, kind: str, eta: float) -> Row:
    """A row that carries x and x0, one step further down to `sigma`."""
    assert row.x is not None and row.x0 is not None
    (a, b), (c, d), scale = plan.coefficients(row.sigma), plan.coefficients(sigma), plan.noise_scale
    fresh = FRESH[kind]((a, b / scale), (c, d / scale), eta)
    noise = step_noise(row, row.x, row.sigma)
    return replace(row, sigma=sigma, x=stepped(row.x, row.x0, (a, b), (c, d), fresh, noise))


def glass(rows: Sequence[Row], plan: Plan, sigma: float, correlation: float, inner: int) -> Reply:
    """GLASS transition (arXiv 2509.25170) down to `sigma`, in `inner` Euler steps of one model call each.

    The noises of the two states have the given `correlation`: 1 is the ODE, b' * a / (b * a') is DDPM. Given x0, the
    new state is Gaussian around gain * x + slope * x0; a flow of its own carries fresh noise w to that law. Its
    denoiser is the model's own, asked at the state and sigma that say of x0 what x and w say together. The rows carry
    x0, which is the first inner step's answer: with one inner step no model is called, and the step is `stepped` with
    a fresh share of sqrt(1 - correlation^2).
    """
    at, to = plan.coefficients(rows[0].sigma), plan.coefficients(sigma)
    (a, b), (c, d) = at, to
    gain = correlation * d / b
    slope = c - gain * a
    width = d * math.sqrt(1 - correlation**2)
    wide = b  # where the inner flow starts: any width is exact in the limit of many steps
    states = [_given(row.x) for row in rows]
    ways = [wide * step_noise(row, x, row.sigma) for row, x in zip(rows, states, strict=True)]
    clean = [_given(row.x0) for row in rows]
    for i in range(inner):
        now, following = i / inner, (i + 1) / inner
        (known, spread), (then, narrower) = ((u * slope, (1 - u) * wide + u * width) for u in (now, following))
        if i > 0:
            precision = (a / b) ** 2 + (known / spread) ** 2
            level = _sigma_of(plan, 1 / math.sqrt(precision))
            scale = plan.coefficients(level)[0] / precision
            seen = [scale * (a / b**2 * x + known / spread**2 * w) for x, w in zip(states, ways, strict=True)]
            asked = [replace(row, sigma=level, x=y, x0=None) for row, y in zip(rows, seen, strict=True)]
            clean = [_given(row.x0) for row in (yield from predict(asked))]
        ways = [then * x0 + narrower / spread * (w - known * x0) for w, x0 in zip(ways, clean, strict=True)]
    return [
        replace(row, sigma=sigma, x=gain * x + w, x0=x0)
        for row, x, w, x0 in zip(rows, states, ways, clean, strict=True)
    ]


def transit(
    rows: Sequence[Row], plan: Plan, sigma: float, kind: str, eta: float, correlation: float, inner: int = 1
) -> Reply:
    """Rows that carry x and x0, one transition further down to `sigma`: of a kind of FRESH, or "glass"."""
    if sigma == rows[0].sigma:  # a schedule that names one twice
        return list(rows)
    if kind == "glass":
        return (yield from glass(rows, plan, sigma, correlation, inner))
    return [random_step(row, plan, sigma, kind, eta) for row in rows]


def _sigma_of(plan: Plan, ratio: float) -> float:
    """The sigma of a noise-to-signal ratio b / a, within the schedule."""
    ratio /= plan.noise_scale
    return min(plan.sigma(ratio / (1 + ratio)), plan.sigmas[0])


def _given(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor
