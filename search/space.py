"""Space: the noises that one search may try, and the randomness that chooses them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor
from torch.nn import functional

from .recipe import Recipe
from .seeds import candidate_seed, child_seed
from .types import Row


@dataclass(frozen=True)
class Candidates:
    """Where the fresh candidates of a search come from.

    Candidate 0 is `first`. Later ones are plain seeds of their own, or, with a `cosine`, neighbours of the
    first at that cosine: a search around a noise that the user already likes.
    """

    first: Recipe
    seed: int
    cosine: float | None = None

    @classmethod
    def of_seed(cls, seed: int) -> Candidates:
        """The user's own seed and fresh seeds after it."""
        return cls(Recipe.of_seed(seed), seed)

    def recipe(self, index: int) -> Recipe:
        """The recipe of fresh candidate `index`."""
        if index == 0:
            return self.first
        seed = candidate_seed(self.seed, index)
        if self.cosine is None:
            return Recipe.of_seed(seed)
        return self.first.then(op="near", seed=seed, cosine=self.cosine)


class Space:
    """The geometry of noise for one search. It owns the search's own randomness and holds no model."""

    def __init__(self, candidates: Candidates, seed: int, first_sigma: float) -> None:
        self.candidates = candidates
        self.seed = seed
        self.first_sigma = first_sigma
        self._fresh = 0
        self._drawn = 0

    def draw(self) -> int:
        """The next seed of the search's own stream, in [0, 2**50)."""
        self._drawn += 1
        return child_seed(self.seed, "search", self._drawn)

    def fresh(self, count: int) -> list[Row]:
        """The next `count` fresh candidates, at pure noise."""
        first, self._fresh = self._fresh, self._fresh + count
        return [Row(self.candidates.recipe(i), self.first_sigma) for i in range(first, first + count)]

    def scouts(self, count: int, shrink: int = 1) -> list[Row]:
        """The next `count` fresh noises as cheap trials, which are judged and never become candidates."""
        return [replace(row, scout=True, shrink=shrink) for row in self.fresh(count)]

    def near(self, pivot: Row, cosine: float) -> Row:
        """A random neighbour of a row's start noise, at that cosine, with the pivot's step noise."""
        recipe = pivot.recipe.then(op="near", seed=self.draw(), cosine=cosine)
        return Row(recipe, self.first_sigma, parent=pivot.id)

    def moved(self, row: Row, noise: Tensor) -> Row:
        """A row moved from its start noise to another that a gradient led to, with the step noise of `row`."""
        assert row.noise is not None
        cosine = float(functional.cosine_similarity(row.noise.double().flatten(), noise.double().flatten(), dim=0))
        recipe = row.recipe.then(op="ascent", cosine=max(-1.0, min(1.0, round(cosine, 6))))
        return Row(recipe, self.first_sigma, parent=row.id, noise=noise)

    def slerp(self, a: Row, b: Row, fraction: float) -> Row:
        """A noise on the great circle from `a` (fraction 0) to `b` (1), with the step noise of `a`."""
        recipe = a.recipe.then(op="slerp", fraction=fraction, **{"with": list(b.recipe.operations)})
        return Row(recipe, self.first_sigma, parent=a.id)

    def mix(self, pivot: Row, cosine: float) -> Row:
        """`cosine` times a row's start noise and a Gaussian share for the rest, with the pivot's step noise."""
        recipe = pivot.recipe.then(op="mix", seed=self.draw(), cosine=cosine)
        return Row(recipe, self.first_sigma, parent=pivot.id)

    def band(self, base: Row, fraction: float, keep: float, weights: dict[int, float]) -> Row:
        """`base` with another low-frequency band: its own times `keep`, and those of seeds by their `weights`."""
        shares = {"seeds": list(weights), "weights": list(weights.values())}
        recipe = base.recipe.then(op="band", fraction=fraction, keep=keep, **shares)
        return Row(recipe, self.first_sigma, parent=base.id)
