"""Frechet distances against pytorch-fid and formulas in closed form, and statistics files."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

from pack.search import SearchError
from pack.verifiers.fid_statistics import (
    Statistics,
    frechet_distance,
    read_statistics,
    statistics_of,
    write_statistics,
)
from pack.verifiers.growing_sets import FrechetSet, InceptionSet


def features(count: int, width: int, seed: int, shift: float = 0.0) -> Tensor:
    """Correlated features [count, width]."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator).double() / width**0.5
    return torch.randn(count, width, generator=generator).double() @ mixing + 1.0 + shift


@pytest.fixture
def published(references: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """pytorch-fid's distance. It calls SciPy's matrix root with an argument that SciPy 1.18 takes no more."""
    module = importlib.import_module("pytorch_fid.fid_score")
    root = module.linalg.sqrtm
    monkeypatch.setattr(module, "linalg", SimpleNamespace(sqrtm=lambda matrix, disp: (root(matrix), 0.0)))
    return module.calculate_frechet_distance


@pytest.mark.parametrize("count, width", [(200, 24), (40, 24), (10, 24), (2, 24), (60, 2)])
def test_the_distance_is_that_of_pytorch_fid(count: int, width: int, published: Any) -> None:
    reference = statistics_of(features(500, width, 1))
    rows = features(count, width, 2, shift=0.3)
    sigma = numpy.cov(rows.numpy(), rowvar=False)
    expected = float(published(rows.mean(dim=0).numpy(), sigma, reference.mu.numpy(), reference.sigma.numpy()))
    assert frechet_distance(statistics_of(rows), reference) == pytest.approx(expected, rel=1e-5)
    grown = FrechetSet(reference)
    grown.add(rows)
    assert grown.value() == pytest.approx(expected, rel=1e-5)
    without_last = FrechetSet(reference)
    without_last.add(rows[:-1])
    assert float(without_last.with_each(rows[-1:])[0]) == pytest.approx(expected, rel=1e-5)


def test_the_distance_of_gaussians_along_the_axes_has_a_closed_form() -> None:
    a = Statistics(torch.tensor([0.0, 1.0]).double(), torch.tensor([4.0, 1.0]).double().diag())
    b = Statistics(torch.tensor([3.0, 1.0]).double(), torch.tensor([1.0, 9.0]).double().diag())
    assert frechet_distance(a, b) == pytest.approx(9 + (2 - 1) ** 2 + (1 - 3) ** 2, abs=1e-12)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-12)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), abs=1e-12)


def test_the_distance_does_not_jump_where_inner_products_give_way_to_outer_ones() -> None:
    reference, rows = statistics_of(features(300, 12, 1)), features(40, 12, 2)
    grown = FrechetSet(reference)
    for count, row in enumerate(rows):
        predicted = float(grown.with_each(row[None])[0])
        grown.add(row[None])
        assert grown.count == count + 1 and grown.value() == pytest.approx(predicted, rel=1e-6)
        if count:
            whole = statistics_of(rows[: count + 1])
            assert grown.value() == pytest.approx(frechet_distance(whole, reference), rel=1e-6)


def test_a_set_of_one_image_has_no_covariance_of_its_own() -> None:
    reference, rows = statistics_of(features(300, 12, 1)), features(3, 12, 2)
    grown = FrechetSet(reference)
    assert math.isnan(grown.value())
    expected = ((rows - reference.mu) ** 2).sum(dim=1) + reference.sigma.trace()
    assert torch.allclose(grown.with_each(rows), expected)


def test_asking_does_not_change_the_set_and_rows_are_alone() -> None:
    reference, rows = statistics_of(features(300, 12, 1)), features(30, 12, 2)
    for size in (0, 1, 5, 11, 12, 20):
        grown = FrechetSet(reference)
        grown.add(rows[:size])
        together = grown.with_each(rows[20:])
        assert torch.equal(torch.cat([grown.with_each(row[None]) for row in rows[20:]]), together)
        assert grown.count == size


