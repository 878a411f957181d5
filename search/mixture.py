"""An exact sampler over a Gaussian mixture: a search's model in tests, with every answer known in closed form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import torch
from torch import Tensor

from .differentiable import differentiable, gradient_of
from .recipe import gaussian
from .types import Meter, Row


class MixtureSampler:
    """x0 is drawn from `means` [K, D] (D a multiple of 3) with standard deviation `spread`, all equally likely.

    The denoiser is the exact posterior mean. `flow` chooses x = (1 - s) x0 + s noise, else x = x0 + s noise.
    `order` 1 is Euler (one forward a step), 2 is Heun (two, one on the last). An image is sigmoid(x0) as
    [1, 1, D / 3, 3]. Rows never touch each other's numbers, so a result is exactly the same in any batch.

    A row's conditioning noise moves all means by a Gaussian vector of its seed, `strength` times their own standard
    deviation. A cfg other than 1 is classifier-free guidance: the negative knows only the mean and variance of all.
    """

    rows_per_candidate = 1
    exact_pauses = True
    family = ""
    look_cost = 0.0
    axes: Mapping[str, float] = MappingProxyType({"cfg": 1.0, "conditioning": 0.0})

    def __init__(
        self, means: Tensor, spread: float = 0.1, steps: int = 10, flow: bool = True, order: int = 1, batch: int = 4
    ) -> None:
        self.means, self.spread, self.flow, self.order, self.batch = means, spread, flow, order, batch
        highest = 1.0 if flow else 15.0
        self.sigmas = tuple(highest * (1 - i / steps) for i in range(steps + 1))

    def small_refusal(self, shrink: int) -> str:
        """A vector has no resolution."""
        return "a Gaussian mixture has no pixels"

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

    def noise(self, row: Row) -> Tensor:
        """The start noise of a row [1, D]."""
        like = torch.empty(1, self.means.shape[1])
        return row.recipe.noise(lambda seed: gaussian(like, seed), ascended=row.noise)

    def entry(self, noise: Tensor, sigma: float) -> Tensor:
        """The state at `sigma` of a start noise alone."""
        return self.coefficients(sigma)[1] * noise

    def start(self, row: Row) -> Tensor:
        """The state of a row that has not moved yet [1, D]."""
        return self.entry(self.noise(row), row.sigma)

    def advance(
        self,
        rows: Sequence[Row],
        sigmas: Sequence[float],
        meter: Meter,
        keep: Sequence[float] = (),
        trail: bool = False,
    ) -> list[Row]:
        """Euler or Heun on the probability-flow ODE. No row needs a trail: going its way again costs no memory."""
        x = torch.cat([self.start(row) if row.x is None else row.x for row in rows])
        x, clean, kept = self.way(rows, x, sigmas, meter, keep)
        estimates = [(sigma, self.of_rows(estimate)) for sigma, estimate in kept]
        ends = []
        for i, (row, end, x0) in enumerate(zip(rows, self.of_rows(x), self.of_rows(clean), strict=True)):
            early = (*row.early, *((sigma, estimate[i]) for sigma, estimate in estimates))
            ends.append(replace(row, sigma=sigmas[-1], x=end, x0=x0, early=early))
        return ends

    def pull_back(self, row: Row, gradient: Tensor, meter: Meter) -> Tensor:
        """Through the whole way at once."""
        with differentiable():
            noise = self.noise(row).clone().requires_grad_()
            x = self.entry(noise, self.sigmas[0])
            end, *_ = self.way([row], x, self.sigmas, meter)
            meter.backward(len(x) * self.cost(self.sigmas))
            [pulled] = gradient_of(end, [noise], gradient)
        return pulled

    def way(
        self, rows: Sequence[Row], x: Tensor, sigmas: Sequence[float], meter: Meter, keep: Sequence[float] = ()
    ) -> tuple[Tensor, Tensor, list[tuple[float, Tensor]]]:
        """The states at the end, the last clean estimates, and those at the sigmas in `keep`."""
        clean = x
        kept: list[tuple[float, Tensor]] = []
        for sigma, following in zip(sigmas, sigmas[1:], strict=False):
            clean = self.forward(rows, x, sigma, meter)
            kept += [(sigma, clean)] if sigma in keep else []
            moved = self.step(x, clean, sigma, following)
            if self.order == 2 and following > 0:
                second = self.forward(rows, moved, following, meter)
                (a, b), (c, d) = self.coefficients(sigma), self.coefficients(following)
                noise = ((x - a * clean) / b + (moved - c * second) / d) / 2
                moved = x + (c - a) * (clean + second) / 2 + (d - b) * noise
            x = moved
        return x, clean, kept

    def of_rows(self, together: Tensor) -> Sequence[Tensor]:
        """Every row's share [b, D] of a tensor that all went through together."""
        return [*together.reshape(-1, self.rows_per_candidate, together.shape[1])]

    def forward(self, rows: Sequence[Row], x: Tensor, sigma: float, meter: Meter) -> Tensor:
        """One counted denoiser call, and the guides of the rows that have one."""
        meter.forward(len(x))
        meter.model_rows(len(x))
        at = self.coefficients(sigma)
        shifts = [self.shift(row) for row in rows]
        asked = torch.cat([y - at[0] * shift for y, shift in zip(self.of_rows(x), shifts, strict=True)])
        clean = [x0 + shift for x0, shift in zip(self.of_rows(self.denoise(asked, sigma)), shifts, strict=True)]
        clean = [self.guided(row, y, x0, at) for row, y, x0 in zip(rows, self.of_rows(x), clean, strict=True)]
        shares = zip(rows, self.of_rows(x), clean, strict=True)
        return torch.cat([row.guide.correct(y, x0, sigma, at) if row.guide else x0 for row, y, x0 in shares])

    def shift(self, row: Row) -> Tensor:
        """How far the conditioning noise of a row moves the means, [D]."""
        noises = [o for o in row.recipe.beside if o["op"] == "conditioning"]
        moved = sum(float(o["strength"]) * gaussian(self.means[0], int(o["seed"])) for o in noises)
        return self.means.std() * moved

    def guided(self, row: Row, x: Tensor, x0: Tensor, at: tuple[float, float]) -> Tensor:
        """The clean estimate at the row's own cfg."""
        scales = [float(o["scale"]) for o in row.recipe.beside if o["op"] == "cfg"]
        if not scales:
            return x0
        (a, b), centre = at, self.means.mean(dim=0)
        variance = self.spread**2 + (self.means - centre).square().mean()
        plain = centre + a * variance / (a**2 * variance + b**2) * (x - a * centre)
        return plain + scales[-1] * (x0 - plain)

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
        clean = self.forward(rows, x, rows[0].sigma, meter)
        shares = zip(rows, self.of_rows(x), self.of_rows(clean), strict=True)
        return [replace(row, x=y if row.x is None else row.x, x0=x0) for row, y, x0 in shares]

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
