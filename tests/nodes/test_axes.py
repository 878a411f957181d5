"""Rows that ask the model another way: as stock does with those widgets, in any company, and nothing is left behind."""

from __future__ import annotations

import threading
from typing import Any

import comfy.model_management
import comfy.samplers
import node_helpers
import pytest
import torch
from comfy_extras.nodes_custom_sampler import BasicGuider, CFGGuider, DualCFGGuider, DualModelGuider
from comfy_extras.nodes_flux import FluxGuidance
from comfy_extras.nodes_perpneg import PerpNegGuider

from pack.nodes.algorithms import AxesSearch
from pack.nodes.candidate_recipe import CandidateFromRecipe
from pack.nodes.candidates import NoiseFromRecipe
from pack.nodes.demo_world import load_demo_world
from pack.nodes.guided_sampler import GuidedSampler
from pack.nodes.guider_axes import asked_as, axes_of
from pack.search import Recipe, Row, SearchError
from pack.search.recipe import gaussian
from pack.search.seeds import child_seed
from pack.tests.nodes import tiny
from pack.tests.nodes.test_cancel import at_call, columns, state
from pack.tests.nodes.test_conditions import CASES, unpacked
from pack.tests.nodes.test_lockstep import Ledger

SAMPLERS = ["euler", "euler_ancestral", "dpmpp_2m_sde", "dpmpp_2m", "euler_cfg_pp", "uni_pc", "dpm_adaptive"]
Interrupt = comfy.model_management.InterruptProcessingException


def port(model: Any, **settings: Any) -> GuidedSampler:
    w = {**tiny.WIDGETS, **settings}
    stock = comfy.samplers.KSampler(
        model, w["steps"], model.load_device, w["sampler_name"], w["scheduler"], w["denoise"], model.model_options
    )
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(w["positive"], w["negative"])
    guider.set_cfg(w["cfg"])
    sampler = comfy.samplers.sampler_object(w["sampler_name"])
    return GuidedSampler(guider, sampler, stock.sigmas, w["latent_image"], tiny.PictureVAE())


def ends(sampler: GuidedSampler, recipes: list[Recipe], meter: Any = None) -> list[dict[str, Any]]:
    """The latents of whole trajectories, in one request."""
    rows = [Row(recipe, sampler.sigmas[0]) for recipe in recipes]
    with torch.inference_mode():
        moved = sampler.advance(rows, sampler.sigmas, meter or Ledger())
    assert [row.recipe for row in moved] == recipes
    return [{"samples": unpacked(row.x, sampler.latent["samples"])} for row in moved]


def noised_by_hand(conditioning: list[Any], seed: int, strength: float) -> list[Any]:
    made = []
    for index, (embeddings, more) in enumerate(conditioning):
        noise = gaussian(embeddings, child_seed(seed, "cond", index))
        made.append([embeddings + strength * embeddings.std(dim=1, keepdim=True) * noise, more])
    return made


OWN = Recipe.of_seed(7)


@pytest.mark.parametrize("family", ["flow", "eps"])
@pytest.mark.parametrize("sampler_name", SAMPLERS)
def test_a_row_of_another_cfg_is_stock_ksampler_at_that_cfg(family: str, sampler_name: str) -> None:
    model, settings = tiny.model_of(family), {"sampler_name": sampler_name, "steps": 3}
    recipes = [OWN.then(op="cfg", scale=4.5), OWN, Recipe.of_seed(8).then(op="cfg", scale=1.0)]
    made = ends(port(model, **settings), recipes)
    for out, (seed, cfg) in zip(made, [(7, 4.5), (7, 3.0), (8, 1.0)], strict=True):
        assert tiny.difference(out, tiny.stock(model, seed, cfg=cfg, **settings)) == 0.0


