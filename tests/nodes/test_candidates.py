"""Noise Candidate and Noise From Recipe: candidate 0 is the user's noise exactly, the rest is where it should be."""

from __future__ import annotations

import asyncio
from typing import Any

import comfy.samplers
import comfy.utils
import pytest
import torch
from comfy_extras import nodes_custom_sampler
from comfy_extras.nodes_custom_sampler import Noise_RandomNoise

import nodes as host_nodes
from pack.nodes import candidates
from pack.nodes.candidates import NoiseCandidate, NoiseFromRecipe, WiredCandidates
from pack.nodes.noise import RecipeNoise, packed
from pack.search import Recipe, SearchError
from pack.search.recipe import MIDWAY
from pack.tests.nodes import tiny


class Given:
    """A NOISE of another pack: no plain seed makes it."""

    seed = 99

    def generate_noise(self, latent: dict[str, Any]) -> torch.Tensor:
        samples = latent["samples"]
        return torch.randn(samples.shape, generator=torch.Generator().manual_seed(5)).roll(1, -1)


class Scaled(Noise_RandomNoise):
    """A NOISE of another pack whose class has the name of the host's."""

    def generate_noise(self, latent: dict[str, Any]) -> torch.Tensor:
        return 0.9 * super().generate_noise(latent)


Scaled.__name__ = Noise_RandomNoise.__name__


def wired(**inputs: Any) -> WiredCandidates:
    return tiny.execute(NoiseCandidate, **inputs).args[0]


def noises(candidates: WiredCandidates, count: int, latent: Any = None) -> list[torch.Tensor]:
    recipes = [candidates.candidates.recipe(i) for i in range(count)]
    return [packed(RecipeNoise(r, candidates.given).generate_noise(latent or tiny.latent())) for r in recipes]


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a.flatten().double(), b.flatten().double(), dim=0))


def test_a_seed_is_candidate_0_and_the_others_are_stock_noises_of_their_own_seeds() -> None:
    candidates = wired(seed=123)
    for i, noise in enumerate(noises(candidates, 4)):
        seed = candidates.candidates.recipe(i).seed
        assert (seed == 123) == (i == 0) and seed < 1 << 50
        assert torch.equal(noise, Noise_RandomNoise(seed).generate_noise(tiny.latent()))


def test_searches_from_neighbouring_seeds_share_no_candidate() -> None:
    sets = [{wired(seed=s).candidates.recipe(i).seed for i in range(200)} for s in (0, 1, 2, 2**64 - 1)]
    assert all(len(s) == 200 for s in sets) and len(set.union(*sets)) == 800


@pytest.mark.parametrize(
    "noise", [Noise_RandomNoise(4), Given(), RecipeNoise(Recipe.of_seed(4))], ids=["stock", "given", "recipe"]
)
def test_a_wired_noise_is_candidate_0_and_the_others_lie_at_the_cosine(noise: Any) -> None:
    around = wired(seed=1, cosine=0.8, noise=noise)
    first, *others = noises(around, 5)
    assert torch.equal(first, noise.generate_noise(tiny.latent()))
    for other in others:
        assert cosine(first, other) == pytest.approx(0.8, abs=1e-5)
        assert float(other.norm()) == pytest.approx(float(first.norm()), rel=1e-5)
    assert not torch.equal(others[0], others[1])
    again = noises(wired(seed=2, cosine=0.8, noise=noise), 2)
    assert torch.equal(again[0], first) and not torch.equal(again[1], others[0])


def test_the_step_noise_of_neighbours_is_the_first_ones() -> None:
    for noise, seed in ((Noise_RandomNoise(4), 4), (Given(), 99)):
        around = wired(seed=1, cosine=0.8, noise=noise)
        assert {around.candidates.recipe(i).step_seed for i in range(4)} == {seed}


@pytest.mark.parametrize("noise", [Given(), RecipeNoise(Recipe.of_seed(3).then(op="near", seed=5, cosine=0.5))])
def test_a_given_noise_in_the_search_is_stock_and_its_winner_can_be_wired_again(noise: Any) -> None:
    model = tiny.model_of("flow")
    guider, sampler, sigmas = (
        tiny.guider(model),
        comfy.samplers.sampler_object("euler_ancestral"),
        tiny.sigmas(model, 3),
    )
    expected = tiny.stock_custom(noise, guider, sampler, sigmas, tiny.latent())
    out = tiny.search_custom(noise, guider, sampler, sigmas, max_candidates=1)
    assert tiny.difference(out.args[0], expected) == 0.0
    around = wired(seed=1, cosine=0.9, noise=noise)
    won = tiny.search_custom(
        1, guider, sampler, sigmas, candidates=around, max_candidates=3, batch_size=1, verifier=tiny.Later()
    ).args
    assert won[5].best.evaluation.candidate == 2
    assert tiny.difference(won[0], tiny.stock_custom(won[2], guider, sampler, sigmas, tiny.latent())) == 0.0
    # the winner's NOISE may start the next search
    next_round = wired(seed=2, cosine=0.9, noise=won[2])
    assert torch.equal(noises(next_round, 1)[0], won[2].generate_noise(tiny.latent()))
    again = tiny.search_custom(won[2], guider, sampler, sigmas, max_candidates=1)
    assert tiny.difference(again.args[0], won[0]) == 0.0


