"""auto on ComfyUI's own models: it knows whose early scores it has seen."""

from __future__ import annotations

from typing import Any

import comfy.samplers
import comfy.supported_models
import pytest

from pack.benchmarks.equal_nfe import LOOK_COSTS as CHARGED
from pack.benchmarks.look_cost import RESULTS
from pack.nodes.guided_sampler import FAMILIES, LOOK_COSTS, GuidedSampler
from pack.search.curves import CURVES
from pack.tests.nodes import tiny


def test_every_known_family_is_a_class_of_the_host_and_has_curves() -> None:
    hosts = {kind.__name__ for kind in comfy.supported_models.models}
    assert set(FAMILIES) <= hosts
    assert set(FAMILIES.values()) == {name.split(", ")[0] for name in CURVES if ", " in name}


@pytest.mark.parametrize("make, family", [(tiny.flux, "FLUX.1-dev"), (tiny.sd3, ""), (tiny.wan, "")])
def test_the_family_is_that_of_the_loaded_model(make: object, family: str) -> None:
    model = make()  # type: ignore[operator]
    latent = tiny.video_latent() if make is tiny.wan else tiny.latent()
    sampler = comfy.samplers.sampler_object("euler")
    assert GuidedSampler(tiny.guider(model), sampler, tiny.sigmas(model), latent, None).family == family


def test_what_a_look_costs_is_what_the_benchmark_says_of_the_family() -> None:
    written = (RESULTS / "look_cost.md").read_text(encoding="utf-8")
    for family, costs in LOOK_COSTS.items():
        rows = [line.split(" | ") for line in written.splitlines() if line.startswith(f"| {family or 'SDXL'}")]
        assert [float(row[4]) for row in rows] == list(costs)
        for name, cost in zip((f"{family}", f"{family}, TAESD"), costs, strict=True):
            assert not family or CHARGED[name] == cost


@pytest.mark.parametrize("preview", [False, True])
@pytest.mark.parametrize("make, family", [(tiny.flux, "FLUX.1-dev"), (tiny.sd3, "")])
def test_a_look_through_a_small_vae_costs_less(make: Any, family: str, preview: bool) -> None:
    model, small = make(), {"preview_vae": tiny.PictureVAE()} if preview else {}
    port = GuidedSampler(
        tiny.guider(model), comfy.samplers.sampler_object("euler"), tiny.sigmas(model), tiny.latent(),
        tiny.PictureVAE(), **small,
    )  # fmt: skip
    assert port.look_cost == LOOK_COSTS[family][preview]


@pytest.mark.parametrize("name, curve", [("ImageReward", "FLUX.1-dev, ImageReward"), ("CLIPScore", None)])
def test_an_unwired_algorithm_goes_by_the_model_and_the_verifier(name: str, curve: str | None) -> None:
    verifier = tiny.Later()
    verifier.name = name
    limits = {"max_candidates": 0, "max_nfe": 48}
    report = tiny.search(tiny.flux(), steps=6, sampler_name="euler", verifier=verifier, **limits).args[5]
    chosen = report.settings["algorithm"]
    assert chosen["name"] == ("pruned" if curve else "random") and chosen.get("curve") == curve
    assert report.nfe <= 48
