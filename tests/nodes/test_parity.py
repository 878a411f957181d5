"""With one candidate, Search Sampler is KSampler and SamplerCustomAdvanced; and every winner can be had again there."""

from __future__ import annotations

from typing import Any

import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_custom_sampler import BasicGuider, CFGGuider, DualCFGGuider, DualModelGuider, Noise_RandomNoise

from pack import search
from pack.tests.nodes import tiny

SAMPLERS = comfy.samplers.KSampler.SAMPLERS
SCHEDULERS = comfy.samplers.KSampler.SCHEDULERS


@pytest.fixture(scope="module", params=["flow", "eps"])
def model(request: pytest.FixtureRequest) -> Any:
    return tiny.model_of(request.param)


def one(model: Any, seed: int = 11, **settings: Any) -> float:
    """Difference of a one-candidate search from stock KSampler."""
    out = tiny.search(model, seed, max_candidates=1, **settings)
    return tiny.difference(out.args[0], tiny.stock(model, seed, **settings))


def some_latent(batch: int = 1) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(9)
    return {"samples": torch.randn(batch, tiny.CHANNELS, 8, 8, generator=generator)}


@pytest.mark.parametrize("sampler_name", SAMPLERS)
def test_one_candidate_is_stock_ksampler(model: Any, sampler_name: str) -> None:
    assert one(model, sampler_name=sampler_name, steps=3) == 0.0
    assert one(model, sampler_name=sampler_name, steps=2, cfg=1.0, scheduler="karras") == 0.0


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_one_candidate_is_stock_ksampler_on_every_schedule(model: Any, scheduler: str) -> None:
    for sampler_name in ("euler_ancestral", "dpm_2"):
        assert one(model, scheduler=scheduler, sampler_name=sampler_name) == 0.0


@pytest.mark.parametrize(
    "sampler_name", ["euler", "euler_ancestral_cfg_pp", "dpmpp_2m_sde", "uni_pc", "ddim", "dpm_adaptive"]
)
def test_one_candidate_is_stock_ksampler_with_v_prediction(sampler_name: str) -> None:
    assert one(tiny.model_of("v_prediction"), sampler_name=sampler_name) == 0.0


@pytest.mark.parametrize("sampler_name", SAMPLERS)
def test_image_to_image_and_inpainting_are_stock(model: Any, sampler_name: str) -> None:
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 20:, :40] = 1.0
    masked = {**some_latent(), "noise_mask": mask}
    assert one(model, sampler_name=sampler_name, steps=2, denoise=0.6, latent_image=some_latent()) == 0.0
    assert one(model, sampler_name=sampler_name, steps=2, latent_image=masked) == 0.0


@pytest.mark.parametrize("sampler_name", SAMPLERS)
def test_a_latent_batch_is_one_candidate(sampler_name: str) -> None:
    model = tiny.model_of("flow")
    settings = {"latent_image": some_latent(2), "sampler_name": sampler_name, "steps": 2}
    out = tiny.search(model, max_candidates=1, **settings)
    expected = tiny.stock(model, 11, **settings)
    assert tiny.difference(out.args[0], expected) == 0.0
    report = out.args[5]
    assert len(report.finished) == 1 and report.top[0].images.shape == (2, 8, 8, 3)


@pytest.mark.parametrize("batch_index", [[3], [3, 5]])
def test_batch_index_picks_the_noise_that_stock_picks(batch_index: list[int]) -> None:
    latent = {**tiny.latent(batch=len(batch_index)), "batch_index": batch_index}
    assert one(tiny.model_of("flow"), latent_image=latent) == 0.0


@pytest.mark.parametrize("build", [tiny.flux, tiny.wan, tiny.cogvideox])
@pytest.mark.parametrize("sampler_name", ["euler", "dpmpp_2m_sde", "euler_ancestral"])
def test_other_architectures_are_stock(build: Any, sampler_name: str) -> None:
    model = build()
    latent = tiny.latent() if build is tiny.flux else tiny.video_latent()
    assert one(model, sampler_name=sampler_name, latent_image=latent) == 0.0
    empty = {"samples": torch.zeros(1, 4, 8, 8)}  # stock widens an empty latent and adds a time axis
    assert one(model, sampler_name=sampler_name, latent_image=empty) == 0.0


@pytest.mark.skipif(not tiny.HAS_MINIMAX, reason="this ComfyUI has no MiniMax H3")
def test_nested_latents_are_stock() -> None:
    conds = {"positive": tiny.conditioning(1, width=48), "negative": tiny.conditioning(2, width=48)}
    assert one(tiny.minimax_h3(), latent_image=tiny.nested_latent(), **conds) == 0.0


