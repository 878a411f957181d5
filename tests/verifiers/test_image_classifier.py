"""Image classifiers against transformers, and how a class is named."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from pack.search import SearchError
from pack.tests.verifiers.conftest import PROMPT
from pack.tests.verifiers.samples import towers
from pack.verifiers.image_classifier import load_image_classifier


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return towers.classifier(tmp_path_factory.mktemp("classifier") / "tiny")


@pytest.fixture(scope="session")
def soft() -> Tensor:
    """Square pictures [3, 80, 80, 3] without sharp edges, on which bicubic does not leave 0..1."""
    coarse = torch.rand(3, 3, 5, 5, generator=torch.Generator().manual_seed(1)) * 0.6 + 0.2
    return functional.interpolate(coarse, (80, 80), mode="bilinear").movedim(1, -1)


def by_transformers(folder: Path, images: Tensor) -> Tensor:
    """Logits by transformers' own model and image processor."""
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder, do_rescale=False)
    prepared = processor(images=list(images.movedim(-1, 1)), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        logits: Tensor = model(pixel_values=prepared).logits
    return logits


def generic(kind: str, folder: Path) -> Path:
    """A tiny classifier of another architecture, with its image processor."""
    import transformers

    labels = {"id2label": {0: "cat", 1: "dog", 2: "bird"}, "label2id": {"cat": 0, "dog": 1, "bird": 2}}
    sizes: dict[str, dict[str, Any]] = {
        "ViT": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48,
                "image_size": 32, "patch_size": 8},
        "ConvNext": {"hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 1, 1], "image_size": 32},
        "ResNet": {"embedding_size": 8, "hidden_sizes": [8, 12], "depths": [1, 1], "layer_type": "basic"},
    }  # fmt: skip
    torch.manual_seed(51)
    config = getattr(transformers, f"{kind}Config")(**sizes[kind], **labels)
    towers.written(getattr(transformers, f"{kind}ForImageClassification")(config).eval(), folder)
    if kind == "ViT":
        processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
    else:
        processor = transformers.ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=0.875, resample=3)
    processor.save_pretrained(folder)
    return folder


def test_it_equals_transformers(folder: Path, soft: Tensor) -> None:
    logits = by_transformers(folder, soft)
    for number in range(6):
        scores = load_image_classifier(str(folder), str(number)).score(soft, "")
        # logits of up to 2 in float32, which processors add up in orders of their own
        assert float((scores - logits[:, number]).abs().max()) < 5e-6
    assert logits.std(dim=0).max() > 1e-3


@pytest.mark.parametrize("kind", ["ViT", "ConvNext", "ResNet"])
def test_any_image_classifier_of_transformers_is_read(kind: str, soft: Tensor, tmp_path: Path) -> None:
    folder = generic(kind, tmp_path)
    scores = load_image_classifier(str(folder), "dog").score(soft, "")
    assert torch.allclose(scores, by_transformers(folder, soft)[:, 1], rtol=0, atol=2e-6)


def test_dinov2s_head_sees_the_class_token_and_the_mean_of_the_patches(folder: Path, soft: Tensor) -> None:
    from transformers import AutoModelForImageClassification

    backbone = AutoModelForImageClassification.from_pretrained(folder).eval().dinov2
    verifier = load_image_classifier(str(folder), "tench")
    head = load_file(folder / "model.safetensors")
    prepared = verifier._prepared.normalise(verifier._prepared.fit(soft.movedim(-1, 1)))
    with torch.no_grad():
        tokens = backbone(prepared).last_hidden_state
    seen = torch.cat([tokens[:, 0], tokens[:, 1:].mean(dim=1)], dim=1)
    expected = seen @ head["classifier.weight"][0] + head["classifier.bias"][0]
    assert torch.allclose(verifier.score(soft, ""), expected, rtol=0, atol=1e-5)


def test_the_measures_are_logit_log_softmax_and_probability(folder: Path, soft: Tensor) -> None:
    logits = by_transformers(folder, soft)
    expected = {
        "logit": logits[:, 1],
        "log-softmax": logits.log_softmax(dim=1)[:, 1],
        "probability": logits.softmax(dim=1)[:, 1],
    }  # fmt: skip
    for measure, scores in expected.items():
        got = load_image_classifier(str(folder), "red circle", measure).score(soft, "")
        assert torch.allclose(got, scores, rtol=0, atol=1e-5)
    with pytest.raises(SearchError, match="measure: got 'odds'"):
        load_image_classifier(str(folder), "red circle", "odds")


@pytest.mark.parametrize(
    "target, number", [("Tinca  TINCA", 0), ("tench", 0), ("tench, tinca tinca", 0), ("5", 5), ("red_circle", 1)]
)
def test_a_class_is_named_by_any_of_its_names_or_its_number(
    folder: Path, soft: Tensor, target: str, number: int
) -> None:
    logits = by_transformers(folder, soft)
    verifier = load_image_classifier(str(folder), target)
    assert not verifier.needs_prompt
    assert torch.allclose(verifier.score(soft, ""), logits[:, number], rtol=0, atol=5e-6)


def test_the_prompt_names_classes_and_the_longer_name_counts(folder: Path, soft: Tensor) -> None:
    verifier = load_image_classifier(str(folder))
    assert verifier.needs_prompt
    assert verifier.named(PROMPT) == [1, 5]
    assert verifier.named("a Circle and two tenches") == [0, 2]
    logits = by_transformers(folder, soft)
    assert torch.allclose(verifier.score(soft, PROMPT), logits[:, [1, 5]].mean(dim=1), rtol=0, atol=1e-6)
    with pytest.raises(SearchError, match="'a cat' names none of the 6 classes, such as tench"):
        verifier.score(soft, "a cat")


def test_a_name_of_two_classes_asks_for_a_number(folder: Path, soft: Tensor) -> None:
    with pytest.raises(SearchError, match="'crane' is the name of the classes 3, 4; put one of these numbers"):
        load_image_classifier(str(folder), "crane")
    with pytest.raises(SearchError, match="classes 3, 4"):
        load_image_classifier(str(folder)).score(soft, "a crane")
    for target in ("unicorn", "6", "-1"):
        with pytest.raises(SearchError, match=f"got '{target}'; expected 'from the prompt', a number from 0 to 5"):
            load_image_classifier(str(folder), target)


def test_a_folder_that_is_no_image_classifier_is_refused(folder: Path, tmp_path: Path) -> None:
    headless = towers.dinov2(tmp_path / "headless")
    with pytest.raises(SearchError, match="2 of its tensors do not fit, first classifier.bias.*huggingface.co"):
        load_image_classifier(str(headless))
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    for config, said in (
        ({"model_type": "bert"}, "bert model, of which there is no image classifier"),
        ({"model_type": "nonsense"}, "names a nonsense model, which is unknown"),
        ({"architectures": ["resnet50"]}, "names a None model"),
    ):
        (other / "config.json").write_text(json.dumps(config))
        with pytest.raises(SearchError, match=said):
            load_image_classifier(str(other))
    (other / "config.json").unlink()
    with pytest.raises(SearchError, match="has no config.json beside it"):
        load_image_classifier(str(other))


def test_without_its_image_processors_file_it_is_prepared_as_for_imagenet_and_says_so(
    folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "bare")
    (tmp_path / "bare" / "preprocessor_config.json").unlink()
    verifier = load_image_classifier(str(tmp_path / "bare"))
    assert len(verifier.notes) == 1 and "no preprocessor_config.json" in verifier.notes[0]
    assert (verifier._prepared.size, verifier._prepared.short) == (56, 64)
