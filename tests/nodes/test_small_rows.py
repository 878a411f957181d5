"""Search: Two-Fidelity over ComfyUI: scouts in fewer steps and pixels, and where fewer pixels are refused."""

from __future__ import annotations

from typing import Any

import comfy.sample
import comfy.samplers
import node_helpers
import pytest
import torch

from pack import search
from pack.nodes.algorithms import TwoFidelitySearch
from pack.nodes.guided_sampler import GuidedSampler
from pack.search import Row, SearchError
from pack.search.resolution import averaged, smaller_noise
from pack.tests.nodes import tiny
from pack.tests.nodes.test_conditions import controlled, regional
from pack.tests.nodes.test_lockstep import Ledger

FAMILIES = ["flow", "eps", "v_prediction"]


def port(model: Any, latent: Any = None, sampler_name: str = "euler", guider: Any = None) -> GuidedSampler:
    sampler = comfy.samplers.sampler_object(sampler_name)
    return GuidedSampler(
        guider or tiny.guider(model), sampler, tiny.sigmas(model, 4), latent or tiny.latent(16, 16), tiny.PictureVAE()
    )


def scouts(sampler: GuidedSampler, count: int, shrink: int) -> list[Row]:
    return search.Space(search.Candidates.of_seed(4), 4, sampler.sigmas[0]).scouts(count, shrink)


class Fixed:
    """A NOISE that is given."""

    def __init__(self, noise: torch.Tensor, seed: int) -> None:
        self.noise, self.seed = noise, seed

    def generate_noise(self, latent: Any) -> torch.Tensor:
        return self.noise


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shrink", [2, 4])
def test_a_small_row_is_stock_on_a_small_latent_with_the_smaller_noise(family: str, shrink: int) -> None:
    model = tiny.model_of(family)
    sampler = port(model)
    with torch.inference_mode():
        rows = sampler.advance(scouts(sampler, 3, shrink), sampler.sigmas, Ledger())
    for row in rows:
        large = comfy.sample.prepare_noise(tiny.latent(16, 16)["samples"], row.recipe.seed)
        noise = Fixed(smaller_noise(large, shrink), row.recipe.seed)
        side = 16 // shrink
        expected = tiny.stock_custom(
            noise, tiny.guider(model), sampler.sampler, sampler.schedule, tiny.latent(side, side)
        )
        assert tiny.difference({"samples": row.x}, expected) <= 1e-5
    assert [image.shape for image in sampler.decode(rows)] == [(1, side, side, 3)] * 3


def test_an_image_to_start_from_is_shrunk_too() -> None:
    model = tiny.model_of("flow")
    image = torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(3))
    sampler = port(model, {"samples": image})
    sigmas = sampler.sigmas[2:]
    sampler = GuidedSampler(
        tiny.guider(model), sampler.sampler, torch.tensor(sigmas), {"samples": image}, tiny.PictureVAE()
    )
    with torch.inference_mode():
        [row] = sampler.advance(scouts(sampler, 1, 2), sampler.sigmas, Ledger())
    noise = Fixed(smaller_noise(comfy.sample.prepare_noise(image, 4), 2), 4)
    small = {"samples": averaged(image, 2)}
    expected = tiny.stock_custom(noise, tiny.guider(model), sampler.sampler, sampler.schedule, small)
    assert tiny.difference({"samples": row.x}, expected) <= 1e-5


@pytest.mark.parametrize(
    "sampler_name", ["euler", "euler_ancestral", "dpmpp_2m", "dpmpp_sde", "dpm_fast", "dpm_adaptive", "uni_pc", "ddim"]
)
def test_scouts_of_half_the_size_run_with_samplers_of_every_kind_and_the_winner_is_stocks(sampler_name: str) -> None:
    model = tiny.model_of("flow" if sampler_name < "h" else "eps")
    out = tiny.search(
        model, sampler_name=sampler_name, steps=3, latent_image=tiny.latent(16, 16), max_candidates=3, batch_size=4,
        algorithm=tiny.execute(TwoFidelitySearch, effort=0.34, shrink=2).args[0],
    ).args  # fmt: skip
    report = out[5]
    assert len(report.finished) == 3 and sum(e.scout for e in report.evaluations) > 3
    assert all(e.score == e.score for e in report.evaluations)
    if sampler_name in ("euler", "dpmpp_2m", "euler_ancestral", "dpmpp_sde"):
        stock = tiny.stock(model, out[3], sampler_name=sampler_name, steps=3, latent_image=tiny.latent(16, 16))
        assert tiny.difference(out[0], stock) <= 1e-5


