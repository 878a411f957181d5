"""Verifiers that want to see x0 predictions get those that stock shows its callback, for nothing."""

from __future__ import annotations

from typing import Any

import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_custom_sampler import Noise_RandomNoise

from pack.nodes.guided_sampler import GuidedSampler
from pack.search import SearchError
from pack.tests.nodes import tiny

SAMPLERS = ["euler", "euler_ancestral", "heun", "dpmpp_2m", "dpmpp_2m_sde", "uni_pc", "lcm", "res_multistep"]


class Early(tiny.Mean):
    """Remembers the early images it was shown."""

    early = (0.4, 0.8)

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[Any] = []

    def score(self, images: Any, prompt: str, early: Any = None) -> Any:
        self.shown.append(early)
        return super().score(images, prompt)


def by_stock(family: str, sampler_name: str, sigmas: torch.Tensor, step: int, seed: int) -> torch.Tensor:
    """The picture of the x0 prediction at a step, from stock's own callback."""
    model = tiny.model_of(family)
    seen: dict[int, torch.Tensor] = {}
    with torch.inference_mode():
        tiny.guider(model).sample(
            Noise_RandomNoise(seed).generate_noise(tiny.latent()), tiny.latent()["samples"],
            comfy.samplers.sampler_object(sampler_name), sigmas.clone(),
            callback=lambda i, x0, x, n: seen.__setitem__(i, x0.clone()), seed=seed,
        )  # fmt: skip
        return tiny.PictureVAE().decode(model.model.process_latent_out(seen[step].cpu()))


@pytest.mark.parametrize("family", ["flow", "eps"])
@pytest.mark.parametrize("sampler_name", SAMPLERS)
def test_early_images_are_those_of_stocks_callback(family: str, sampler_name: str) -> None:
    verifier = Early()
    model = tiny.model_of(family)
    sampler, sigmas = comfy.samplers.sampler_object(sampler_name), tiny.sigmas(model, 6)
    report = tiny.search_custom(
        5, tiny.guider(model), sampler, sigmas, verifier=verifier, max_candidates=3, batch_size=3
    ).args[5]
    [early] = verifier.shown
    port = GuidedSampler(tiny.guider(model), sampler, sigmas, tiny.latent(), tiny.PictureVAE())
    for share, images in zip(verifier.early, early, strict=True):
        step = min(range(6), key=lambda i: abs(port.time(float(sigmas[i])) - share))
        for e, image in zip(report.finished, images, strict=True):
            expected = by_stock(family, sampler_name, sigmas, step, e.seed)[0]
            assert (image - expected).abs().max() <= 2e-5


def test_they_cost_no_model_call_and_change_no_image() -> None:
    plain = tiny.search(tiny.sd3(), max_candidates=3).args
    shown = tiny.search(tiny.sd3(), verifier=Early(), max_candidates=3).args
    assert torch.equal(plain[0]["samples"], shown[0]["samples"])
    assert (plain[5].nfe, plain[5].model_rows) == (shown[5].nfe, shown[5].model_rows)


def test_a_sampler_that_chooses_its_own_steps_is_refused_in_a_sentence() -> None:
    with pytest.raises(SearchError, match="chooses its steps itself"):
        tiny.search(tiny.sd3(), verifier=Early(), sampler_name="dpm_adaptive")


def test_a_batch_of_latents_and_a_video_show_as_many_early_images_as_finished_ones() -> None:
    for model, latent, count in ((tiny.sd3(), tiny.latent(batch=2), 2), (tiny.wan(), tiny.video_latent(), 3)):
        verifier = Early()
        tiny.search(model, verifier=verifier, latent_image=latent, max_candidates=2, batch_size=2)
        # where a candidate has several images, each is judged by itself
        assert [[len(images) for images in early] for early in verifier.shown] == 2 * [[count, count]]