def guiders(model: Any) -> dict[str, Any]:
    a, b, c = (tiny.conditioning(i) for i in (1, 2, 3))
    return {
        "basic": BasicGuider.execute(model, a).args[0],
        "cfg": CFGGuider.execute(model, a, b, 4.0).args[0],
        "cfg 1": CFGGuider.execute(model, a, b, 1.0).args[0],
        "dual": DualCFGGuider.execute(model, a, c, b, 3.0, 2.0, "regular").args[0],
        "dual nested": DualCFGGuider.execute(model, a, c, b, 3.0, 2.0, "nested").args[0],
        "two models": DualModelGuider.execute(model, a, 3.0, tiny.sd3(5), b).args[0],
    }


@pytest.mark.parametrize("kind", guiders(tiny.sd3()))
@pytest.mark.parametrize("sampler_name", ["euler", "dpmpp_sde", "res_multistep_ancestral_cfg_pp"])
def test_the_advanced_node_is_stock_sampler_custom_advanced(model: Any, kind: str, sampler_name: str) -> None:
    guider, sampler = guiders(model)[kind], comfy.samplers.sampler_object(sampler_name)
    if not hasattr(guider, "cfg") or "cfg_pp" in sampler_name and kind.startswith("two"):
        pytest.skip("stock does not run this")
    for sigmas in (tiny.sigmas(model, 3), tiny.sigmas(model, 5)[1:4]):
        out = tiny.search_custom(3, guider, sampler, sigmas, max_candidates=1)
        assert tiny.difference(out.args[0], tiny.stock_custom(3, guider, sampler, sigmas, tiny.latent())) == 0.0


@pytest.mark.parametrize("sampler_name", SAMPLERS)
def test_every_sampler_gives_a_picture_when_sigmas_stop_before_zero(sampler_name: str) -> None:
    model = tiny.model_of("eps")
    sigmas = tiny.sigmas(model, 4)[:3]
    sampler = comfy.samplers.sampler_object(sampler_name)
    out = tiny.search_custom(3, tiny.guider(model), sampler, sigmas, max_candidates=2)
    expected = tiny.stock_custom(out.args[3], tiny.guider(model), sampler, sigmas, tiny.latent())
    assert tiny.difference(out.args[0], expected) <= 1e-5


# winners


@pytest.mark.parametrize(
    "sampler_name", ["euler", "euler_ancestral", "dpmpp_2m_sde", "dpmpp_2m", "ddim", "uni_pc", "lcm"]
)
def test_the_seed_of_a_random_winner_makes_it_again_in_ksampler(model: Any, sampler_name: str) -> None:
    for batch_size, tolerance in ((1, 0.0), (8, 1e-5)):
        out = tiny.search(
            model, max_candidates=6, batch_size=batch_size, sampler_name=sampler_name, verifier=tiny.Later()
        )
        report, seed = out.args[5], out.args[3]
        assert seed == report.best.evaluation.seed and report.best.evaluation.candidate == 5
        assert tiny.difference(out.args[0], tiny.stock(model, seed, sampler_name=sampler_name)) <= tolerance


@pytest.mark.parametrize("sampler_name", ["euler", "euler_ancestral", "dpmpp_2m_sde"])
def test_the_noise_of_a_zero_order_winner_makes_it_again_in_sampler_custom_advanced(
    model: Any, sampler_name: str
) -> None:
    sampler, sigmas, guider = comfy.samplers.sampler_object(sampler_name), tiny.sigmas(model, 4), tiny.guider(model)
    algorithm = search.algorithm("zero_order", neighbours=3, cosine=0.9)
    for batch_size, tolerance in ((1, 0.0), (4, 1e-5)):
        out = tiny.search_custom(
            5, guider, sampler, sigmas, max_candidates=6, batch_size=batch_size, algorithm=algorithm,
            verifier=tiny.Later(),
        )  # fmt: skip
        assert [operation["op"] for operation in out.args[5].best.evaluation.recipe] == ["seed", "near", "near"]
        again = tiny.stock_custom(out.args[2], guider, sampler, sigmas, tiny.latent())
        assert tiny.difference(out.args[0], again) <= tolerance
        assert out.args[3].message  # no plain seed: that output is blocked, with a reason


def test_the_noise_of_a_random_winner_is_stock_random_noise() -> None:
    out = tiny.search(tiny.model_of("flow"), max_candidates=5)
    expected = Noise_RandomNoise(out.args[3]).generate_noise(tiny.latent())
    assert torch.equal(out.args[2].generate_noise(tiny.latent()), expected) and out.args[2].seed == out.args[3]


def test_a_sampler_that_comfyui_does_not_know_is_the_one_that_it_takes_instead() -> None:
    widgets = {"sampler_name": "nope", "scheduler": "nope"}
    out = tiny.search(tiny.sd3(), max_candidates=1, **widgets)
    assert tiny.difference(out.args[0], tiny.stock(tiny.sd3(), 11, **widgets)) == 0.0