def test_inception_score_is_that_of_its_definition() -> None:
    logits = torch.randn(9, 5, generator=torch.Generator().manual_seed(1)).double()
    p = logits.softmax(dim=1)
    grown = InceptionSet(5)
    assert math.isnan(grown.value())
    for count in range(1, 10):
        predicted = float(grown.with_each(logits[count - 1 : count])[0])
        grown.add(logits[count - 1 : count])
        mean = p[:count].mean(dim=0)
        expected = float((p[:count] * (p[:count] / mean).log()).sum(dim=1).mean().exp())
        assert grown.value() == pytest.approx(expected, rel=1e-12)
        if count > 1:
            assert predicted == pytest.approx(expected, rel=1e-12)
    sure = torch.eye(5).double() * 100
    grown = InceptionSet(5)
    grown.add(sure)
    assert grown.value() == pytest.approx(5)


def test_the_first_image_of_an_inception_score_is_the_one_that_is_sure_of_its_class() -> None:
    scores = InceptionSet(4).with_each(torch.tensor([[0.0, 0, 0, 0], [2.0, 0, 0, 0], [50.0, 0, 0, 0]])).tolist()
    assert scores == sorted(scores) and scores[0] == pytest.approx(1) and scores[2] == pytest.approx(4)


def test_statistics_survive_their_file_and_numpy_reads_it(tmp_path: Path) -> None:
    made = statistics_of(features(50, 6, 1))
    write_statistics(tmp_path / "sub" / "a.npz", made)
    write_statistics(tmp_path / "sub" / "a.npz", made)
    back = read_statistics(str(tmp_path / "sub" / "a.npz"))
    assert torch.equal(back.mu, made.mu) and torch.allclose(back.sigma, made.sigma, rtol=0, atol=1e-15)
    with numpy.load(tmp_path / "sub" / "a.npz") as stored:
        assert sorted(stored) == ["mu", "sigma"] and stored["sigma"].shape == (6, 6)
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["a.npz"]


@pytest.mark.parametrize("count", [0, 1])
def test_statistics_need_two_images(count: int) -> None:
    with pytest.raises(SearchError, match=f"images: got {count} with features; expected at least 2"):
        statistics_of(torch.rand(count, 4))


def bad_files(folder: Path) -> dict[str, tuple[str, str]]:
    """Files that hold no statistics, and what is said of them."""
    good = numpy.eye(3)
    skewed = good.copy()
    skewed[0, 1] = 0.5
    numpy.savez(folder / "shapes.npz", mu=numpy.zeros(4), sigma=good)
    numpy.savez(folder / "skewed.npz", mu=numpy.zeros(3), sigma=skewed)
    numpy.savez(folder / "negative.npz", mu=numpy.zeros(3), sigma=-good)
    numpy.savez(folder / "nan.npz", mu=numpy.full(3, numpy.nan), sigma=good)
    numpy.savez(folder / "missing.npz", mu=numpy.zeros(3))
    numpy.savez(folder / "pickle.npz", mu=numpy.array([{"a": 1}], dtype=object), sigma=good)
    numpy.save(folder / "array", numpy.zeros(3))
    (folder / "array.npy").rename(folder / "array.npz")
    (folder / "text.npz").write_text("no archive")
    (folder / "empty.npz").write_bytes(b"")
    return {
        "": ("", "no file is chosen"), "gone": ("gone.npz", "is not in"), "other": ("a.safetensors", "is no .npz file"),
        "shapes": ("shapes.npz", r"mu \(4,\) and sigma \(3, 3\)"), "skewed": ("skewed.npz", "no covariance"),
        "negative": ("negative.npz", "no covariance"), "nan": ("nan.npz", "not finite"),
        **{name: (f"{name}.npz", "is damaged or has no mu") for name in
           ("missing", "pickle", "array", "text", "empty")},
    }  # fmt: skip


def test_a_file_that_holds_no_statistics_is_refused_with_a_sentence(tmp_path: Path) -> None:
    for name, said in bad_files(tmp_path).values():
        with pytest.raises(SearchError, match=f"statistics: .*{said}") as error:
            read_statistics(str(tmp_path / name) if name else "")
        assert "\n" not in str(error.value)