@pytest.mark.parametrize("family", ["flow", "eps"])
@pytest.mark.parametrize("sampler_name", ["euler", "dpmpp_2m_sde"])
def test_a_row_of_noised_conditioning_is_stock_with_that_conditioning(family: str, sampler_name: str) -> None:
    model, positive = tiny.model_of(family), tiny.conditioning(1)
    recipe = OWN.then(op="conditioning", seed=11, strength=0.4)
    made = ends(port(model, sampler_name=sampler_name), [recipe, recipe.then(op="cfg", scale=2.0)])
    wanted = noised_by_hand(positive, 11, 0.4)
    for out, cfg in zip(made, (3.0, 2.0), strict=True):
        expected = tiny.stock(model, 7, sampler_name=sampler_name, positive=wanted, cfg=cfg)
        assert tiny.difference(out, expected) == 0.0
    assert tiny.difference(made[0], tiny.stock(model, 7, sampler_name=sampler_name)) > 1e-4


def test_every_part_of_a_positive_has_noise_of_its_own() -> None:
    positive = [*tiny.conditioning(1), *tiny.conditioning(1)]
    [one, other] = noised_by_hand(positive, 5, 1.0)
    assert not torch.equal(one[0], other[0])
    recipe = OWN.then(op="conditioning", seed=5, strength=1.0)
    [out] = ends(port(tiny.sd3(), positive=positive), [recipe])
    assert tiny.difference(out, tiny.stock(tiny.sd3(), 7, positive=[one, other])) == 0.0


def test_noise_on_embeddings_is_measured_by_each_features_own_deviation() -> None:
    embeddings = torch.randn(1, 400, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 100.0, 0.0])
    model = tiny.sd3()
    sampler = port(model, positive=[[embeddings, {}]])
    operations = ({"op": "conditioning", "seed": 3, "strength": 0.2},)
    [cond] = asked_as(sampler.guider, operations).original_conds["positive"]
    added = (cond["cross_attn"] - embeddings).std(dim=1).flatten().tolist()
    assert added == pytest.approx([0.2, 20.0, 0.0], rel=0.15)
    assert torch.equal(sampler.guider.original_conds["positive"][0]["cross_attn"], embeddings)


@pytest.mark.parametrize("guidance", [1.0, 6.5])
def test_guidance_is_what_flux_guidance_writes(guidance: float) -> None:
    model = tiny.flux()
    [own, wanted] = [FluxGuidance.execute(tiny.conditioning(1), value).args[0] for value in (3.5, guidance)]
    sampler = port(model, positive=own, cfg=1.0)
    assert sampler.axes == {"guidance": 3.5, "conditioning": 0.0}
    out, plain = ends(sampler, [OWN.then(op="guidance", scale=guidance), OWN])
    assert tiny.difference(out, tiny.stock(model, 7, positive=wanted, cfg=1.0)) == 0.0
    assert tiny.difference(plain, tiny.stock(model, 7, positive=own, cfg=1.0)) == 0.0
    assert tiny.difference(out, plain) > 0


class OtherSteps:
    """A NOISE of one seed with the steps of another, as any pack may make it."""

    def __init__(self, start: int, seed: int) -> None:
        self.start, self.seed = start, seed

    def generate_noise(self, latent: dict[str, Any]) -> torch.Tensor:
        noise = comfy.sample.prepare_noise(latent["samples"], self.start)
        torch.manual_seed(self.seed)
        return noise


def churning() -> Any:
    """A sampler that draws from the global generator."""
    return comfy.samplers.ksampler("euler", {"s_churn": 5.0, "s_noise": 1.0})


@pytest.mark.parametrize("sampler_name", ["euler_ancestral", "dpmpp_2m_sde", "lcm", "churn"])
def test_step_noise_is_stock_with_the_steps_of_another_seed(sampler_name: str) -> None:
    model = tiny.model_of("eps")
    sampler = churning() if sampler_name == "churn" else comfy.samplers.sampler_object(sampler_name)
    guider, sigmas = tiny.guider(model), tiny.sigmas(model, 4)
    made = GuidedSampler(guider, sampler, sigmas, tiny.latent(), tiny.PictureVAE())
    assert made.axes == {"cfg": 3.0, "conditioning": 0.0, "step_noise": 0.0}
    recipe = OWN.then(op="step_noise", seed=17)
    [out] = ends(made, [recipe])
    expected = tiny.stock_custom(OtherSteps(7, 17), guider, sampler, sigmas, tiny.latent())
    assert tiny.difference(out, expected) == 0.0
    assert tiny.difference(out, tiny.stock_custom(7, guider, sampler, sigmas, tiny.latent())) > 1e-3
    again = tiny.execute(NoiseFromRecipe, recipe=recipe.to_json()).args[0]
    assert tiny.difference(out, tiny.stock_custom(again, guider, sampler, sigmas, tiny.latent())) == 0.0


