"""A sampler that cannot be tried out on a scalar is searched like any other: what stock makes or says is what comes."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import comfy.samplers
import pytest
import torch
from comfy.k_diffusion.sampling import to_d
from comfy_extras.nodes_ar_video import SamplerARVideo
from comfy_extras.nodes_custom_sampler import BasicGuider

from pack.nodes.guided_sampler import GuidedSampler
from pack.tests.nodes import tiny


def looking(model: Any, x: torch.Tensor, sigmas: torch.Tensor, extra_args: Any, callback: Any, disable: Any) -> Any:
    """Euler by a sampler that looks into the network and into the options that only a real run has."""
    extra_args["model_options"]["transformer_options"]["looked"] = model.inner_model.inner_model.device
    for i, (here, there) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        denoised = model(x, here * x.new_ones([x.shape[0]]), **extra_args)
        callback({"x": x, "i": i, "sigma": here, "sigma_hat": here, "denoised": denoised})
        x = x + to_d(x, here, denoised) * (there - here)
    return x


def port_of(model: Any, function: Any) -> GuidedSampler:
    sampler = comfy.samplers.KSAMPLER(function)
    return GuidedSampler(tiny.guider(model), sampler, tiny.sigmas(model), tiny.latent(), tiny.PictureVAE())


@pytest.mark.parametrize("count", [1, 3])
def test_a_sampler_that_looks_into_the_model_gives_what_stock_gives(count: int) -> None:
    model, sampler = tiny.sd3(), comfy.samplers.KSAMPLER(looking)
    guider, sigmas = tiny.guider(model), tiny.sigmas(model)
    out = tiny.search_custom(3, guider, sampler, sigmas, max_candidates=count, verifier=tiny.Later())
    seed = out.args[3]
    assert (seed == 3) is (count == 1)
    for stock in (sampler, comfy.samplers.sampler_object("euler")):
        assert tiny.difference(out.args[0], tiny.stock_custom(seed, guider, stock, sigmas, tiny.latent())) == 0
    assert out.args[5].nfe == 6 * count


def test_what_cannot_be_found_out_about_a_sampler_is_taken_to_be_so() -> None:
    port = port_of(tiny.sd3(), looking)
    assert port.cost(port.sigmas) is None and not port.exact_pauses and "step_noise" in port.axes
    assert port.micro_batch() == 1
    assert "looks into the model" in (port.abilities.gradient_refusal() or "")


@pytest.mark.parametrize(
    "error", [comfy.model_management.InterruptProcessingException, torch.cuda.OutOfMemoryError, MemoryError]
)
def test_cancel_and_memory_that_runs_out_end_a_rehearsal(error: type[BaseException]) -> None:
    def ending(*_: Any, **__: Any) -> None:
        raise error("end")

    with pytest.raises(error):
        port_of(tiny.sd3(), ending)


def test_the_complaint_of_a_sampler_is_stocks() -> None:
    sampler = SamplerARVideo.execute(1).args[0]
    for model, latent in ((tiny.sd3(), tiny.latent()), (tiny.wan(), tiny.video_latent())):
        guider, sigmas = BasicGuider.execute(model, tiny.conditioning(1)).args[0], tiny.sigmas(model)
        with pytest.raises((ValueError, TypeError)) as stock:
            tiny.stock_custom(3, guider, sampler, sigmas, latent)
        with pytest.raises(stock.type) as ours:
            tiny.search_custom(3, guider, sampler, sigmas, latent_image=latent, max_candidates=2)
        assert str(ours.value) == str(stock.value)


@pytest.mark.parametrize("count", [1, 3])
def test_an_autoregressive_video_is_stocks(count: int) -> None:
    model, sampler = tiny.wan(causal_ar=True), SamplerARVideo.execute(2).args[0]
    guider, sigmas = BasicGuider.execute(model, tiny.conditioning(1)).args[0], tiny.sigmas(model, 3)
    latent = tiny.video_latent(5)
    settings = {"latent_image": latent, "max_candidates": count, "verifier": tiny.Later()}
    out = tiny.search_custom(3, guider, sampler, sigmas, **settings)
    assert tiny.difference(out.args[0], tiny.stock_custom(out.args[3], guider, sampler, sigmas, latent)) == 0
    assert len(out.args[5].finished) == count and out.args[5].nfe == 12 * count  # 3 blocks of 3 steps and one more
