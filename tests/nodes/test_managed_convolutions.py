"""Convolutional networks under ComfyUI's memory manager score as they do without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pack.nodes.memory import ManagedVerifier, managed
from pack.tests.verifiers.samples import dists, lpips
from pack.tests.verifiers.samples.stacks import pictures
from pack.tests.verifiers.test_inception import random_inception
from pack.verifiers.dists import load_dists
from pack.verifiers.feature_sources import load_features
from pack.verifiers.lpips import load_lpips


@pytest.mark.parametrize("sample, load", [(lpips, load_lpips), (dists, load_dists)])
def test_a_distance_from_references_is_the_same_with_its_gradient(sample: Any, load: Any, tmp_path: Path) -> None:
    settings = sample.settings(tmp_path)
    expected = load(**settings).score(pictures(2, seed=20), "")
    with torch.inference_mode():
        made = managed(load(**settings))
        assert torch.allclose(made.score(pictures(2, seed=20), ""), expected, atol=1e-6)
    assert all(p.dtype == torch.float32 for p in made.module.parameters())
    pixels = pictures(2, seed=20).requires_grad_()
    made.score(pixels, "").sum().backward()
    assert pixels.grad is not None and pixels.grad.isfinite().all() and pixels.grad.any()


def test_inception_features_are_the_same(tmp_path: Path) -> None:
    torch.save(random_inception(), tmp_path / "inception.pth")
    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    source = load_features(str(tmp_path / "inception.pth"))
    assert source.logits is not None
    with torch.inference_mode():
        expected, logits = source.features(pixels), source.logits(pixels)
        held = ManagedVerifier(source)
        held.load()
        assert torch.allclose(source.features(pixels), expected, atol=1e-5)
        assert torch.allclose(source.logits(pixels), logits, atol=1e-5)
