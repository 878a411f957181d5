"""auto on ComfyUI's own models: it knows whose early scores it has seen."""

from __future__ import annotations

import comfy.samplers
import comfy.supported_models
import pytest

from pack.nodes.guided_sampler import FAMILIES, GuidedSampler
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


@pytest.mark.parametrize("name, curve", [("ImageReward", "FLUX.1-dev, ImageReward"), ("CLIPScore", None)])
def test_an_unwired_algorithm_goes_by_the_model_and_the_verifier(name: str, curve: str | None) -> None:
    verifier = tiny.Later()
    verifier.name = name
    limits = {"max_candidates": 0, "max_nfe": 48}
    report = tiny.search(tiny.flux(), steps=6, sampler_name="euler", verifier=verifier, **limits).args[5]
    chosen = report.settings["algorithm"]
    assert chosen["name"] == ("pruned" if curve else "random") and chosen.get("curve") == curve
    assert report.nfe <= 48