@pytest.mark.parametrize("shrink", [1, 2])
def test_the_micro_batch_changes_no_decision(shrink: int) -> None:
    reports = [
        tiny.search(
            tiny.model_of("flow"), steps=5, latent_image=tiny.latent(16, 16), max_nfe=60, max_candidates=0,
            batch_size=batch,
            algorithm=tiny.execute(TwoFidelitySearch, effort=0.4, shrink=shrink, agreement=0.8).args[0],
        ).args[5]
        for batch in (1, 3, 8)
    ]  # fmt: skip
    assert reports[0].scouting is not None and reports[0].nfe <= 60
    for report in reports[1:]:
        assert [e.recipe for e in report.evaluations] == [e.recipe for e in reports[0].evaluations]
        assert [e.score for e in report.evaluations] == pytest.approx(
            [e.score for e in reports[0].evaluations], abs=1e-5
        )


def test_a_small_row_counts_as_a_row() -> None:
    sampler, meter = port(tiny.model_of("flow")), Ledger()
    with torch.inference_mode():
        sampler.advance(scouts(sampler, 3, 2), sampler.sigmas, meter)
    assert meter.forwards == [3] * 4 and meter.entered == 2 * 12


def test_videos_keep_their_frames() -> None:
    sampler = port(tiny.wan(), tiny.video_latent())
    with torch.inference_mode():
        [row] = sampler.advance(scouts(sampler, 1, 2), sampler.sigmas, Ledger())
    assert row.x.shape == (1, 16, 3, 4, 4)


def refused() -> dict[str, tuple[Any, dict[str, Any], str]]:
    image = torch.zeros(1, 16, 16, 16)
    with_image = node_helpers.conditioning_set_values(tiny.conditioning(1), {"reference_latents": [image]})
    concat = node_helpers.conditioning_set_values(tiny.conditioning(1), {"concat_latent_image": image})
    text = "a ControlNet, an area, a mask or an image"
    return {
        "mask": (tiny.sd3(), {"latent_image": {"samples": image, "noise_mask": torch.ones(1, 1, 16, 16)}}, "a mask"),
        "odd": (tiny.sd3(), {"latent_image": tiny.latent(10, 14), "shrink": 4}, "14 x 10 is not divisible by that"),
        "small": (tiny.sd3(), {"latent_image": tiny.latent(8, 8), "shrink": 4}, "2 x 2 places"),
        "ControlNet": (tiny.sd3(), {"positive": controlled(7)}, text),
        "areas": (tiny.sd3(), {"positive": regional()}, text),
        "reference": (tiny.sd3(), {"positive": with_image}, text),
        "inpaint model": (tiny.sd3(), {"negative": concat}, text),
    }


@pytest.mark.parametrize("case", ["mask", "odd", "small", "ControlNet", "areas", "reference", "inpaint model"])
def test_what_has_a_place_in_the_picture_refuses_fewer_pixels_before_anything_is_spent(case: str) -> None:
    model, widgets, sentence = refused()[case]
    counted = tiny.Counted(model)
    widgets = {"latent_image": tiny.latent(16, 16), **widgets}
    chosen = tiny.execute(TwoFidelitySearch, effort=0.5, shrink=widgets.pop("shrink", 2)).args[0]
    with pytest.raises(SearchError, match=rf"two-fidelity: got shrink=\d, but .*{sentence}.*; set shrink to 1"):
        tiny.search(counted.model, algorithm=chosen, max_candidates=4, **widgets)
    assert counted.rows == 0


@pytest.mark.skipif(not tiny.HAS_MINIMAX, reason="this ComfyUI has no tiny model with nested latents")
def test_nested_latents_refuse_fewer_pixels() -> None:
    narrow = {"positive": tiny.conditioning(1, width=48), "negative": tiny.conditioning(2, width=48)}
    chosen = tiny.execute(TwoFidelitySearch, shrink=2).args[0]
    with pytest.raises(SearchError, match="not one picture or video"):
        tiny.search(tiny.minimax_h3(), latent_image=tiny.nested_latent(), algorithm=chosen, **narrow)


@pytest.mark.parametrize("case", ["mask", "ControlNet", "areas"])
def test_fewer_steps_alone_go_with_everything(case: str) -> None:
    model, widgets, _ = refused()[case]
    chosen = tiny.execute(TwoFidelitySearch, effort=0.5, agreement=0.8).args[0]
    report = tiny.search(model, steps=4, algorithm=chosen, max_candidates=3, **widgets).args[5]
    assert len(report.finished) == 3 and report.scouting is not None


def test_sigmas_that_end_in_noise_are_scouted_by_their_last_estimate() -> None:
    model = tiny.model_of("flow")
    sigmas = tiny.sigmas(model, 6)[:-1]
    chosen = tiny.execute(TwoFidelitySearch, effort=0.4, agreement=0.8).args[0]
    out = tiny.search_custom(
        3, tiny.guider(model), comfy.samplers.sampler_object("euler"), sigmas, max_candidates=3, algorithm=chosen
    )
    assert out.args[5].scouting.rendered == 2 and all(e.score == e.score for e in out.args[5].evaluations)
