"""Recipes: what is written is what is read, rubbish is refused, and the geometry is exact."""

import json
import math

import pytest
import torch
from torch import Tensor

from pack.search import Recipe, SearchError
from pack.search.recipe import band_mixed, describe, gaussian, mixed, neighbour, slerp

LIKE = torch.empty(1, 4, 8, 8)
BAND = '[{"op": "seed", "seed": 1}, {"op": "band", "fraction": %s}]'


def draw(seed: int) -> Tensor:
    return gaussian(LIKE, seed)


def cosine_of(a: Tensor, b: Tensor) -> float:
    x, y = a.double().flatten(), b.double().flatten()
    return float(x @ y / (x.norm() * y.norm()))


def long_recipe() -> Recipe:
    other = Recipe.of_given(5).then(op="near", seed=6, cosine=-0.25)
    return (
        Recipe.of_seed(2**64 - 1)
        .then(op="near", seed=2**50 - 1, cosine=0.95)
        .then(op="slerp", fraction=0.1 + 0.2, **{"with": list(other.operations)})
        .then(op="mix", seed=12, cosine=0.1 + 0.7)
        .then(op="band", fraction=0.25, keep=0.1 + 0.2, seeds=[2**64 - 1, 4], weights=[0.7, -1 / 3])
        .then(op="renoise", seed=9, **{"from": 0.11, "to": 0.89})
    )


def test_json_gives_every_recipe_back_exactly() -> None:
    for recipe in (Recipe.of_seed(0), Recipe.of_given(3), long_recipe()):
        text = recipe.to_json()
        assert "\n" not in text
        assert Recipe.from_json(text) == recipe
        assert Recipe.from_json(text).to_json() == text


def test_a_round_trip_makes_the_same_noise_bit_for_bit() -> None:
    recipe, given = long_recipe(), draw(77)
    again = Recipe.from_json(recipe.to_json())
    assert torch.equal(recipe.noise(draw, given), again.noise(draw, given))


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("", "recipe: it is empty; paste a recipe from a report"),
        (" \n", "recipe: it is empty; paste"),
        ("seed 7", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('[{"op": "seed", "seed": ' + "9" * 5000 + "}]", "recipe"),
        ("7", "expected a list of operations"),
        ("{}", "expected a list of operations"),
        ("[]", "expected a list of operations"),
        ("null", "expected a list of operations"),
        ("[7]", "operation 0: got 7; expected one of"),
        ('[{"seed": 7}]', "operation 0.*expected one of"),
        ('[{"op": []}]', "operation 0.*expected one of"),
        ('[{"op": {}, "seed": 1}]', "operation 0.*expected one of"),
        ('[{"op": "near", "seed": 1, "cosine": 0.5}]', "operation 0.*at the start"),
        ('[{"op": "seed", "seed": 1}, {"op": "seed", "seed": 2}]', "operation 1.*nowhere else"),
        ('[{"op": "seed", "seed": 1}, {"op": "given", "seed": 2}]', "operation 1.*nowhere else"),
        ('[{"op": "seed"}]', "seed=None; expected int"),
        ('[{"op": "seed", "seed": "7"}]', "seed='7'; expected int"),
        ('[{"op": "seed", "seed": 7.0}]', "seed=7.0; expected int"),
        ('[{"op": "seed", "seed": true}]', "seed=True; expected int"),
        ('[{"op": "seed", "seed": -1}]', r"seed=-1; expected 0 to 2\*\*64 - 1"),
        ('[{"op": "seed", "seed": 18446744073709551616}]', r"expected 0 to 2\*\*64 - 1"),
        ('[{"op": "seed", "seed": 1}, {"op": "near", "seed": 2, "cosine": 1.01}]', "cosine=1.01; expected -1 to 1"),
        ('[{"op": "seed", "seed": 1}, {"op": "near", "seed": 2, "cosine": NaN}]', "operation 1.*cosine=nan"),
        ('[{"op": "seed", "seed": 1}, {"op": "near", "seed": 2}]', "cosine=None; expected float"),
        ('[{"op": "seed", "seed": 1}, {"op": "slerp", "with": [], "fraction": 0.5}]', "slerp, with.*expected a list"),
        ('[{"op": "seed", "seed": 1}, {"op": "slerp", "with": [3], "fraction": 0.5}]', "slerp, with.*operation 0"),
        ('[{"op": "seed", "seed": 1}, {"op": "mix", "seed": 2, "cosine": 1.01}]', "cosine=1.01; expected -1 to 1"),
        ('[{"op": "seed", "seed": 1}, {"op": "mix", "seed": -2, "cosine": 1}]', "seed=-2; expected 0"),
        (BAND % '0, "keep": 1, "seeds": [], "weights": []', "band.*fraction=0; expected more than 0"),
        (BAND % '1.5, "keep": 1, "seeds": [], "weights": []', "band.*fraction=1.5.*at most 1"),
        (BAND % '1, "keep": Infinity, "seeds": [], "weights": []', "band.*keep=inf; expected float"),
        (BAND % '1, "keep": 2, "seeds": [], "weights": []', "band.*keep=2.*expected -1 to 1"),
        (BAND % '1, "keep": 1, "seeds": 3, "weights": []', "band.*seeds=3; expected list"),
        (BAND % '1, "keep": 1, "seeds": [0.5], "weights": [1]', "band.*seeds=.*whole numbers"),
        (BAND % '1, "keep": 1, "seeds": [-1], "weights": [1]', "band.*seeds=.*whole numbers"),
        (BAND % '1, "keep": 1, "seeds": [1, 2], "weights": [1]', "band.*one weight for each of 2 seeds"),
        (BAND % '1, "keep": 1, "seeds": [1], "weights": [NaN]', "band.*weights=.*expected -1 to 1"),
        (BAND % '1, "keep": 1, "seeds": [1], "weights": [true]', "band.*weights=.*expected -1 to 1"),
        (
            '[{"op": "seed", "seed": 1}, {"op": "slerp", "with": [{"op": "seed", "seed": 2}], "fraction": NaN}]',
            "operation 1.*fraction=nan",
        ),
        (
            '[{"op": "seed", "seed": 1}, {"op": "slerp", "with": [{"op": "seed", "seed": 2}], "fraction": 1.5}]',
            r"operation 1 \(slerp\): got fraction=1.5; expected 0 to 1",
        ),
        (
            '[{"op": "seed", "seed": 1}, {"op": "slerp", "with": [{"op": "seed", "seed": 2}], "fraction": -0.1}]',
            "fraction=-0.1; expected 0 to 1",
        ),
        (
            '[{"op": "seed", "seed": 1}, {"op": "renoise", "seed": 2, "from": 0.1, "to": Infinity}]',
            "operation 1.*to=inf",
        ),
    ],
)
def test_rubbish_is_refused_in_one_sentence_that_says_where(text: str, complaint: str) -> None:
    with pytest.raises(SearchError, match=complaint) as refused:
        Recipe.from_json(text)
    assert "\n" not in str(refused.value) and str(refused.value).startswith("recipe")


