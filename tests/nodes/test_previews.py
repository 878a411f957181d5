"""What a user sees of images on their way: what KSampler would show, at no model call."""

from __future__ import annotations

from typing import Any

import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_custom_sampler import Noise_RandomNoise

from pack import search
from pack.nodes.guided_sampler import GuidedSampler
from pack.tests.host_server import HostServer
from pack.tests.nodes import tiny
from pack.tests.nodes.test_cost import Meter
from pack.tests.workflows.graphs import report_of, search_graph, search_id


@pytest.mark.parametrize("sampler_name", ["euler", "heun", "dpmpp_2m_sde"])
@pytest.mark.parametrize("count", [1, 3])
def test_the_viewer_sees_what_ksamplers_callback_sees_of_the_first_row(sampler_name: str, count: int) -> None:
    model, expected, seen = tiny.sd3(), [], []
    sampler, sigmas = comfy.samplers.sampler_object(sampler_name), tiny.sigmas(model, 4)
    noise = Noise_RandomNoise(5).generate_noise(tiny.latent())

    def stock(step: int, x0: torch.Tensor, *_: Any) -> None:
        expected.append(x0.clone())

    port, meter = GuidedSampler(tiny.guider(model), sampler, sigmas, tiny.latent(), None), Meter()
    port.viewer = lambda x0: seen.append(x0.clone())
    with torch.inference_mode():
        samples = tiny.latent()["samples"]
        tiny.guider(model).sample(noise, samples, sampler, sigmas, callback=stock, disable_pbar=True, seed=5)
        port.advance([search.Row(search.Recipe.of_seed(5 + i), port.sigmas[0]) for i in range(count)], sigmas, meter)
    assert meter.rows == count * port.cost(port.sigmas)
    assert len(seen) == len(expected) == 4
    for one, other in zip(seen, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not tiny.HAS_MINIMAX, reason="this ComfyUI knows no tiny model with nested latents")
def test_of_a_video_with_sound_the_viewer_sees_the_video() -> None:
    model, latent, seen = tiny.minimax_h3(), tiny.nested_latent(), []
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(tiny.conditioning(1, width=48), tiny.conditioning(2, width=48))
    port = GuidedSampler(guider, comfy.samplers.sampler_object("euler"), tiny.sigmas(model, 2), latent, None)
    port.viewer = lambda x0: seen.append(x0.shape)
    with torch.inference_mode():
        port.advance([search.Row(search.Recipe.of_seed(5), port.sigmas[0])], port.sigmas, Meter())
    assert seen == [latent["samples"].unbind()[0].shape] * 2


def test_the_first_image_is_previewed_on_its_way_where_comfyui_shows_previews(server: HostServer) -> None:
    shown = {}
    for seed, method in enumerate(("none", "latent2rgb"), 51):
        prompt = search_graph(seed=seed, steps=6, max_candidates=2, target_score=-1000000.0)
        with server.listen() as listener:
            prompt_id = server.queue(prompt, listener.client_id, {"preview_method": method})
            entry = server.wait(prompt_id)
            listener.wait_for("executing", lambda data: data["node"] is None)
            shown[method] = len(listener.of_type("binary"))
        assert entry["status"]["status_str"] == "success"
        assert report_of(server, prompt_id, search_id(prompt))["nfe"] == 6
    assert shown["none"] == 1 and shown["latent2rgb"] == 6 + 1
