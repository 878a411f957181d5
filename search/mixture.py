"""An exact sampler over a Gaussian mixture: a search's model in tests, with every answer known in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .recipe import gaussian
from .types import Meter, Row


class MixtureSampler:
    """x0 is drawn from `means` [K, D] (D a multiple of 3) with standard deviation `spread`, all equally likely.

    The denoiser is the exact posterior mean. `flow` chooses x = (1 - s) x0 + s noise, else x = x0 + s noise.
    `order` 1 is Euler (one forward a step), 2 is Heun (two, one on the last). An image is sigmoid(x0) as
    [1, 1, D / 3, 3]. Rows never touch each other's numbers, so a result is exactly the same in any batch.
    """

    rows_per_candidate = 1
    exact_pauses = True

    def __init__(
        self, means: Tensor, spread: float = 0.1, steps: int = 10, flow: bool = True, order: int = 1, batch: int = 4
    ) -> None:
        self.means, self.spread, self.flow, self.order, self.batch = means, spread, flow, order, batch
        highest = 1.0 if flow else 15.0
        self.sigmas = tuple(highest * (1 - i / steps) for i in range(steps + 1))

    def coefficients(self, sigma: float) -> tuple[float, float]:
        """a and b of x = a * x0 + b * noise."""
        return (1 - sigma, sigma) if self.flow else (1.0, sigma)

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        """E[x0 | x] for x [B, D]."""
        a, b = self.coefficients(sigma)
        variance = (a * self.spread) ** 2 + b**2
        away = x[:, None, :] - a * self.means[None]
        weights = torch.softmax(-(away**2).sum(-1) / (2 * variance), dim=-1)
        given_component = self.means[None] + a * self.spread**2 / variance * away
        return (weights[..., None] * given_component).sum(1)

    def start(self, row: Row) -> Tensor:
        """The state of a row that has not moved yet [1, D]."""
        like = torch.empty(1, self.means.shape[1])
        return self.coefficients(row.sigma)[1] * row.recipe.noise(lambda seed: gaussian(like, seed))

    def advance(
        self, rows: Sequence[Row], sigmas: Sequence[float], meter: Meter, keep: Sequence[float] = ()
    ) -> list[Row]:
        """Euler or Heun on the probability-flow ODE."""
        x = torch.cat([self.start(row) if row.x is None else row.x for row in rows])
        clean = x
        kept: list[tuple[float, Tensor]] = []
        for sigma, following in zip(sigmas, sigmas[1:], strict=False):
            clean = self.forward(x, sigma, meter)
            kept += [(sigma, clean)] if sigma in keep else []
            moved = self.step(x, clean, sigma, following)
            if self.order == 2 and following > 0:
                second = self.forward(moved, following, meter)
                (a, b), (c, d) = self.coefficients(sigma), self.coefficients(following)
                noise = ((x - a * clean) / b + (moved - c * second) / d) / 2
                moved = x + (c - a) * (clean + second) / 2 + (d - b) * noise
            x = moved
        ends = []
        for i, row in enumerate(rows):
            early = (*row.early, *((sigma, estimate[i : i + 1]) for sigma, estimate in kept))
            ends.append(replace(row, sigma=sigmas[-1], x=x[i : i + 1], x0=clean[i : i + 1], early=early))
        return ends

    def forward(self, x: Tensor, sigma: float, meter: Meter) -> Tensor:
        """One counted denoiser call."""
        meter.forward(len(x))
        meter.model_rows(len(x))
        return self.denoise(x, sigma)

    def step(self, x: Tensor, clean: Tensor, sigma: float, following: float) -> Tensor:
        """One DDIM step, which is Euler for both parametrisations."""
        (a, b), (c, d) = self.coefficients(sigma), self.coefficients(following)
        return c * clean + d * (x - a * clean) / b

    def renoise(self, row: Row, sigma: float, seed: int) -> Row:
        """The exact forward kernel from the row's sigma up to `sigma`."""
        assert row.x is not None
        (a, b), (c, d) = self.coefficients(row.sigma), self.coefficients(sigma)
        fresh = (d**2 - (c / a * b) ** 2) ** 0.5
        recipe = row.recipe.then(op="renoise", seed=seed, **{"from": row.sigma, "to": sigma})
        return Row(recipe, sigma, c / a * row.x + fresh * gaussian(row.x, seed), parent=row.id)

    def predict(self, rows: Sequence[Row], meter: Meter) -> list[Row]:
        """One fresh clean estimate each."""
        x = torch.cat([self.start(row) if row.x is None else row.x for row in rows])
        clean = self.forward(x, rows[0].sigma, meter)
        return [
            replace(row, x=x[i : i + 1] if row.x is None else row.x, x0=clean[i : i + 1]) for i, row in enumerate(rows)
        ]

    def decode(self, rows: Sequence[Row]) -> list[Tensor]:
        """sigmoid of the clean vector, as a one-line picture."""
        clean = [row.x if row.sigma == 0 else row.x0 for row in rows]
        return [torch.sigmoid(c).reshape(1, 1, -1, 3) for c in clean if c is not None]

    def cost(self, sigmas: Sequence[float]) -> int:
        """Forwards of one row."""
        steps = max(0, len(sigmas) - 1)
        return steps if self.order == 1 else 2 * steps - (1 if steps and sigmas[-1] == 0 else 0)

    def time(self, sigma: float) -> float:
        """Noise share of a sigma."""
        a, b = self.coefficients(sigma)
        return b / (a + b)

    def sigma(self, time: float) -> float:
        """Sigma of a noise share."""
        return time if self.flow else time / (1 - time)

    def micro_batch(self) -> int:
        """Fixed: there is no memory to estimate."""
        return self.batch

    def is_out_of_memory(self, error: BaseException) -> bool:
        """As torch and Python say it."""
        return isinstance(error, torch.OutOfMemoryError | MemoryError)

    def free_memory(self) -> None:
        """Nothing is held."""