@pytest.mark.parametrize("cosine", [1.0, 0.999, 0.95, 0.5, 0.0, -0.3, -1.0])
def test_a_neighbour_keeps_the_norm_and_hits_the_cosine(cosine: float) -> None:
    for seed in range(20):
        pivot = draw(1000 + seed) * (0.5 + seed)
        moved = neighbour(pivot, seed, cosine)
        assert moved.shape == pivot.shape and moved.dtype == pivot.dtype
        assert abs(float(moved.double().norm() / pivot.double().norm()) - 1) < 1e-6
        assert abs(cosine_of(moved, pivot) - cosine) < 1e-6


def test_a_neighbour_is_decided_by_its_seed_alone_and_leaves_global_randomness_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    one, two, other = neighbour(draw(1), 5, 0.9), neighbour(draw(1), 5, 0.9), neighbour(draw(1), 6, 0.9)
    assert torch.equal(torch.rand(4), expected)
    assert torch.equal(one, two) and not torch.equal(one, other)


def test_the_direction_of_a_neighbour_is_uniform_among_those_orthogonal_to_the_pivot() -> None:
    like, cosine, count = torch.empty(6), 0.8, 4000
    pivot = gaussian(like, 1)
    norm = pivot.double().norm()
    unit = pivot.double() / norm
    tangents = torch.stack([neighbour(pivot, seed, cosine).double() for seed in range(10, 10 + count)]) / norm
    tangents = (tangents - cosine * unit) / math.sqrt(1 - cosine**2)
    assert float((tangents @ unit).abs().max()) < 1e-6
    # mean 0 and covariance (1 - u u^T) / 5 on the sphere of 5 dimensions; 5 standard errors of each entry
    assert float(tangents.mean(0).abs().max()) < 5 * math.sqrt(0.2 / count)
    expected = (torch.eye(6, dtype=torch.float64) - unit[:, None] * unit) / 5
    assert float((tangents.T @ tangents / count - expected).abs().max()) < 5 * math.sqrt(0.1 / count)


