"""preview_vae: what is not finished is decoded by it, finished images by the VAE, and neither by the other."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import folder_paths
import pytest
import torch
from comfy.taesd.taesd import TAESD
from safetensors.torch import save_file

import nodes as host_nodes
from pack import search
from pack.nodes.curve_node import MeasureCurve
from pack.nodes.series_node import SearchPrompts
from pack.search import ALGORITHMS, GUIDED, MIDWAY, SearchError
from pack.tests.nodes import tiny


class Seen(tiny.PictureVAE):
    """Counts the latents that it decodes; its pictures are that bright."""

    def __init__(self, light: float = 1.0) -> None:
        self.light, self.rows = light, 0

    def decode(self, samples: torch.Tensor) -> torch.Tensor:
        self.rows += len(samples)
        return self.light * super().decode(samples)


class Flat(tiny.PictureVAE):
    """Passes no gradient."""

    def decode(self, samples: torch.Tensor) -> torch.Tensor:
        return super().decode(samples).detach()


class Tiled(tiny.PictureVAE):
    """Passes a gradient of one picture alone, as ComfyUI's VAE does where memory runs short and it decodes in tiles."""

    def decode(self, samples: torch.Tensor) -> torch.Tensor:
        images = super().decode(samples)
        return images if len(samples) == 1 else images.detach()


class Foreign(tiny.PictureVAE):
    """Takes latents of four channels."""

    latent_channels = 4

    def decode(self, samples: torch.Tensor) -> torch.Tensor:
        raise RuntimeError(f"expected 4 channels, got {samples.shape[1]}")


def searched(name: str, **settings: Any) -> search.SearchReport:
    budget = {"steps": 8, "max_candidates": 0, "max_nfe": 120, **settings}
    report: search.SearchReport = tiny.search(tiny.sd3(), algorithm=search.algorithm(name), **budget).args[5]
    return report


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_looks_through_the_preview_vae_and_finishes_through_the_vae(name: str) -> None:
    vae, preview = Seen(), Seen(0.5)
    report = searched(name, vae=vae, preview_vae=preview, batch_size=3)
    looks = [e for e in report.evaluations if e.candidate is None]
    assert looks or name not in MIDWAY - {"evolution"}  # it scores what is finished, and goes back from there
    assert preview.rows == len(looks) and vae.rows == len(report.finished)
    assert all(0 < e.score < 0.5 for e in looks)  # brightness: a half at most
    best = report.top[0]
    assert torch.equal(best.images, tiny.PictureVAE().decode(best.row.x))
    assert best.evaluation.score == pytest.approx(float(best.images.mean()), abs=1e-6)
    assert ("what was not finished was decoded by preview_vae" in report.notes) is bool(looks)


def test_without_one_the_vae_shows_everything() -> None:
    one, two = Seen(), Seen()
    alone = searched("pruned", vae=one)
    both = searched("pruned", vae=two, preview_vae=two)
    assert one.rows == two.rows == len(alone.evaluations)
    assert [e.score for e in alone.evaluations] == [e.score for e in both.evaluations]
    assert not any("preview_vae" in note for note in alone.notes)


@pytest.mark.parametrize("name", GUIDED)
def test_guidance_needs_the_gradient_of_the_preview_vae_alone(name: str) -> None:
    report = searched(name, vae=Flat(), preview_vae=tiny.PictureVAE())
    assert any(o["op"] == "uphill" for e in report.finished for o in e.recipe)
    with pytest.raises(SearchError, match="^preview_vae: no gradient passes"):
        searched(name, vae=tiny.PictureVAE(), preview_vae=Flat())


@pytest.mark.parametrize("name", GUIDED)
def test_what_passes_no_gradient_of_several_pictures_goes_one_by_one(name: str) -> None:
    tiled, plain = (searched(name, preview_vae=vae, batch_size=4) for vae in (Tiled(), tiny.PictureVAE()))
    assert [e.score for e in tiled.evaluations] == pytest.approx([e.score for e in plain.evaluations], abs=1e-4)
    assert any(note.startswith("VAE: out of memory") and note.endswith("batch 2 -> 1") for note in tiled.notes)


@pytest.mark.parametrize("name", ["pruned", "guided"])
def test_a_taesd_as_load_vae_makes_it_can_be_wired(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = TAESD(latent_channels=16)
    for part in ("encoder", "decoder"):
        save_file(tiny.weights_of(getattr(whole, f"taesd_{part}")), tmp_path / f"taesd3_{part}.safetensors")
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "vae_approx", ([str(tmp_path)], {".safetensors"}))
    with torch.inference_mode():
        assert "taesd3" in host_nodes.VAELoader.vae_list(host_nodes.VAELoader)
        [small] = host_nodes.VAELoader().load_vae("taesd3")
    report = searched(name, preview_vae=small, max_nfe=60)
    looks = [e for e in report.evaluations if e.candidate is None]
    assert looks and all(math.isfinite(e.score) for e in report.evaluations)
    assert report.top[0].images.shape == (1, 8, 8, 3)  # of the VAE


def test_one_of_another_model_is_refused_before_anything_is_rendered() -> None:
    counted = tiny.Counted(tiny.sd3())
    with pytest.raises(SearchError, match="^preview_vae: it could not decode a latent of shape .*expected 4 channels"):
        tiny.search(counted.model, preview_vae=Foreign(), max_candidates=2)
    assert counted.rows == 0


def test_a_curve_is_measured_through_the_preview_vae() -> None:
    vae, preview = Seen(), Seen()
    inputs = {**tiny.WIDGETS, "steps": 10, "vae": vae, "verifier": tiny.Mean(), "preview_vae": preview}
    report = tiny.execute(MeasureCurve, model=tiny.sd3(), seed=5, max_candidates=4, looks=3, **inputs).args[4]
    assert vae.rows == len(report.finished) == 4 and preview.rows == 3 * 4


def test_the_nodes_that_search_have_the_input_last_and_optional() -> None:
    for node in (tiny.SearchSampler, tiny.SearchSamplerAdvanced, MeasureCurve, SearchPrompts):
        last = node.define_schema().inputs[-1]
        assert last.id == "preview_vae" and last.optional
