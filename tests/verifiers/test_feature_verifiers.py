"""Reference similarity and the self-supervised verifier, which compare pictures in an image tower's features."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from pack.search import SearchError
from pack.tests.verifiers.samples import towers
from pack.verifiers.reference_similarity import load_reference_similarity
from pack.verifiers.self_supervised import ONLY_FINISHED, load_self_supervised


@pytest.fixture(scope="session")
def dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return towers.dinov2(tmp_path_factory.mktemp("dino") / "tiny")


@pytest.fixture(scope="session")
def files(dino: Path, clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for each family."""
    return {"dino": dino, "siglip": towers.siglip(tmp_path_factory.mktemp("siglip") / "tiny"), "clip": clip_folder}


def pictures(count: int, seed: int, height: int = 64, width: int = 64) -> Tensor:
    """Soft random pictures [count, height, width, 3]."""
    coarse = torch.rand(count, 3, 5, 5, generator=torch.Generator().manual_seed(seed)) * 0.6 + 0.2
    return functional.interpolate(coarse, (height, width), mode="bilinear").movedim(1, -1)


def by_transformers(folder: Path, images: Tensor) -> Tensor:
    """Features of length 1 by transformers' own model and image processor."""
    from transformers import AutoImageProcessor, AutoModel

    model = AutoModel.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder, do_rescale=False)
    prepared = processor(images=list(images.movedim(-1, 1)), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        if hasattr(model, "get_image_features"):
            return functional.normalize(model.get_image_features(pixel_values=prepared).pooler_output, dim=-1)
        return functional.normalize(model(pixel_values=prepared).pooler_output, dim=-1)


@pytest.mark.parametrize("family", ["dino", "siglip", "clip"])
def test_similarity_equals_the_cosines_of_transformers_features(files: dict[str, Path], family: str) -> None:
    images, references = pictures(4, 1), pictures(3, 2)
    cosines = by_transformers(files[family], images) @ by_transformers(files[family], references).T
    mean = load_reference_similarity(str(files[family]), references)
    nearest = load_reference_similarity(str(files[family]), references, "nearest")
    assert torch.allclose(mean.score(images, ""), cosines.mean(dim=1), rtol=0, atol=2e-6)
    assert torch.allclose(nearest.score(images, ""), cosines.amax(dim=1), rtol=0, atol=2e-6)
    assert cosines.std() > 1e-4 and family in mean.name.lower()


def test_the_reference_itself_scores_one_and_its_order_does_not_matter(dino: Path) -> None:
    references = pictures(3, 3, 50, 90)
    verifier = load_reference_similarity(str(dino), references, "nearest")
    assert torch.allclose(verifier.score(references, ""), torch.ones(3), atol=1e-6)
    images = pictures(5, 4, 70, 60)
    turned = load_reference_similarity(str(dino), references.flip(0))
    assert torch.allclose(
        turned.score(images, ""), load_reference_similarity(str(dino), references).score(images, ""), atol=1e-6
    )


def test_references_are_looked_at_once(dino: Path) -> None:
    verifier = load_reference_similarity(str(dino), pictures(3, 5))
    seen: list[int] = []
    verifier.module.model.register_forward_hook(lambda _, __, ___: seen.append(1))
    for _ in range(3):
        verifier.score(pictures(2, 6), "")
    assert len(seen) == 3 + 3  # every reference once, and the batch three times


def test_references_made_in_inference_mode_still_pass_a_gradient(dino: Path) -> None:
    with torch.inference_mode():
        verifier = load_reference_similarity(str(dino), pictures(2, 7))
        verifier.score(pictures(2, 8), "")
    images = pictures(2, 8).requires_grad_()
    verifier.score(images, "").sum().backward()
    assert images.grad.isfinite().all() and images.grad.any()


def test_a_tower_of_the_graph_goes_before_the_file_and_is_not_managed_here() -> None:
    tower = SimpleNamespace(name="CLIP ViT-L/14", family="clip", size=8, embed=lambda pixels: pixels.mean(dim=(2, 3)))
    references = pictures(1, 9)
    verifier = load_reference_similarity("nowhere.safetensors", references, clip_vision=tower)  # type: ignore[arg-type]
    assert verifier.module is None and not verifier.differentiable and verifier.name == "CLIP ViT-L/14 Similarity"
    images = pictures(3, 10)
    colours = [functional.normalize(batch.mean(dim=(1, 2)), dim=1) for batch in (images, references)]
    assert torch.allclose(verifier.score(images, ""), (colours[0] @ colours[1].T)[:, 0], atol=1e-3)


@pytest.mark.parametrize(
    "references, over, said",
    [
        (None, "mean", "references: got nothing; wire the image"),
        (torch.rand(4, 4, 3), "mean", r"references: got \(4, 4, 3\); expected \[R, H, W, 3\]"),
        (torch.full((1, 4, 4, 3), float("nan")), "mean", "no finite numbers"),
        (torch.rand(1, 4, 4, 3), "median", "over: got 'median'; expected one of mean, nearest"),
    ],
)
def test_references_that_cannot_be_compared_with_are_refused(
    dino: Path, references: Any, over: str, said: str
) -> None:
    with pytest.raises(SearchError, match=said):
        load_reference_similarity(str(dino), references, over)


def test_an_alpha_channel_of_a_reference_is_dropped(dino: Path) -> None:
    references = pictures(2, 11)
    with_alpha = torch.cat([references, torch.rand(2, 64, 64, 1)], dim=-1)
    images = pictures(2, 12)
    scores = [load_reference_similarity(str(dino), r).score(images, "") for r in (references, with_alpha)]
    assert torch.equal(*scores)


@pytest.mark.parametrize("family", ["dino", "siglip", "clip"])
def test_self_supervision_is_the_cosine_of_transformers_features(files: dict[str, Path], family: str) -> None:
    images, early = pictures(20, 13), pictures(20, 14, 96, 96)  # more than one forward
    verifier = load_self_supervised(str(files[family]))
    expected = (by_transformers(files[family], images) * by_transformers(files[family], early)).sum(dim=1)
    scores = verifier.score(images, "", early=(early,))
    assert torch.allclose(scores, expected, rtol=0, atol=2e-6)
    assert expected.std() > 1e-4
    assert torch.allclose(verifier.score(images, "", (images,)), torch.ones(20), atol=1e-6)
    assert verifier.notes == []


def test_without_an_x0_prediction_it_says_once_that_it_cannot_judge(
    dino: Path, caplog: pytest.LogCaptureFixture
) -> None:
    verifier = load_self_supervised(str(dino))
    with caplog.at_level(logging.WARNING, "pack.verifiers.notes"):
        for _ in range(3):
            assert verifier.score(pictures(18, 15), "a cat").isnan().all()
    assert verifier.notes == [ONLY_FINISHED] == [record.getMessage() for record in caplog.records]


def test_a_bad_pixel_in_the_x0_prediction_makes_that_score_alone_nan(dino: Path) -> None:
    images, early = pictures(3, 16), pictures(3, 17)
    expected = load_self_supervised(str(dino)).score(images, "", (early,))
    early[1, 2, 3, 0] = float("inf")
    scores = load_self_supervised(str(dino)).score(images, "", (early,))
    assert scores[1].isnan() and torch.equal(scores[[0, 2]], expected[[0, 2]])


def test_what_does_not_go_together_is_refused(dino: Path) -> None:
    verifier = load_self_supervised(str(dino), noise_share=0.25)
    assert verifier.early == (0.25,) and not verifier.differentiable
    images = pictures(3, 18)
    for early in ((), (images, images), (images[:2],), (images[0],)):
        with pytest.raises(SearchError, match=r"early: got .*expected one batch \[3, H, W, 3\]"):
            verifier.score(images, "", early)
    for share in (0.0, 1.0, float("nan")):
        with pytest.raises(SearchError, match="noise_share: got"):
            load_self_supervised(str(dino), share)
