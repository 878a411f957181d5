"""Save FID Statistics: what it writes is what Oracle FID and pytorch-fid read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import folder_paths
import numpy
import pytest
import torch

from pack.demo import paths
from pack.demo.fid_reference import demo_statistics, pictures
from pack.nodes.fid_node import SaveFIDStatistics
from pack.nodes.model_files import choices, register_folders
from pack.nodes.verifier_nodes import VerifierNode
from pack.search import SearchError
from pack.tests.nodes import tiny
from pack.verifiers.feature_sources import load_features
from pack.verifiers.fid_statistics import frechet_distance, read_statistics, statistics_of

register_folders()
FEATURES = paths.CLASSIFIER.name


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty models/verifiers, with that of the demo behind it."""
    before, endings = folder_paths.folder_names_and_paths["verifiers"]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "verifiers", ([str(tmp_path), *before], endings))
    return tmp_path


def save(images: list[torch.Tensor], name: str = "mine", features: str = FEATURES) -> Any:
    return tiny.execute(SaveFIDStatistics, images=images, features=[features], name=[name])


def test_what_it_writes_is_mean_and_covariance_of_the_features_of_all_images(folder: Path) -> None:
    images = [pictures(20, 1), torch.rand(1, 40, 90, 4, generator=torch.Generator().manual_seed(1)), pictures(3, 2)]
    assert save(images).args[0] == "mine.npz"
    source = load_features(str(paths.CLASSIFIER))
    with torch.no_grad():
        rows = torch.cat([source.features(batch[..., :3].movedim(-1, 1)) for batch in images]).double().numpy()
    with numpy.load(folder / "mine.npz") as stored:
        assert numpy.allclose(stored["mu"], rows.mean(axis=0), atol=1e-6)
        assert numpy.allclose(stored["sigma"], numpy.cov(rows, rowvar=False), atol=1e-5)


def test_oracle_fid_finds_the_file_and_scores_with_it(folder: Path) -> None:
    save([pictures(300, 1)])
    assert "mine.npz" in choices(["verifiers"], "fid_statistics.npz")
    widgets = {"verifier": "Oracle FID", "features": FEATURES, "statistics": "mine.npz"}
    oracle = tiny.execute(VerifierNode, verifier=widgets).args[0]
    values = []
    for images in (pictures(60, 5), torch.rand(60, 64, 64, 3, generator=torch.Generator().manual_seed(5))):
        oracle.reset()
        oracle.accept(images)
        values.append(oracle.set.value())
    assert values[0] < 0.5 * values[1]


def test_nothing_is_overwritten(folder: Path) -> None:
    names = [save([pictures(3, seed)]).args[0] for seed in range(3)]
    assert names == ["mine.npz", "mine_2.npz", "mine_3.npz"]
    assert sorted(path.name for path in folder.iterdir()) == names


def test_bad_input_is_refused_with_a_sentence(folder: Path) -> None:
    for name in ("", "../up", "a/b", ".hidden"):
        with pytest.raises(SearchError, match="name: got .*expected letters"):
            save([pictures(3, 1)], name=name)
    with pytest.raises(SearchError, match="images: got 1 with features; expected at least 2"):
        save([pictures(1, 1)])
    with pytest.raises(SearchError, match="put it into"):
        save([pictures(3, 1)], features="not there.pth")
    assert list(folder.iterdir()) == []


def test_two_halves_of_the_demo_world_are_close_and_each_is_reproducible(tmp_path: Path) -> None:
    one, again, other = demo_statistics(400, 1), demo_statistics(400, 1), demo_statistics(400, 2)
    assert torch.equal(one.mu, again.mu) and frechet_distance(one, again) == pytest.approx(0, abs=1e-3)
    far = statistics_of(load_features(str(paths.CLASSIFIER)).features(torch.rand(400, 3, 64, 64)).detach())
    assert frechet_distance(one, other) < 0.05 * frechet_distance(one, far)


def test_the_command_line_writes_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pack.demo import fid_reference

    monkeypatch.setattr("sys.argv", ["fid_reference", str(tmp_path / "demo.npz"), "--count", "50"])
    assert fid_reference.main() == 0
    assert read_statistics(str(tmp_path / "demo.npz")).mu.shape == (192,)
    monkeypatch.setattr("sys.argv", ["fid_reference", str(tmp_path / "demo.npz"), "--features", "nowhere.pth"])
    assert fid_reference.main() == 1
