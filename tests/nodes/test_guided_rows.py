"""LiDAR over ComfyUI's own samplers: guided rows, their lookaheads in model space, and what the nodes make of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_easycache import EasyCacheNode

from pack import search
from pack.nodes.algorithms import LookaheadSearch
from pack.nodes.candidates import NoiseFromRecipe
from pack.nodes.guided_sampler import GuidedSampler
from pack.search import Row, SearchError
from pack.search.guidance import LookaheadGuide
from pack.tests.nodes import tiny
from pack.tests.nodes.test_lockstep import SAMPLERS, Ledger, fresh, port

FAMILIES = ["flow", "eps", "v_prediction"]


def guided(sampler: GuidedSampler, rows: list[Row], scale: float = 1.0, until: float = 0.1, seed: int = 5) -> list[Row]:
    """The rows under one guide of three lookaheads as the sampler ends them."""
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(3, *sampler.latent["samples"].shape, generator=generator)
    guide = LookaheadGuide(latents, (-1.0, 0.2, 1.3), scale, 20.0, sampler.sigma(until))
    told = {"seeds": [1, 2, 3], "steps": 2, "scale": scale, "strength": 20.0, "until": until}
    return [replace(row, recipe=row.recipe.then(op="guide", **told), guide=guide) for row in rows]


@pytest.mark.parametrize("family", ["flow", "eps"])
@pytest.mark.parametrize("sampler_name", SAMPLERS)
def test_a_guide_of_scale_0_is_stock_bit_for_bit_with_every_sampler(family: str, sampler_name: str) -> None:
    model = tiny.model_of(family)
    sampler = port(model, sampler_name, 3)
    with torch.inference_mode():
        [row] = sampler.advance(guided(sampler, fresh(sampler, 1), scale=0.0), sampler.sigmas, Ledger())
        expected = sampler.advance(fresh(sampler, 1), sampler.sigmas, Ledger())[0].x
        [moved] = sampler.advance(guided(sampler, fresh(sampler, 1), scale=1.0), sampler.sigmas, Ledger())
    assert torch.equal(row.x, expected)
    if sampler_name in ("euler", "heun", "dpmpp_2m"):
        assert torch.equal(row.x, tiny.stock(model, 4, sampler_name=sampler_name, steps=3)["samples"])
    assert torch.isfinite(moved.x).all() and not torch.equal(moved.x, expected)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sampler_name", ["euler", "euler_ancestral", "dpmpp_2m", "euler_cfg_pp"])
def test_guided_and_plain_rows_share_forwards_and_are_what_each_is_alone(family: str, sampler_name: str) -> None:
    sampler = port(tiny.model_of(family), sampler_name, 4)
    rows = fresh(sampler, 8)
    rows = [*rows[:2], *guided(sampler, rows[2:5]), *guided(sampler, rows[5:], scale=3.0, seed=6)]
    with torch.inference_mode():
        alone = [sampler.advance([row], sampler.sigmas, Ledger())[0].x for row in rows]
        for batch in (3, 8):
            meter = Ledger()
            found = [
                row.x for i in range(0, 8, batch) for row in sampler.advance(rows[i : i + batch], sampler.sigmas, meter)
            ]
            assert max(meter.forwards) == batch and sum(meter.forwards) == 8 * sampler.cost(sampler.sigmas)
            for x, expected in zip(found, alone, strict=True):
                assert (x - expected).abs().max() <= 1e-5 * expected.abs().max().clamp(min=1)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_euler_step_is_corrected_by_the_formula_in_model_space(family: str) -> None:
    sampler = port(tiny.model_of(family), "euler", 4)
    [row] = guided(sampler, fresh(sampler, 1), scale=2.0)
    with torch.inference_mode():
        [plain] = sampler.predict(fresh(sampler, 1), Ledger())
        [predicted] = sampler.predict([row], Ledger())
        [moved] = sampler.advance([row], sampler.sigmas[:2], Ledger())
    a, b = sampler.coefficients(sampler.sigmas[0])
    z = sampler.guider.model_patcher.model.process_latent_in(row.guide.latents[:, 0])
    clean = z.double().flatten(1)
    logs = -(plain.x.double().flatten() - a * clean).square().sum(1) / (2 * b**2)
    weights = torch.softmax(logs, 0)
    tilted = torch.softmax(20.0 * torch.tensor([-1.0, 0.2, 1.3]) + logs, 0)
    expected = plain.x0.double() + 2.0 * ((tilted - weights) @ clean).reshape(plain.x0.shape)
    assert torch.allclose(predicted.x0.double(), expected, atol=1e-4)
    assert torch.equal(moved.x0, predicted.x0) and torch.equal(predicted.x, plain.x)
    assert not torch.allclose(predicted.x0, plain.x0, atol=1e-2)


def test_below_the_limit_the_way_is_stocks() -> None:
    sampler = port(tiny.model_of("flow"), "euler", 4)
    with torch.inference_mode():
        [row] = sampler.advance(guided(sampler, fresh(sampler, 1), until=0.999), sampler.sigmas, Ledger())
        [first] = sampler.advance(guided(sampler, fresh(sampler, 1), until=0.999), sampler.sigmas[:2], Ledger())
        [end] = sampler.advance([replace(first, guide=None)], sampler.sigmas[1:], Ledger())
    assert torch.equal(row.x, end.x)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sampler_name", ["euler", "dpmpp_2m_sde", "uni_pc"])
def test_a_search_guides_and_its_winner_offers_its_latent_alone(family: str, sampler_name: str) -> None:
    reports = []
    for batch_size in (1, 3, 8):
        out = tiny.search(
            tiny.model_of(family), steps=5, sampler_name=sampler_name, max_candidates=6, batch_size=batch_size,
            algorithm=tiny.execute(LookaheadSearch, steps=2, scale=2.0).args[0], verifier=tiny.Mean(), top_k=6,
        )  # fmt: skip
        reports.append(out.args[5])
    report = reports[0]
    assert report.evaluations[0].seed == 11 and sum(e.scout for e in report.evaluations) >= 16
    assert [e.recipe[-1]["op"] for e in report.finished[1:]] == ["guide"] * 5
    for other in reports[1:]:
        assert [e.recipe for e in other.finished] == [e.recipe for e in report.finished]
        assert [e.score for e in other.finished] == pytest.approx([e.score for e in report.finished], abs=1e-4)


def test_a_guided_winner_blocks_seed_and_noise_and_its_recipe_is_refused_as_a_noise() -> None:
    out = tiny.search(
        tiny.model_of("flow"), steps=4, max_candidates=5, verifier=tiny.Later(),
        algorithm=tiny.execute(LookaheadSearch, steps=2).args[0],
    )  # fmt: skip
    recipe = search.Recipe(out.args[5].best.evaluation.recipe)
    assert recipe.operations[-1]["op"] == "guide"
    assert "LATENT" in out.args[2].message and "LATENT" in out.args[3].message
    assert torch.isfinite(out.args[0]["samples"]).all()
    with pytest.raises(SearchError, match="acted on this candidate"):
        tiny.execute(NoiseFromRecipe, recipe=recipe.to_json())


@pytest.mark.parametrize("case", ["mask", "video", "nested", "batch"])
def test_every_kind_of_latent_is_guided(case: str) -> None:
    if case == "nested" and not tiny.HAS_MINIMAX:
        pytest.skip("this ComfyUI has no tiny model with nested latents")
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(1, 16, 8, 8, generator=generator)
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 4:] = 1.0
    narrow = {"positive": tiny.conditioning(1, width=48), "negative": tiny.conditioning(2, width=48)}
    model, widgets = {
        "mask": lambda: (tiny.sd3(), {"latent_image": {"samples": image, "noise_mask": mask}}),
        "video": lambda: (tiny.wan(), {"latent_image": tiny.video_latent()}),
        "nested": lambda: (tiny.minimax_h3(), {"latent_image": tiny.nested_latent(), **narrow}),
        "batch": lambda: (tiny.sd3(), {"latent_image": tiny.latent(batch=2)}),
    }[case]()
    chosen = tiny.execute(LookaheadSearch, steps=2, scale=2.0).args[0]
    verifier: Any = tiny.Mean() if case != "video" else Frames()
    out = tiny.search(model, steps=3, max_candidates=4, algorithm=chosen, verifier=verifier, **widgets)
    report = out.args[5]
    assert report.finished[-1].recipe[-1]["op"] == "guide" and len(report.finished) == 4
    assert all(torch.isfinite(part).all() for part in tiny.parts(out.args[0]["samples"]))
    if case == "mask":  # what is kept is kept
        for kept in report.top:
            assert torch.allclose(kept.row.x[..., :4], image[..., :4], atol=1e-5)


class Frames(tiny.Mean):
    """Brightness of frames."""

    def score(self, images: torch.Tensor, prompt: str) -> torch.Tensor:
        return images.double().flatten(1).mean(1)


def test_a_patch_with_memory_is_no_obstacle_because_nothing_pauses() -> None:
    cached = EasyCacheNode.execute(tiny.sd3(), 0.2, 0.15, 0.95, False).args[0]
    out = tiny.search(cached, steps=6, max_candidates=3, algorithm=tiny.execute(LookaheadSearch, steps=3).args[0])
    assert len(out.args[5].finished) == 3


def test_lookaheads_through_the_advanced_node_with_any_sigmas() -> None:
    model = tiny.model_of("flow")
    sigmas = tiny.sigmas(model, 6)
    chosen = tiny.execute(LookaheadSearch, steps=2).args[0]
    euler = comfy.samplers.sampler_object("euler")
    out = tiny.search_custom(3, tiny.guider(model), euler, sigmas[2:], max_candidates=3, algorithm=chosen)
    assert len(out.args[5].finished) == 3
    with pytest.raises(SearchError, match="SIGMAS that end at"):
        tiny.search_custom(3, tiny.guider(model), euler, sigmas[:-1], max_candidates=3, algorithm=chosen)