@pytest.mark.parametrize("sampler_name", ["euler", "dpmpp_2m", "heun", "uni_pc", "ddim"])
def test_samplers_that_draw_no_noise_offer_no_step_noise(sampler_name: str) -> None:
    assert "step_noise" not in port(tiny.sd3(), sampler_name=sampler_name).axes


def test_what_a_guider_offers() -> None:
    model, a, b, c = tiny.flux(), *(tiny.conditioning(i) for i in (1, 2, 3))
    [guided] = [FluxGuidance.execute(a, 2.5).args[0]]
    textless = [[None, {}]]
    offered = {
        "cfg": axes_of(CFGGuider.execute(model, a, b, 4.0).args[0]),
        "cfg with guidance": axes_of(CFGGuider.execute(model, guided, b, 4.0).args[0]),
        "cfg 1 with guidance": axes_of(CFGGuider.execute(model, guided, b, 1.0).args[0]),
        "basic": axes_of(BasicGuider.execute(model, a).args[0]),
        "basic with guidance": axes_of(BasicGuider.execute(model, guided).args[0]),
        "two conds": axes_of(DualCFGGuider.execute(model, a, c, b, 3.0, 2.0, "regular").args[0]),
        "perp-neg": axes_of(PerpNegGuider.execute(model, a, b, c, 3.0, 1.0).args[0]),
        "two models": axes_of(DualModelGuider.execute(model, a, 3.0, tiny.flux(5), b).args[0]),
        "no text": axes_of(CFGGuider.execute(model, textless, b, 4.0).args[0]),
    }
    assert offered == {
        "cfg": {"cfg": 4.0, "conditioning": 0.0},
        "cfg with guidance": {"cfg": 4.0, "conditioning": 0.0},
        "cfg 1 with guidance": {"guidance": 2.5, "conditioning": 0.0},
        "basic": {"conditioning": 0.0},
        "basic with guidance": {"guidance": 2.5, "conditioning": 0.0},
        "two conds": {"conditioning": 0.0},
        "perp-neg": {"conditioning": 0.0},
        "two models": {"cfg": 3.0, "conditioning": 0.0},
        "no text": {"cfg": 4.0},
    }


def test_what_a_guider_does_not_offer_is_refused_with_a_sentence() -> None:
    model, sampler = tiny.sd3(), comfy.samplers.sampler_object("euler")
    basic = BasicGuider.execute(model, tiny.conditioning(1)).args[0]
    made = GuidedSampler(basic, sampler, tiny.sigmas(model, 2), tiny.latent(), tiny.PictureVAE())
    for kind, complaint in (("cfg", "no single cfg"), ("guidance", "wire FluxGuidance")):
        with pytest.raises(SearchError, match=f"{kind}, but .*{complaint}"):
            ends(made, [OWN.then(op=kind, scale=2.0)])
    chosen = tiny.execute(AxesSearch, cfg=0.5).args[0]
    with pytest.raises(SearchError, match="axes: cfg is on, but the guider has no single cfg"):
        tiny.search_custom(1, basic, sampler, tiny.sigmas(model, 2), algorithm=chosen, max_candidates=3)
    with pytest.raises(SearchError, match="step_noise is on, but the sampler draws no noise"):
        tiny.search(model, algorithm=tiny.execute(AxesSearch, step_noise=True).args[0], max_candidates=3)


@pytest.mark.parametrize("case", CASES)
def test_masks_controls_regions_and_videos_are_stock_at_another_cfg(case: str) -> None:
    model, widgets = CASES[case]
    recipes = [OWN.then(op="cfg", scale=2.0), OWN, OWN.then(op="conditioning", seed=3, strength=0.5)]
    made = ends(port(model, **widgets), recipes)
    noised = noised_by_hand({**tiny.WIDGETS, **widgets}["positive"], 3, 0.5)
    expected = [{"cfg": 2.0}, {}, {"positive": noised}]
    for out, changed in zip(made, expected, strict=True):
        assert tiny.difference(out, tiny.stock(model, 7, **{**widgets, **changed})) == 0.0


