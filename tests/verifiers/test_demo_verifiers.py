"""The verifiers of the demo world, and the scales that ship for it."""

import random
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pack.demo import paths, scenes
from pack.demo.pairs import changed
from pack.search import SearchError
from pack.tests.verifiers.conftest import PROMPT
from pack.verifiers import VERIFIERS, measured_scale
from pack.verifiers.demo_classifier import load_demo_classifier

NO_CLASSIFIER = pytest.mark.skipif(not paths.CLASSIFIER.is_file(), reason="the demo classifier is not trained yet")


def test_the_exact_judge_gives_the_share_of_clauses_that_are_met(drawn: Tensor) -> None:
    judge = VERIFIERS["exact_judge"].load()
    assert judge.score(drawn[:2], PROMPT).tolist() == [1.0, 1.0]
    assert judge.score(drawn[2:], "two green crosses").tolist() == [0.5]


def test_the_exact_judge_names_the_words_it_knows(drawn: Tensor) -> None:
    with pytest.raises(SearchError, match="a photo of my cat.*Known words: .*triangle.*choose another verifier"):
        VERIFIERS["exact_judge"].load().score(drawn, "a photo of my cat")


def test_the_prompt_names_the_classes_that_are_scored(classifier_file: Path, drawn: Tensor) -> None:
    verifier = load_demo_classifier(str(classifier_file))
    assert verifier.named("Two RED  circles above a blue\nsquare, three black crosses") == [
        "red circle", "blue square", "black cross",
    ]  # fmt: skip
    with torch.no_grad():
        logits = verifier.module(drawn.movedim(-1, 1))
    columns = [verifier.classes.index("red circle"), verifier.classes.index("blue square")]
    assert torch.allclose(verifier.score(drawn, PROMPT), logits[:, columns].mean(dim=1), atol=1e-5)
    one = load_demo_classifier(str(classifier_file), target="green cross")
    assert torch.allclose(one.score(drawn, ""), logits[:, one.classes.index("green cross")], atol=1e-5)
    assert verifier.needs_prompt and not one.needs_prompt


def test_a_prompt_or_a_target_without_a_class_is_refused(classifier_file: Path, drawn: Tensor) -> None:
    with pytest.raises(SearchError, match="names none of the classes red circle"):
        load_demo_classifier(str(classifier_file)).score(drawn, "red and circle")
    with pytest.raises(SearchError, match="target: got 'pink circle'; expected 'from the prompt' or one of"):
        load_demo_classifier(str(classifier_file), target="pink circle")


def test_a_classifier_file_that_cannot_be_used_is_named(classifier_file: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    with pytest.raises(SearchError, match="gone.safetensors is not in .*0.7 MB.*Apache-2.0"):
        load_demo_classifier(str(tmp_path / "gone.safetensors"))
    cut = Path(shutil.copy(classifier_file, tmp_path / "cut.safetensors"))
    cut.write_bytes(cut.read_bytes()[:5000])
    save_file({"head.weight": torch.zeros(2, 2)}, tmp_path / "nameless.safetensors")
    save_file({"head.weight": torch.zeros(2, 2)}, tmp_path / "odd.safetensors", metadata={"classes": '["a", "b"]'})
    for name in ("cut", "nameless", "odd"):
        with pytest.raises(SearchError, match=f"{name}.safetensors is damaged or no demo classifier"):
            load_demo_classifier(str(tmp_path / f"{name}.safetensors"))


@pytest.mark.parametrize(
    "key, file",
    [
        ("exact_judge", None),
        ("clip_score", paths.CLIP / "model.safetensors"),
        pytest.param("demo_classifier", paths.CLASSIFIER, marks=NO_CLASSIFIER),
    ],
)
def test_a_shipped_scale_is_that_of_the_demos_pictures(key: str, file: Path | None) -> None:
    """Half the pictures show the prompt, half a near miss of it."""
    verifier = VERIFIERS[key].load(**({} if file is None else {"file": str(file)}))
    rng, scores = random.Random(1), []
    for _ in range(40):
        scene = scenes.random_scene(rng)
        shown = [scene] * 3 + [changed(scene, rng) for _ in range(3)]
        images = scenes.render([scenes.layout(one, rng) for one in shown])
        scores.append(verifier.score(images, scenes.prompt(scene, rng)))
    mean, sd = measured_scale(torch.cat(scores))
    assert verifier.scale is not None
    assert verifier.scale[0] == pytest.approx(mean, abs=0.3 * sd)
    assert verifier.scale[1] == pytest.approx(sd, rel=0.3)


@NO_CLASSIFIER
def test_the_shipped_classifier_prefers_pictures_of_the_class(drawn: Tensor) -> None:
    scores = load_demo_classifier(str(paths.CLASSIFIER)).score(drawn, PROMPT)
    assert scores[:2].min() > scores[2] + 1
