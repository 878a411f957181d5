"""Space: which noises are tried, and what chooses them."""

import torch
from torch import Tensor

from pack.search import Candidates, Recipe, Row, Space
from pack.search.recipe import gaussian
from pack.search.seeds import candidate_seed

LIKE = torch.empty(1, 4, 8, 8)


def draw(seed: int) -> Tensor:
    return gaussian(LIKE, seed)


def space(seed: int = 3, first: int = 7, cosine: float | None = None) -> Space:
    return Space(Candidates(Recipe.of_seed(first), first, cosine), seed, 14.6)


def test_fresh_candidates_start_with_the_users_own_and_never_repeat() -> None:
    one = space()
    rows = [*one.fresh(3), *one.fresh(1), *one.fresh(4)]
    assert [row.recipe.seed for row in rows] == [candidate_seed(7, i) for i in range(8)]
    assert rows[0].recipe == Recipe.of_seed(7)
    assert all(row.sigma == 14.6 and row.x is None and row.id is None and row.parent is None for row in rows)


def test_fresh_candidates_do_not_depend_on_how_many_are_asked_for_at_once() -> None:
    one, two = space(), space(seed=99)
    assert one.fresh(10) == [row for _ in range(10) for row in two.fresh(1)]


def test_fresh_candidates_around_a_noise_lie_at_its_cosine_and_keep_its_step_noise() -> None:
    rows = space(cosine=0.9).fresh(5)
    pivot = rows[0].recipe.noise(draw).double().flatten()
    for row in rows[1:]:
        noise = row.recipe.noise(draw).double().flatten()
        assert abs(float(noise @ pivot / (noise.norm() * pivot.norm())) - 0.9) < 1e-6
        assert row.recipe.step_seed == 7 and row.recipe.seed is None


def test_a_cosine_of_zero_is_a_cosine_and_not_its_absence() -> None:
    assert [len(row.recipe.operations) for row in space(cosine=0.0).fresh(3)] == [1, 2, 2]


def test_draws_never_repeat_are_small_and_depend_on_the_searchs_seed() -> None:
    one, two, other = space(3), space(3), space(4)
    drawn = [one.draw() for _ in range(2000)]
    assert len(set(drawn)) == 2000 and all(0 <= seed < 2**50 for seed in drawn)
    assert drawn == [two.draw() for _ in range(2000)]
    assert set(drawn).isdisjoint(other.draw() for _ in range(2000))


def test_a_neighbour_starts_at_pure_noise_with_its_pivot_as_parent() -> None:
    pivot = Row(Recipe.of_seed(7), 0.0, x=torch.zeros(1), id=12, parent=3, score=0.5)
    row = space().near(pivot, 0.95)
    assert (row.sigma, row.x, row.parent, row.id) == (14.6, None, 12, None) and row.score != row.score
    assert row.recipe.operations[0] == {"op": "seed", "seed": 7} and row.recipe.step_seed == 7
    assert row.recipe.operations[1]["cosine"] == 0.95


def test_slerp_goes_from_one_row_to_the_other_and_keeps_the_first_ones_step_noise() -> None:
    a, b = (Row(Recipe.of_seed(seed), 0.0, id=seed) for seed in (7, 8))
    for fraction, seed in ((0.0, 7), (1.0, 8)):
        row = space().slerp(a, b, fraction)
        assert torch.allclose(row.recipe.noise(draw), draw(seed), atol=1e-6)
        assert row.recipe.step_seed == 7 and row.parent == 7 and row.x is None
    assert Recipe.from_json(row.recipe.to_json()) == row.recipe


def test_mixes_and_bands_start_at_pure_noise_with_their_base_as_parent_and_its_step_noise() -> None:
    pivot = Row(Recipe.of_seed(7), 0.0, x=torch.zeros(1), id=12, parent=3, score=0.5)
    one, two = space(), space()
    mix, band = one.mix(pivot, 0.9), one.band(pivot, 0.25, 0.6, {5: 0.64, 6: -0.48})
    for row in (mix, band):
        assert (row.sigma, row.x, row.parent, row.id) == (14.6, None, 12, None) and row.score != row.score
        assert row.recipe.step_seed == 7 and Recipe.from_json(row.recipe.to_json()) == row.recipe
    assert mix.recipe.operations[1] == {"op": "mix", "seed": two.draw(), "cosine": 0.9}
    shares = {"keep": 0.6, "seeds": [5, 6], "weights": [0.64, -0.48]}
    assert band.recipe.operations[1] == {"op": "band", "fraction": 0.25, **shares}