def test_a_latent_batch_and_its_conditioning_are_stock_at_another_cfg() -> None:
    model, widgets = tiny.sd3(), {"latent_image": tiny.latent(batch=2), "positive": tiny.conditioning(1, batch=2)}
    made = ends(
        port(model, **widgets), [OWN.then(op="cfg", scale=2.0), OWN.then(op="conditioning", seed=3, strength=0.5)]
    )
    noised = noised_by_hand(widgets["positive"], 3, 0.5)
    for out, changed in zip(made, [{"cfg": 2.0}, {"positive": noised}], strict=True):
        assert tiny.difference(out, tiny.stock(model, 7, **{**widgets, **changed})) == 0.0


def test_rows_that_ask_alike_share_a_forward_and_all_come_back_in_order() -> None:
    sampler, meter = port(tiny.sd3(), steps=3), Ledger()
    mixed = [Recipe.of_seed(i) if i % 2 else Recipe.of_seed(i).then(op="cfg", scale=2.0) for i in range(6)]
    made = ends(sampler, mixed, meter)
    assert meter.forwards == [3] * 6  # two groups of three rows, three steps each
    for i, out in enumerate(made):
        expected = tiny.stock(tiny.sd3(), i, steps=3, cfg=3.0 if i % 2 else 2.0)
        assert tiny.difference(out, expected) <= 1e-5


@pytest.mark.parametrize("sampler_name", ["euler", "euler_ancestral"])
def test_the_micro_batch_changes_no_decision(sampler_name: str) -> None:
    chosen = tiny.execute(AxesSearch, conditioning=0.5, cfg=0.5, refine=0.5).args[0]
    reports = [
        tiny.search(
            tiny.sd3(), max_candidates=11, steps=3, batch_size=batch, sampler_name=sampler_name, algorithm=chosen
        ).args[5]
        for batch in (1, 3, 8)
    ]
    assert {o["op"] for e in reports[0].evaluations for o in e.recipe} == {"seed", "conditioning", "cfg", "near"}
    for report in reports[1:]:
        assert [e.recipe for e in report.evaluations] == [e.recipe for e in reports[0].evaluations]
        scores = [e.score for e in reports[0].evaluations]
        assert [e.score for e in report.evaluations] == pytest.approx(scores, abs=1e-6)


def test_the_nfe_of_other_axes_are_counted() -> None:
    counted = tiny.Counted(tiny.sd3())
    chosen = tiny.execute(AxesSearch, cfg=0.5).args[0]
    report = tiny.search(counted.model, max_candidates=0, max_nfe=20, steps=4, algorithm=chosen, batch_size=3).args[5]
    assert report.nfe == 20 and len(report.finished) == 5 and report.model_rows == counted.rows == 40


def test_cancel_leaves_the_guider_and_the_model_as_they_were() -> None:
    counted = tiny.Counted(tiny.sd3())
    model, guider = counted.model, tiny.guider(counted.model)
    sampler, sigmas = comfy.samplers.sampler_object("euler"), tiny.sigmas(model, 3)
    chosen = tiny.execute(AxesSearch, cfg=0.5).args[0]

    def interrupt() -> None:
        raise Interrupt

    def run() -> Any:
        return tiny.search_custom(3, guider, sampler, sigmas, max_candidates=5, batch_size=3, algorithm=chosen).args[5]

    fresh = columns(run())
    expected = tiny.stock_custom(3, guider, sampler, sigmas, tiny.latent())
    before, threads, cfg = state(model, guider), threading.active_count(), guider.cfg
    texts = [cond["cross_attn"].clone() for cond in guider.original_conds["positive"]]
    for point in (2, 5, 14):
        counted.before = at_call(point, interrupt)
        with pytest.raises(Interrupt):
            run()
        counted.before = None
        assert threading.active_count() == threads and state(model, guider) == before and guider.cfg == cfg
    now = [cond["cross_attn"] for cond in guider.original_conds["positive"]]
    assert all(torch.equal(a, b) for a, b in zip(texts, now, strict=True))
    assert tiny.difference(tiny.stock_custom(3, guider, sampler, sigmas, tiny.latent()), expected) == 0.0
    assert columns(run()) == fresh


