"""CLIP Class against open_clip's zero-shot classifier, and what it takes for the class that is meant."""

from typing import Any

import pytest
import torch
from torch import Tensor

from pack.demo.scenes import CLASSES
from pack.search import SearchError
from pack.tests.verifiers.conftest import random_clip
from pack.tests.verifiers.tiny_clip import normal, open_clip_model, soft_pictures, token_ids, write_clip
from pack.verifiers.clip_class import CLIPClass, imagenet_classes, load_clip_class, templates_named
from pack.verifiers.images import square

PICTURES = soft_pictures(4)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_clip(tmp_path_factory.mktemp("class") / "clip.safetensors")


def made(file: str, **settings: Any) -> CLIPClass:
    return load_clip_class(file, **{"classes": "\n".join(CLASSES), "templates": "photo", **settings})


def by_open_clip(templates: str) -> tuple[Tensor, Tensor]:
    """open_clip's weights [D, classes], and the logits [B, classes] of PICTURES."""
    open_clip = pytest.importorskip("open_clip")
    model = open_clip_model(random_clip().state_dict())
    weights = open_clip.build_zero_shot_classifier(
        model, lambda texts: torch.cat([token_ids(text) for text in texts]), CLASSES, templates_named(templates)
    )
    pixels = normal(square(PICTURES.movedim(-1, 1), 32))
    return weights, model.logit_scale.exp() * model.encode_image(pixels, normalize=True) @ weights


@pytest.mark.parametrize("templates", ["photo", "simple 7", "openai 80"])
def test_it_is_open_clips_zero_shot_classifier(file: str, templates: str) -> None:
    weights, logits = by_open_clip(templates)
    verifier = made(file, templates=templates)
    assert torch.allclose(verifier.weights(CLASSES), weights.T, rtol=0, atol=1e-6)
    for number, name in enumerate(CLASSES):
        got = made(file, templates=templates, target=name) if number == 2 else verifier
        scores = got.score(PICTURES, f"a photo of two {name}s")
        assert torch.allclose(scores, logits[:, number], rtol=0, atol=1.5e-5)  # a cosine to 1e-6


def test_the_probability_is_the_softmax_over_all_classes(file: str) -> None:
    _, logits = by_open_clip("photo")
    verifier = made(file, measure="probability")
    expected = logits.softmax(dim=1)
    assert torch.allclose(verifier.score(PICTURES, "red circle"), expected[:, CLASSES.index("red circle")], atol=1e-6)
    two = [CLASSES.index(name) for name in ("red circle", "blue square")]
    got = verifier.score(PICTURES, "a red circle above a blue square")
    assert torch.allclose(got, expected[:, two].mean(dim=1), rtol=0, atol=1e-6)


def test_a_logit_reads_only_its_own_class_and_only_once(file: str) -> None:
    verifier = made(file)
    read: list[int] = []
    verifier.module.text_model.register_forward_hook(lambda module, ids, out: read.append(len(out)))
    for _ in range(3):
        verifier.score(PICTURES, "a red circle")
    assert read == [1]
    made_of_all = made(file, measure="probability")
    made_of_all.module.text_model.register_forward_hook(lambda module, ids, out: read.append(len(out)))
    for prompt in ("a red circle", "a green cross"):
        made_of_all.score(PICTURES, prompt)
    assert read == [1, len(CLASSES)]


def test_the_prompt_names_classes_by_their_longest_names(file: str) -> None:
    verifier = made(file, classes="tiger\ntiger shark\nshark\ngrey  fox\nbus")
    names = verifier.classes

    def named(prompt: str) -> list[str]:
        return [names[i] for i in verifier.named(prompt)]

    assert named("A Tiger Shark") == ["tiger shark"]
    assert named("tiger sharks and a tiger") == ["tiger", "tiger shark"]
    assert named("two grey foxes on two buses") == ["grey fox", "bus"]
    with pytest.raises(SearchError, match="names none of the 5 classes"):
        named("tigerish busts of sharkskin")
    assert verifier.needs_prompt


def test_a_target_is_a_name_or_a_number_and_needs_no_prompt(file: str) -> None:
    expected = made(file).score(PICTURES, CLASSES[3])
    for target in (CLASSES[3], CLASSES[3].upper(), "3"):
        verifier = made(file, target=target)
        assert torch.equal(verifier.score(PICTURES, ""), expected) and not verifier.needs_prompt
    for target in ("purple cow", str(len(CLASSES)), "-1"):
        with pytest.raises(SearchError, match=f"target: got '{target}'; expected one of {CLASSES[0]}"):
            made(file, target=target)


def test_imagenet_is_what_is_meant_when_no_classes_are_given(file: str) -> None:
    pytest.importorskip("open_clip")
    names = imagenet_classes()
    assert len(names) == 1000 and names[207] == "Golden Retriever"
    verifier = load_clip_class(file)
    assert verifier.named("a photo of a golden retriever") == [207]
    assert load_clip_class(file, target="207").named("") == [207]
    assert len(templates_named("simple 7")) == 7 and len(templates_named("openai 80")) == 80


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"measure": "odds"}, "measure: got 'odds'"),
        ({"templates": "all"}, "templates: got 'all'"),
        ({"classes": "cat", "measure": "probability"}, "classes: got 'cat' alone"),
    ],
)
def test_settings_that_make_no_sense_are_refused(file: str, settings: dict[str, str], said: str) -> None:
    with pytest.raises(SearchError, match=said):
        made(file, **settings)