def test_slerp_ends_at_its_ends_and_stays_on_the_sphere_between_equal_norms() -> None:
    a = draw(1).double()
    b = draw(2).double() * (draw(1).double().norm() / draw(2).double().norm())
    assert torch.allclose(slerp(a, b, 0.0), a, atol=1e-12) and torch.allclose(slerp(a, b, 1.0), b, atol=1e-12)
    angle = math.acos(cosine_of(a, b))
    for fraction in (0.1, 0.5, 0.9):
        mixed = slerp(a, b, fraction)
        assert abs(float(mixed.norm() / a.norm()) - 1) < 1e-12
        assert abs(math.acos(cosine_of(mixed, a)) - fraction * angle) < 1e-9


def test_slerp_of_equal_inputs_gives_the_input_and_norms_go_linearly() -> None:
    a = draw(3)
    for fraction in (0.0, 0.3, 1.0):
        assert torch.allclose(slerp(a, a, fraction), a, atol=1e-6)
    assert abs(float(slerp(a, 3 * a, 0.5).norm() / a.norm()) - 2) < 1e-5
    assert abs(float(slerp(a, 3 * draw(4), 0.25).norm()) - float(0.75 * a.norm() + 0.75 * draw(4).norm())) < 1e-3


def test_the_noise_of_a_plain_seed_is_what_the_sampler_draws_untouched() -> None:
    assert torch.equal(Recipe.of_seed(7).noise(draw), draw(7))


def test_operations_are_applied_from_left_to_right() -> None:
    recipe = Recipe.of_seed(7).then(op="near", seed=1, cosine=0.9).then(op="near", seed=2, cosine=0.5)
    assert torch.equal(recipe.noise(draw), neighbour(neighbour(draw(7), 1, 0.9), 2, 0.5))
    mixed = Recipe.of_seed(7).then(op="slerp", fraction=0.25, **{"with": list(recipe.operations)})
    assert torch.equal(mixed.noise(draw), slerp(draw(7), recipe.noise(draw), 0.25))


def test_mixes_and_bands_are_what_their_functions_make() -> None:
    recipe = Recipe.of_seed(7).then(op="mix", seed=1, cosine=0.9)
    assert torch.equal(recipe.noise(draw), mixed(draw(7), 1, 0.9))
    banded = recipe.then(op="band", fraction=0.5, keep=0.4, seeds=[2, 3], weights=[0.5, 0.6])
    assert torch.equal(banded.noise(draw), band_mixed(mixed(draw(7), 1, 0.9), 0.5, 0.4, [2, 3], [0.5, 0.6]))
    assert banded.replayable and banded.step_seed == 7 and banded.seed is None


def test_a_given_noise_stands_at_the_start_and_its_absence_is_explained() -> None:
    recipe = Recipe.of_given(5).then(op="near", seed=1, cosine=0.9)
    assert torch.equal(recipe.noise(draw, draw(99)), neighbour(draw(99), 1, 0.9))
    with pytest.raises(SearchError, match="wire that NOISE to Noise Candidate"):
        recipe.noise(draw)


def test_re_noising_does_not_change_the_start_noise_but_ends_replayability() -> None:
    recipe = Recipe.of_seed(7).then(op="near", seed=1, cosine=0.9)
    renoised = recipe.then(op="renoise", seed=3, **{"from": 0.1, "to": 0.9})
    assert torch.equal(renoised.noise(draw), recipe.noise(draw))
    assert recipe.replayable and not renoised.replayable


def test_step_noise_follows_the_start_seed_until_the_path_is_re_noised() -> None:
    pivot = Recipe.of_seed(7)
    near = pivot.then(op="near", seed=11, cosine=0.9)
    mixed = near.then(op="slerp", fraction=0.5, **{"with": [{"op": "seed", "seed": 99}]})
    path = pivot.then(op="renoise", seed=13, **{"from": 0.1, "to": 0.9})
    again = path.then(op="renoise", seed=17, **{"from": 0.1, "to": 0.8})
    assert [r.step_seed for r in (pivot, near, mixed, path, again)] == [7, 7, 7, 13, 17]
    assert Recipe.of_given(5).then(op="near", seed=11, cosine=0.9).step_seed == 5


def test_only_an_untouched_plain_seed_is_an_int_for_a_stock_sampler() -> None:
    assert Recipe.of_seed(7).seed == 7
    assert Recipe.of_seed(7).then(op="near", seed=11, cosine=1.0).seed is None
    assert Recipe.of_given(7).seed is None
    assert Recipe.of_seed(7).then(op="renoise", seed=3, **{"from": 0.1, "to": 0.9}).seed is None


def test_then_leaves_the_recipe_it_starts_from_alone() -> None:
    recipe = Recipe.of_seed(7)
    recipe.then(op="near", seed=1, cosine=0.5)
    assert json.loads(recipe.to_json()) == [{"op": "seed", "seed": 7}]