@pytest.mark.parametrize("settings", [{"cfg": 0.5}, {"conditioning": 0.0, "cfg": 0.5}, {"noise": False}])
@pytest.mark.parametrize("sampler_name", ["euler", "euler_ancestral"])
def test_a_winner_is_had_again_from_its_recipe_in_a_stock_graph(settings: dict[str, Any], sampler_name: str) -> None:
    model, sampler, sigmas = tiny.sd3(), comfy.samplers.sampler_object(sampler_name), tiny.sigmas(tiny.sd3(), 4)
    chosen = tiny.execute(AxesSearch, **settings).args[0]
    out = tiny.search_custom(
        3, tiny.guider(model), sampler, sigmas, max_candidates=4, verifier=tiny.Later(), algorithm=chosen
    )
    recipe = Recipe(out.args[5].best.evaluation.recipe)
    for blocked in (out.args[2], out.args[3]):
        assert "Candidate From Recipe" in blocked.message and f"seed {recipe.operations[0]['seed']}" in blocked.message
    inputs = {"recipe": recipe.to_json(), "positive": tiny.conditioning(1), "cfg": 3.0}
    noise, positive, cfg = tiny.execute(CandidateFromRecipe, **inputs).args
    again = CFGGuider.execute(model, positive, tiny.conditioning(2), cfg).args[0]
    assert tiny.difference(out.args[0], tiny.stock_custom(noise, again, sampler, sigmas, tiny.latent())) == 0.0
    # a search with all of them wired asks for nothing twice
    first = tiny.search_custom(noise, again, sampler, sigmas, max_candidates=1)
    assert tiny.difference(out.args[0], first.args[0]) == 0.0
    with pytest.raises(SearchError, match="Candidate From Recipe"):
        tiny.execute(NoiseFromRecipe, recipe=recipe.to_json())


def test_the_users_own_winner_still_has_its_seed_and_noise() -> None:
    chosen = tiny.execute(AxesSearch).args[0]
    out = tiny.search(tiny.sd3(), algorithm=chosen, max_candidates=3, verifier=tiny.Mean(), steps=3)
    if out.args[5].best.evaluation.candidate != 0:
        pytest.skip("another candidate won")
    assert out.args[3] == 11 and out.args[2].seed == 11


def test_conditioning_of_other_kinds_keeps_all_but_its_text() -> None:
    positive = node_helpers.conditioning_set_values(tiny.conditioning(1), {"start_percent": 0.0, "end_percent": 0.5})
    text = OWN.then(op="conditioning", seed=4, strength=0.3).then(op="guidance", scale=2.0).to_json()
    _, made, cfg = tiny.execute(CandidateFromRecipe, recipe=text, positive=positive, cfg=7.0).args
    assert cfg == 7.0 and made[0][1] == {**positive[0][1], "guidance": 2.0}
    assert torch.equal(made[0][0], noised_by_hand(positive, 4, 0.3)[0][0])
    assert "guidance" not in positive[0][1]


def test_the_demo_world_parts_from_one_noise_by_conditioning_and_cfg() -> None:
    world = load_demo_world("flow")
    sampler = world.sampler("two red circles left of a blue square", steps=8)
    assert sampler.axes == {"cfg": 3.0, "conditioning": 0.0}
    recipes = [
        OWN, OWN.then(op="conditioning", seed=1, strength=1.0), OWN.then(op="conditioning", seed=2, strength=1.0),
        OWN.then(op="cfg", scale=5.0), OWN.then(op="near", seed=1, cosine=0.9999),
    ]  # fmt: skip
    with torch.inference_mode():
        rows = sampler.advance([Row(recipe, sampler.sigmas[0]) for recipe in recipes], sampler.sigmas, Ledger())
        images = torch.cat(sampler.decode(rows))
    apart = [float((image - images[0]).square().mean().sqrt()) for image in images[1:]]
    assert min(apart[:3]) > 2 * apart[3]
