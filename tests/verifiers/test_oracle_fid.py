"""Oracle FID and Inception Score: greedy growth, the set that scoring leaves alone, and sources of features."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pack.demo import paths, scenes
from pack.search import SearchError
from pack.tests.verifiers.conftest import loaded
from pack.verifiers.feature_sources import FeatureSource, load_features
from pack.verifiers.fid_statistics import frechet_distance, read_statistics, statistics_of, write_statistics
from pack.verifiers.growing_sets import FrechetSet, InceptionSet
from pack.verifiers.oracle_fid import OracleVerifier, load_inception_score, load_oracle_fid


class Corners(nn.Module):
    """Features of a picture: its pixels, as they are. A world where every feature can be made to order."""

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels.flatten(1)


def pixel_world(reference: Tensor) -> OracleVerifier:
    """Oracle FID over plain pixels [N, D] of pictures with D / 3 pixels."""
    statistics, network = statistics_of(reference), Corners()
    return OracleVerifier(
        "FID", FeatureSource("pixels", network, network), network, lambda: FrechetSet(statistics), -1.0
    )


def as_images(rows: Tensor) -> Tensor:
    """Rows [N, 3 x 4] -> pictures [N, 2, 2, 3] whose features they are."""
    return rows.unflatten(1, (3, 2, 2)).movedim(1, -1).float()


def uniform(count: int, seed: int) -> Tensor:
    return torch.rand(count, 12, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("candidates", [2, 8])
def test_greedy_growth_makes_a_better_set_than_random_picks(candidates: int) -> None:
    reference = uniform(4000, 1)
    greedy, any_pick = pixel_world(reference), pixel_world(reference)
    for prompt in range(40):
        # what a poor model draws: too dark and too much alike
        images = as_images(0.7 * uniform(candidates, 100 + prompt) ** 1.5)
        best = int(greedy.score(images, "").argmax())
        greedy.accept(images[best : best + 1])
        any_pick.accept(images[:1])
    assert greedy.set.count == any_pick.set.count == 40
    assert greedy.set.value() < {2: 0.8, 8: 0.5}[candidates] * any_pick.set.value()


def test_the_winners_score_is_the_measure_of_the_set_that_it_joins() -> None:
    for verifier, sign in ((pixel_world(uniform(200, 1)), -1.0), (class_world(), 1.0)):
        images = as_images(uniform(30, 2))
        for image in images.split(1):
            score = float(verifier.score(image, ""))
            verifier.accept(image)
            if verifier.set.count > 1 or sign < 0:
                assert score == pytest.approx(sign * verifier.set.value(), rel=1e-5)


def class_world() -> OracleVerifier:
    network = Corners()
    source = FeatureSource("pixels", network, network, network, 12)
    return OracleVerifier("IS", source, network, lambda: InceptionSet(12), 1.0)


def test_scoring_leaves_the_set_alone_and_reset_empties_it() -> None:
    verifier, images = pixel_world(uniform(200, 1)), as_images(uniform(6, 2))
    fresh = verifier.score(images, "")
    verifier.accept(images[:3])
    value = verifier.set.value()
    later = verifier.score(images, "")
    assert verifier.set.count == 3 and verifier.set.value() == value and torch.equal(verifier.score(images, ""), later)
    assert not torch.equal(later, fresh)
    verifier.reset()
    assert verifier.set.count == 0 and torch.equal(verifier.score(images, ""), fresh)


def test_one_accept_of_many_images_is_many_accepts_of_one() -> None:
    images = as_images(uniform(40, 2))
    one, many = pixel_world(uniform(200, 1)), pixel_world(uniform(200, 1))
    one.accept(images)
    for image in images.split(1):
        many.accept(image)
    assert one.set.count == 40 and one.set.value() == pytest.approx(many.set.value(), rel=1e-12)


def test_an_image_without_finite_features_is_not_judged_and_not_accepted() -> None:
    verifier, images = pixel_world(uniform(200, 1)), as_images(uniform(3, 2))
    images[1, 0, 0, 0] = float("nan")
    assert verifier.score(images, "").isnan().tolist() == [False, True, False]
    verifier.accept(images)
    assert verifier.set.count == 2


@pytest.mark.parametrize("key", ["oracle_fid", "inception_score"])
def test_a_set_that_has_grown_keeps_the_contract(key: str, tmp_path: Path, drawn: Tensor) -> None:
    from pack.verifiers.testing import check_verifier

    verifier: Any = loaded(key, tmp_path)
    noise = torch.rand(5, 64, 64, 3, generator=torch.Generator().manual_seed(1))
    verifier.accept(noise)
    check_verifier(verifier, drawn, "", tolerance=1e-4)
    assert verifier.set.count == 5


def demo_pictures(count: int, seed: int, text: str | None = None) -> Tensor:
    rng = random.Random(seed)
    shown = [scenes.random_scene(rng) if text is None else scenes.parse(text) for _ in range(count)]
    return scenes.render([scenes.layout(scene, rng) for scene in shown])


@pytest.mark.parametrize("file, width", [(paths.CLASSIFIER, 192), (paths.CLIP / "model.safetensors", None)])
def test_in_the_demo_world_the_distance_tells_variety_from_monotony_and_noise(
    file: Path, width: int | None, tmp_path: Path
) -> None:
    source = load_features(str(file))
    with torch.no_grad():
        reference, varied, alike, noise = (
            source.features(images.movedim(-1, 1)).double()
            for images in (
                demo_pictures(600, 1), demo_pictures(200, 2), demo_pictures(200, 3, "two red circles"),
                torch.rand(200, 64, 64, 3, generator=torch.Generator().manual_seed(4)),
            )
        )  # fmt: skip
    assert width is None or reference.shape[1] == width
    statistics = statistics_of(reference)
    near, far, farther = (frechet_distance(statistics_of(each), statistics) for each in (varied, alike, noise))
    assert near < 0.5 * far and near < 0.2 * farther
    write_statistics(tmp_path / "demo.npz", statistics)
    verifier = load_oracle_fid(str(file), str(tmp_path / "demo.npz"))
    verifier.accept(demo_pictures(200, 2))
    assert verifier.set.value() == pytest.approx(near, rel=1e-3)


def test_the_demo_classifiers_logits_are_its_own() -> None:
    from pack.demo import classifier

    source, network = load_features(str(paths.CLASSIFIER)), classifier.load(paths.CLASSIFIER)
    pixels = demo_pictures(4, 1).movedim(-1, 1)
    assert source.logits is not None and source.classes == 24
    with torch.no_grad():
        assert torch.allclose(source.logits(pixels), network(pixels), atol=1e-5)


def test_what_does_not_belong_together_is_refused(tmp_path: Path) -> None:
    write_statistics(tmp_path / "other.npz", statistics_of(uniform(30, 1)))
    with pytest.raises(SearchError, match="statistics: got a mean of 12 numbers, but Demo Classifier gives 192"):
        load_oracle_fid(str(paths.CLASSIFIER), str(tmp_path / "other.npz"))
    with pytest.raises(SearchError, match="features: .* is no classifier"):
        load_inception_score(str(paths.CLIP / "model.safetensors"))
    with pytest.raises(SearchError, match="for FID as it is published: get pt_inception"):
        load_oracle_fid(str(paths.VAE), str(tmp_path / "other.npz"))
    assert len(read_statistics(str(tmp_path / "other.npz")).mu) == 12
