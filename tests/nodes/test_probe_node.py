"""Seed Probe on the real host: a verdict from a finished search, and a note in the report where seeds collapse."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pack.nodes.algorithms import AxesSearch
from pack.nodes.demo_world import load_demo_world
from pack.nodes.probe_node import SeedProbe
from pack.nodes.search_sampler import SearchSampler
from pack.nodes.verifier_nodes import ScoreImages
from pack.search import SearchError
from pack.search.probe import expected_top, probe
from pack.tests.nodes import tiny
from pack.verifiers.demo_set import demo_ensemble

PROMPT = "two red circles left of a blue square"


def found(latent: dict[str, Any], **settings: Any) -> Any:
    world = load_demo_world("flow")
    inputs: dict[str, Any] = {
        "model": world.model, "seed": 3, "steps": 8, "cfg": 3.0, "sampler_name": "euler", "scheduler": "simple",
        "positive": world.conditioning(PROMPT), "negative": world.conditioning(""), "latent_image": latent,
        "denoise": 1.0, "vae": world.vae, "verifier": demo_ensemble(), "prompt": PROMPT, "max_candidates": 6,
    }  # fmt: skip
    return tiny.execute(SearchSampler, **{**inputs, **settings})


def test_seeds_of_the_demo_world_differ_and_those_of_a_weak_image_to_image_collapse() -> None:
    empty = {"samples": tiny.latent()["samples"]}
    whole = found(empty)
    verdict, gain = tiny.execute(SeedProbe, report=whole.args[5]).args
    assert verdict.startswith("Seeds differ enough") and not any("Seeds" in note for note in whole.args[5].notes)
    assert gain == pytest.approx(probe(whole.args[5]).spread * expected_top(16))
    weak = found(whole.args[0], denoise=0.05, steps=2)
    verdict, less = tiny.execute(SeedProbe, report=weak.args[5], candidates=4).args
    assert verdict.startswith("Seeds collapse: use Search: Axes") and 0 < less < gain / 4
    assert weak.args[5].notes == [verdict.splitlines()[0]]
    assert weak.ui["noise_search"][0]["notes"] == weak.args[5].notes


def test_the_scales_of_managed_verifiers_reach_the_report() -> None:
    settings = tiny.search(tiny.sd3(), max_candidates=2).args[5].settings
    assert settings["scales"] == {} and settings["pooled"] is False
    scales = found({"samples": tiny.latent()["samples"]}, max_candidates=1, steps=1).args[5].settings["scales"]
    members = demo_ensemble().members
    assert scales == {member.name: member.verifier.scale[1] for member in members} and len(scales) == 2


def test_a_report_of_too_few_seeds_is_refused_and_gets_no_note() -> None:
    chosen = tiny.execute(AxesSearch).args[0]
    for report in (
        tiny.search(tiny.sd3(), max_candidates=3).args[5],
        tiny.search(tiny.sd3(), max_candidates=8, algorithm=chosen).args[5],
    ):
        with pytest.raises(SearchError, match="expected at least 4"):
            tiny.execute(SeedProbe, report=report)
        assert report.notes == []


def test_scored_images_of_stock_nodes_are_probed_too() -> None:
    images = torch.rand(6, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    flat = images.mean(dim=(1, 2), keepdim=True).expand(images.shape)
    for shown, word in ((images, "pictures differ by"), (flat, "collapse")):
        report = tiny.execute(ScoreImages, images=shown, verifier=tiny.Mean(), prompt="").args[2]
        verdict, _ = tiny.execute(SeedProbe, report=report).args
        assert word in verdict and verdict.splitlines()[1].startswith("6 seeds")
    measured = tiny.execute(ScoreImages, images=images, verifier=demo_ensemble(), prompt=PROMPT).args[2]
    assert len(measured.settings["scales"]) == 2
