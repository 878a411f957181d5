"""Guided search on ComfyUI's own VAE and models: its slopes are right, it lifts scores, and it leaves no trace."""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import Any

import pytest
import torch

from pack import search
from pack.demo import paths
from pack.nodes.demo_world import load_demo_world
from pack.nodes.guided_sampler import GuidedSampler
from pack.nodes.memory import ManagedVerifier, managed
from pack.search.run import run
from pack.search.smc import PRESETS
from pack.search.space import Candidates
from pack.search.types import Row, advance, predict, slope
from pack.tests.nodes import tiny
from pack.verifiers.clip_score import load_clip_score

PROMPT = "a red circle left of a blue square"
STEP = 0.002


@pytest.fixture(scope="module")
def clip_score() -> ManagedVerifier:
    with torch.inference_mode():
        return managed(load_clip_score(str(paths.CLIP)))


def found(port: GuidedSampler, verifier: Any, algorithm: search.Algorithm, nfe: int) -> search.SearchReport:
    """A search in the demo world, as the executor runs nodes."""
    with torch.inference_mode():
        return run(algorithm, port, verifier, search.Budget(nfe=nfe), candidates=Candidates.of_seed(5), prompt=PROMPT)


@pytest.mark.parametrize("family", ["flow", "eps"])
def test_the_slope_is_that_of_finite_differences(family: str, clip_score: ManagedVerifier) -> None:
    port, rows = load_demo_world(family).sampler(PROMPT, steps=6), []

    def looks(space: Any, plan: Any) -> Any:
        moved = yield from advance(space.fresh(2), plan.sigmas[:4])
        rows.extend((yield from slope((yield from predict(moved)))))

    found(port, clip_score, search.Algorithm("looks", looks, acts_midway=True, guides=True), 100)
    for row in rows:
        assert row.gradient.shape == row.x0.shape and not row.gradient.requires_grad
        other = torch.randn(row.x0.shape, generator=torch.Generator().manual_seed(3))
        direction = row.gradient / row.gradient.norm() + 0.5 * other / other.norm()

        def score(step: float, row: Row = row, direction: torch.Tensor = direction) -> float:
            with torch.inference_mode():
                [images] = port.decode([replace(row, x0=row.x0 + step * direction)])
                return float(clip_score.score(images, PROMPT).double())

        expected = (score(STEP) - score(-STEP)) / (2 * STEP)
        assert float((row.gradient * direction).sum()) == pytest.approx(expected, rel=0.02)
        assert row.score == pytest.approx(score(0.0), abs=1e-6)


@pytest.mark.parametrize("chosen", [search.algorithm("guided"), search.algorithm("smc", **PRESETS["guided"])])
@pytest.mark.parametrize("family", ["flow", "eps"])
def test_guided_images_score_more_at_the_same_nfe(
    family: str, chosen: search.Algorithm, clip_score: ManagedVerifier
) -> None:
    port = load_demo_world(family).sampler(PROMPT, steps=10)
    plain, guided = (found(port, clip_score, each, 90) for each in (search.algorithm("random"), chosen))
    assert plain.nfe == guided.nfe == 90
    assert guided.finished[0].score == pytest.approx(plain.finished[0].score, abs=1e-5)
    lifted, before = (statistics.fmean(e.score for e in r.finished[1:]) for r in (guided, plain))
    assert lifted > before + 0.05


def test_the_model_the_vae_and_the_verifier_are_as_before(clip_score: ManagedVerifier) -> None:
    port = load_demo_world().sampler(PROMPT, steps=4)
    before = found(port, clip_score, search.algorithm("random"), 12)
    found(port, clip_score, search.algorithm("guided"), 24)
    after = found(port, clip_score, search.algorithm("random"), 12)
    assert [e.score for e in after.evaluations] == [e.score for e in before.evaluations]
    assert torch.equal(after.top[0].row.x, before.top[0].row.x)
    for network in (port.guider.model_patcher.model, port.decoder.vae.first_stage_model, clip_score.module):
        assert all(weight.grad is None for weight in network.parameters())


def test_a_verifier_without_a_slope_is_refused_before_the_model_is_called() -> None:
    class Ranks(tiny.Mean):
        differentiable = False

    port = load_demo_world().sampler(PROMPT, steps=4)
    with pytest.raises(search.SearchError, match="verifier: a gradient search follows the gradient"):
        found(port, Ranks(), search.algorithm("guided"), 24)
