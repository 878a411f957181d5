"""LPIPS and DISTS: the numbers of the published packages, and closeness to one or several reference images."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision import models

from pack.search import SearchError
from pack.tests.verifiers.samples.stacks import pictures, random_alpha_beta, random_linear, write_stack
from pack.verifiers.dists import load_dists
from pack.verifiers.lpips import load_lpips
from pack.verifiers.references import ReferenceVerifier

NAMES = {"alexnet": "alex", "vgg16": "vgg"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both stacks, the linear layers for both, and the weights of DISTS, all random."""
    folder = tmp_path_factory.mktemp("weights")
    for name, short in NAMES.items():
        write_stack(name, folder / f"{name}.pth")
        torch.save(random_linear(name), folder / f"{short}.pth")
    torch.save(random_alpha_beta(), folder / "weights.pt")
    return folder


def lpips(folder: Path, name: str = "alexnet", **more: Any) -> ReferenceVerifier:
    more = {"references": pictures(1), "size": 96, **more}
    return load_lpips(str(folder / f"{name}.pth"), str(folder / f"{NAMES[name]}.pth"), **more)


def dists(folder: Path, **more: Any) -> ReferenceVerifier:
    more = {"references": pictures(1), "size": 96, **more}
    return load_dists(str(folder / "vgg16.pth"), str(folder / "weights.pt"), **more)


BOTH = pytest.mark.parametrize("load", [lpips, dists])