def test_a_noise_of_another_pack_with_the_name_of_the_hosts_is_taken_as_given() -> None:
    model, noise = tiny.sd3(), Scaled(3)
    guider, sampler, sigmas = tiny.guider(model), comfy.samplers.sampler_object("euler"), tiny.sigmas(model, 3)
    out = tiny.search_custom(noise, guider, sampler, sigmas, max_candidates=1)
    assert tiny.difference(out.args[0], tiny.stock_custom(noise, guider, sampler, sigmas, tiny.latent())) == 0.0
    assert out.args[5].best.evaluation.seed is None and out.args[3].message.startswith("the winner's noise is no plain")


def test_random_noise_is_known_by_whatever_name_the_host_has_loaded_it() -> None:
    assert asyncio.run(host_nodes.load_custom_node(nodes_custom_sampler.__file__, module_parent="comfy_extras"))
    noise = host_nodes.NODE_CLASS_MAPPINGS["RandomNoise"].execute(5).args[0]
    assert type(noise) is not Noise_RandomNoise
    for each in (noise, Noise_RandomNoise(5)):
        assert wired(noise=each, cosine=0.9).candidates.recipe(0).seed == 5


def test_wired_candidates_decide_candidate_0_and_the_widget_only_the_search() -> None:
    out = tiny.search(tiny.sd3(), 5, candidates=wired(seed=77), max_candidates=3)
    assert [e.seed for e in out.args[5].finished][0] == 77
    other = tiny.search(tiny.sd3(), 6, candidates=wired(seed=77), max_candidates=3)
    assert [e.seed for e in out.args[5].finished] == [e.seed for e in other.args[5].finished]


def test_nested_latents() -> None:
    noise = Noise_RandomNoise(3)
    around = wired(seed=1, cosine=0.7, noise=noise)
    latent = tiny.nested_latent()
    made = RecipeNoise(around.candidates.recipe(1), around.given).generate_noise(latent)
    assert made.is_nested and [p.shape for p in made.unbind()] == [p.shape for p in latent["samples"].unbind()]
    first, other = noises(around, 2, latent)
    assert torch.equal(first, packed(noise.generate_noise(latent)))
    assert cosine(first, other) == pytest.approx(0.7, abs=1e-5)


def test_batch_index_is_honoured() -> None:
    latent = {**tiny.latent(batch=2), "batch_index": [4, 1]}
    assert torch.equal(noises(wired(seed=8), 1, latent)[0], Noise_RandomNoise(8).generate_noise(latent))


def test_a_recipe_from_the_report_makes_the_noise_of_its_candidate() -> None:
    around = wired(seed=1, cosine=0.7, noise=Noise_RandomNoise(3))
    recipe = around.candidates.recipe(2)
    made = tiny.execute(NoiseFromRecipe, recipe=recipe.to_json()).args[0]
    assert torch.equal(made.generate_noise(tiny.latent()), noises(around, 3)[2]) and made.seed == 3
    slerp = Recipe.of_seed(1).then(op="slerp", fraction=0.25, **{"with": [{"op": "seed", "seed": 2}]})
    made = tiny.execute(NoiseFromRecipe, recipe=slerp.to_json()).args[0]
    assert torch.isfinite(made.generate_noise(tiny.latent())).all()


ON_THE_WAY = {
    "its sampler was stopped and began anew from there": {"op": "pause"},
    "it was re-noised": {"op": "renoise", "seed": 3, "from": 0.1, "to": 0.9},
    "it was moved along the gradient of its score": {"op": "uphill", "strength": 0.2, "from": 1.0, "to": 0.1},
}


@pytest.mark.parametrize("said", ON_THE_WAY)
def test_a_recipe_that_no_noise_makes_again_is_told_what_happened_on_its_way(said: str) -> None:
    recipe = Recipe.of_seed(1).then(**ON_THE_WAY[said])
    with pytest.raises(SearchError, match=rf"acted on this candidate on its way \({said}\), so no start noise"):
        tiny.execute(NoiseFromRecipe, recipe=recipe.to_json())
    assert MIDWAY == candidates.ON_THE_WAY.keys()  # none goes without a name


def test_an_empty_recipe_is_said_to_be_empty() -> None:
    with pytest.raises(SearchError, match="recipe: it is empty; paste a recipe from a report"):
        tiny.execute(NoiseFromRecipe)