def test_a_recipe_has_a_short_human_name() -> None:
    assert describe(Recipe.of_seed(7).operations) == "seed 7"
    assert describe(long_recipe().operations) == "seed 18446744073709551615, 4 moves, re-noised once"
    assert describe(Recipe.of_given(3).operations) == "given noise 3"


def test_one_of_a_kind_is_named_in_the_singular() -> None:
    named = []
    recipe = Recipe.of_seed(7)
    for _ in range(2):
        recipe = recipe.then(op="mix", seed=1, cosine=0.5).then(op="renoise", seed=3, **{"from": 0.1, "to": 0.9})
        recipe = recipe.then(op="guide", seeds=[5], steps=2, scale=1.0, strength=0.3, until=0.3)
        recipe = recipe.then(op="step", seed=17, **{"from": 0.9})
        named.append(describe(recipe.operations))
    assert named[0] == "seed 7, 1 move, re-noised once, guided by 1 lookahead, 1 branch"
    assert named[1] == "seed 7, 2 moves, re-noised 2 times, guided by 2 lookaheads, 2 branches"


def test_all_that_search_axes_makes_of_the_widgets_of_the_host_is_read_back() -> None:
    widest = Recipe.of_seed(7).then(op="cfg", scale=100.0 * (1 + 4)).then(op="guidance", scale=500.0)
    widest = widest.then(op="conditioning", seed=1, strength=10.0).then(op="cfg", scale=0.0)
    assert Recipe.from_json(widest.to_json()) == widest


# what changes how the model is asked, and the step noise


def asked() -> Recipe:
    return (
        Recipe.of_seed(7)
        .then(op="near", seed=3, cosine=0.9)
        .then(op="cfg", scale=4.5)
        .then(op="conditioning", seed=11, strength=0.1 + 0.2)
        .then(op="guidance", scale=3)
        .then(op="step_noise", seed=17)
    )


def test_operations_beside_the_noise_are_read_back_and_leave_the_noise() -> None:
    recipe = asked()
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert torch.equal(recipe.noise(draw), Recipe(recipe.operations[:2]).noise(draw))
    assert [o["op"] for o in recipe.beside] == ["cfg", "conditioning", "guidance"]
    assert Recipe(recipe.operations[:2]).beside == ()


@pytest.mark.parametrize("kind", ["cfg", "guidance", "conditioning"])
def test_no_seed_and_no_noise_is_claimed_where_the_model_is_asked_another_way(kind: str) -> None:
    more = {"seed": 1, "strength": 0.5} if kind == "conditioning" else {"scale": 2.0}
    recipe = Recipe.of_seed(7).then(op=kind, **more)
    assert recipe.seed is None and not recipe.replayable and recipe.step_seed == 7


def test_step_noise_of_its_own_is_replayable_and_has_no_plain_seed() -> None:
    recipe = Recipe.of_seed(7).then(op="step_noise", seed=17)
    assert recipe.replayable and recipe.seed is None and recipe.step_seed == 17
    assert recipe.then(op="step_noise", seed=19).step_seed == 19
    assert recipe.then(op="renoise", seed=23, **{"from": 0.1, "to": 0.9}).step_seed == 23


@pytest.mark.parametrize(
    "operation, complaint",
    [
        ('{"op": "cfg", "scale": -1}', "got scale=-1; expected 0 to 500"),
        ('{"op": "cfg", "scale": 500.1}', "got scale=500.1; expected 0 to 500"),
        ('{"op": "guidance", "scale": 1e6}', r"\(guidance\): got scale=1000000.0; expected 0 to 500"),
        ('{"op": "conditioning", "seed": 3, "strength": 10.5}', "got strength=10.5; expected 0 to 10"),
        ('{"op": "cfg", "scale": NaN}', "got scale=nan"),
        ('{"op": "guidance", "scale": "3"}', "got scale='3'; expected float"),
        ('{"op": "conditioning", "seed": 3, "strength": -0.5}', "got strength=-0.5; expected 0 to 10"),
        ('{"op": "conditioning", "strength": 0.5}', "got seed=None; expected int"),
        ('{"op": "step_noise", "seed": -3}', "got seed=-3"),
    ],
)
def test_rubbish_beside_the_noise_is_refused(operation: str, complaint: str) -> None:
    with pytest.raises(SearchError, match=complaint):
        Recipe.from_json('[{"op": "seed", "seed": 1}, ' + operation + "]")


def test_the_name_of_a_recipe_says_how_the_model_is_asked() -> None:
    name = "seed 7, 1 move, step noise 17, cfg 4.5, guidance 3, conditioning noise 0.3"
    assert describe(asked().operations) == name
    twice = asked().then(op="conditioning", seed=1, strength=0.05).then(op="cfg", scale=2.0)
    assert describe(twice.operations) == name.replace("4.5", "2").replace("0.3", "0.3 + 0.05")