@pytest.fixture
def published(folder: Path, references: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a reference package; what it takes for ImageNet weights are the random ones."""

    def stack(name: str) -> Any:
        with torch.device("meta"):
            features = getattr(models, name)(weights=None).features
        weights = torch.load(folder / f"{name}.pth", weights_only=True)
        features.load_state_dict({k.removeprefix("features."): v for k, v in weights.items()}, assign=True)
        return features

    stacks = {name: stack(name) for name in NAMES}
    for name in NAMES:
        monkeypatch.setattr(models, name, lambda name=name, **_: SimpleNamespace(features=stacks[name]))
    return importlib.import_module


def squares(count: int, seed: int) -> Tensor:
    """Pictures that need no resizing at 96 pixels."""
    return torch.rand(count, 96, 96, 3, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_lpips_is_that_of_the_published_package(
    name: str, precision: torch.dtype, folder: Path, published: Any
) -> None:
    images, reference = squares(3, 1), squares(1, 2)
    theirs = published("lpips").LPIPS(pretrained=False, net=NAMES[name], pnet_rand=True, verbose=False)
    theirs.load_state_dict(torch.load(folder / f"{NAMES[name]}.pth", weights_only=True), strict=False)
    theirs = theirs.to(precision)
    with torch.no_grad():
        x, y = (each.movedim(-1, 1).to(precision) for each in (images, reference))
        expected = theirs(x, y.expand_as(x), normalize=True).flatten()
    ours = lpips(folder, name, references=reference)
    distance = ours.module.to(precision)
    got = distance.distance(distance.look(x), distance.look(y))
    # their constants are single precision in any case
    assert (got - expected).abs().max() <= (1e-6 if precision == torch.float32 else 1e-8) * expected.max()
    ours.module.to(torch.float32)
    assert (ours.score(images, "") + expected).abs().max() <= 1e-6 * max(1.0, float(expected.max()))


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_dists_is_that_of_the_published_package(precision: torch.dtype, folder: Path, published: Any) -> None:
    images, reference = squares(3, 1), squares(1, 2)
    theirs = published("DISTS_pytorch").DISTS(load_weights=False)
    weights = torch.load(folder / "weights.pt", weights_only=True)
    theirs.alpha.data, theirs.beta.data = weights["alpha"], weights["beta"]
    theirs = theirs.to(precision)
    with torch.no_grad():
        x, y = (each.movedim(-1, 1).to(precision) for each in (images, reference))
        expected = theirs(x, y.expand_as(x))
    ours = dists(folder, references=reference)
    distance = ours.module.to(precision)
    got = distance.distance(distance.look(x), distance.look(y))
    # their covariance is a difference of large numbers, so in single precision theirs is the rougher one
    assert (got - expected).abs().max() <= (1e-6 if precision == torch.float32 else 1e-8)
    ours.module.to(torch.float32)
    assert (ours.score(images, "") + expected).abs().max() <= 1e-6


def test_the_weights_in_the_published_packages_have_the_layout_that_is_read(folder: Path, references: Path) -> None:
    for name, short in NAMES.items():
        file = references / "lpips" / "weights" / "v0.1" / f"{short}.pth"
        assert load_lpips(str(folder / f"{name}.pth"), str(file), pictures(1)).score(pictures(1), "") == 0
    file = references / "DISTS_pytorch" / "weights.pt"
    assert load_dists(str(folder / "vgg16.pth"), str(file), pictures(1)).score(pictures(1), "").abs() < 1e-6


@BOTH
def test_the_reference_itself_is_at_distance_0_and_more_noise_is_further(load: Any, folder: Path) -> None:
    reference = pictures(1)
    noise = torch.randn(reference.shape, generator=torch.Generator().manual_seed(3))
    images = torch.cat([(reference + amount * noise).clamp(0, 1) for amount in (0.0, 0.03, 0.1, 0.3)])
    scores = load(folder, references=reference).score(images, "").tolist()
    assert abs(scores[0]) < 1e-6 and sorted(scores, reverse=True) == scores and scores[1] < -1e-4


@BOTH
def test_of_several_references_the_mean_or_the_nearest_counts(load: Any, folder: Path) -> None:
    references, images = pictures(3, seed=8), pictures(2, seed=9)
    alone = torch.stack([load(folder, references=each[None]).score(images, "") for each in references])
    assert torch.allclose(load(folder, references=references).score(images, ""), alone.mean(dim=0), atol=1e-6)
    nearest = load(folder, references=references, over="nearest")
    assert torch.allclose(nearest.score(images, ""), alone.amax(dim=0), atol=1e-6)
    assert nearest.score(references[1:2], "").abs() < 1e-6


@BOTH
def test_shapes_that_differ_are_compared_and_an_alpha_channel_is_dropped(load: Any, folder: Path) -> None:
    reference = pictures(1)
    alpha = torch.cat([reference, torch.rand(*reference.shape[:3], 1)], dim=-1)
    plain = load(folder, references=reference).score(squares(2, 4), "")
    assert plain.isfinite().all()
    assert torch.allclose(load(folder, references=alpha).score(squares(2, 4), ""), plain, atol=1e-6)


@BOTH
def test_following_the_gradient_comes_closer_to_the_reference(load: Any, folder: Path) -> None:
    verifier = load(folder, references=pictures(1, seed=10), size=64)
    image = torch.full((1, 64, 64, 3), 0.5, requires_grad=True)  # silent channels: a plain root would give NaN
    optimiser = torch.optim.Adam([image], lr=0.02)
    before = float(verifier.score(image.detach(), ""))
    for _ in range(8):
        optimiser.zero_grad()
        (-verifier.score(image, "").sum()).backward()
        assert image.grad is not None and image.grad.isfinite().all()
        optimiser.step()
    assert float(verifier.score(image.detach(), "")) > 0.95 * before  # both are below 0


@BOTH
@pytest.mark.parametrize(
    "references, said",
    [
        (None, "references: got nothing; wire the image"),
        (torch.rand(4, 4, 3), r"references: got \(4, 4, 3\); expected \[R, H, W, 3\]"),
        (torch.full((1, 4, 4, 3), float("nan")), "references: got pixels that are no finite numbers"),
    ],
)
def test_without_a_usable_reference_there_is_a_sentence(load: Any, references: Any, said: str, folder: Path) -> None:
    with pytest.raises(SearchError, match=said):
        load(folder, references=references)


def test_files_that_do_not_belong_together_are_refused(folder: Path, tmp_path: Path) -> None:
    reference = pictures(1)
    with pytest.raises(SearchError, match="linear: vgg.pth does not belong to alexnet.*choose alex.pth"):
        load_lpips(str(folder / "alexnet.pth"), str(folder / "vgg.pth"), reference)
    with pytest.raises(SearchError, match="file: got alexnet; DISTS was fitted on VGG16"):
        load_dists(str(folder / "alexnet.pth"), str(folder / "weights.pt"), reference)
    with pytest.raises(SearchError, match="weights: alex.pth has .* expected 1475 of each"):
        load_dists(str(folder / "vgg16.pth"), str(folder / "alex.pth"), reference)
    with pytest.raises(SearchError, match="file: weights.pt is neither AlexNet nor VGG16"):
        load_lpips(str(folder / "weights.pt"), str(folder / "alex.pth"), reference)
    cut = {k: v for k, v in torch.load(folder / "alexnet.pth", weights_only=True).items() if "10" not in k}
    torch.save(cut, tmp_path / "cut.pth")
    with pytest.raises(SearchError, match="file: cut.pth is no alexnet.*features.10.bias: got nothing"):
        load_lpips(str(tmp_path / "cut.pth"), str(folder / "alex.pth"), reference)
    with pytest.raises(SearchError, match="over: got 'median'"):
        lpips(folder, over="median")


def test_building_a_stack_leaves_the_random_numbers_alone_and_reads_only_the_features(
    folder: Path, tmp_path: Path
) -> None:
    weights = torch.load(folder / "alexnet.pth", weights_only=True)
    torch.save({**weights, "classifier.1.weight": torch.zeros(4096, 9216)}, tmp_path / "whole.pth")
    state = torch.get_rng_state()
    verifier = load_lpips(str(tmp_path / "whole.pth"), str(folder / "alex.pth"), pictures(1))
    assert torch.equal(torch.get_rng_state(), state)
    assert sum(p.numel() for p in verifier.module.parameters()) == 2_469_696 + 1152
