"""The judge that asks a vision-language model, on a stand-in whose logits are known."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from pack.search import SearchError
from pack.tests.verifiers.samples.vlm_judge import WORDS, RedIsYes
from pack.verifiers.vlm_judge import MEASURES, QUESTION, load_vlm_judge

PICTURES = torch.rand(3, 8, 6, 3, generator=torch.Generator().manual_seed(1))


class Fixed(RedIsYes):
    """Answers with given logits: of the n-th question, or of all."""

    def __init__(self, *logits: Any) -> None:
        super().__init__()
        self.logits = [torch.as_tensor(given, dtype=torch.float32) for given in logits]

    def next_token_logits(self, image: Tensor, question: str) -> Tensor:
        self.asked.append(question)
        return self.logits[(len(self.asked) - 1) % len(self.logits)]


def logits(yes: Sequence[float], no: Sequence[float], rest: float = -30.0) -> Tensor:
    """12 logits of which those of WORDS are given as probabilities that need not sum to 1."""
    made = torch.full((12,), rest)
    for word, shares in (("Yes", yes), ("No", no)):
        for index, share in zip(WORDS[word], shares, strict=True):
            made[index] = math.log(share)
    return made


def test_every_measure_is_what_it_says() -> None:
    answer = logits((0.5, 0.1), (0.2, 0.1))
    expected = (0.6 / 0.9, math.log(0.6 / 0.3), 0.5 / 0.9)
    for measure, value in zip(MEASURES, expected, strict=True):
        scores = load_vlm_judge(Fixed(answer), measure=measure).score(PICTURES, "a cat")
        assert scores.tolist() == pytest.approx([value] * 3, abs=1e-6)
    # a word that is neither takes away from VQAScore's measure alone
    chatty = answer.clone()
    chatty[0] = math.log(0.9)
    scores = [float(load_vlm_judge(Fixed(chatty), measure=m).score(PICTURES[:1], "a cat")) for m in MEASURES]
    assert scores == pytest.approx([expected[0], expected[1], 0.5 / 1.8], abs=1e-6)


def test_log_odds_tell_apart_images_whose_probability_is_one() -> None:
    sure, surer = ([20.0, 24.0][i] for i in (0, 1))
    answers = [torch.tensor([-9.0] * 3 + [value, 0, -9] + [-9.0] * 6) for value in (sure, surer)]
    probability = load_vlm_judge(Fixed(*answers)).score(PICTURES[:2], "a cat")
    odds = load_vlm_judge(Fixed(*answers), measure="log-odds").score(PICTURES[:2], "a cat")
    assert probability[0] == probability[1] == 1.0 and odds[1] - odds[0] == pytest.approx(4.0, abs=1e-3)


def test_the_prompt_is_put_into_the_question_as_it_is() -> None:
    model = RedIsYes()
    judge = load_vlm_judge(model)
    judge.score(PICTURES[:1], 'a {blue} "cat" {prompt}')
    assert model.asked == ['Does this image show "a {blue} "cat" {prompt}"?'] and judge.needs_prompt


def test_a_checklist_takes_the_place_of_the_question_and_is_asked_of_every_image() -> None:
    model = RedIsYes()
    judge = load_vlm_judge(model, questions="  Is it {prompt}? \n\nHas it a hat?\n")
    judge.score(PICTURES[:2], "red")
    assert model.asked == ["Is it red?", "Has it a hat?"] * 2 and judge.needs_prompt
    assert not load_vlm_judge(model, questions="Has it a hat?").needs_prompt
    assert not load_vlm_judge(model, question="Is it a photo?").needs_prompt


@pytest.mark.parametrize("combine, expected", [("all must pass", 0.2), ("mean", 0.5)])
def test_a_checklist_makes_one_score(combine: str, expected: float) -> None:
    answers = [logits((p, 1e-9), (1 - p, 1e-9)) for p in (0.8, 0.2)]
    judge = load_vlm_judge(Fixed(*answers), questions="One?\nTwo?", combine=combine)
    assert float(judge.score(PICTURES[:1], "")) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_answers_that_are_no_numbers_make_nan(bad: float) -> None:
    for measure in MEASURES:
        for combine in ("mean", "all must pass"):
            broken = torch.full((12,), bad)
            judge = load_vlm_judge(Fixed(broken, logits((0.5, 0.1), (0.3, 0.1))), QUESTION, "a?\nb?", combine, measure)
            assert judge.score(PICTURES[:1], "").isnan().all()


def test_an_image_with_a_pixel_that_is_no_number_is_not_shown_to_the_model() -> None:
    images, model = PICTURES.clone(), RedIsYes()
    images[1, 0, 0, 0] = float("inf")
    scores = load_vlm_judge(model).score(images, "a cat")
    assert scores.isnan().tolist() == [False, True, False] and len(model.asked) == 2


def test_a_model_that_answers_something_else_is_noted_once() -> None:
    elsewhere = logits((0.01, 0.01), (0.01, 0.01), rest=0.0)
    judge = load_vlm_judge(Fixed(elsewhere))
    assert judge.score(PICTURES, "a cat").tolist() == pytest.approx([0.5] * 3)
    assert len(judge.notes) == 1 and "stand-in hardly thinks of answering Yes or No" in judge.notes[0]
    judge = load_vlm_judge(RedIsYes())
    judge.score(PICTURES, "a cat")
    assert judge.notes == []


class Cancelled(BaseException):
    """What ComfyUI raises is no Exception either."""


def test_a_cancel_in_the_model_passes_through() -> None:
    class Stops(RedIsYes):
        def next_token_logits(self, image: Tensor, question: str) -> Tensor:
            if self.asked:
                raise Cancelled
            return super().next_token_logits(image, question)

    model = Stops()
    with pytest.raises(Cancelled):
        load_vlm_judge(model).score(PICTURES, "a cat")
    assert len(model.asked) == 1


class Mute(RedIsYes):
    def tokens(self, word: str) -> Sequence[int]:
        return [] if word == "No" else [3]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"vlm": None}, "vlm: nothing is wired.*Comfy-Org/Qwen3-VL"), ({"question": " ", "questions": "\n "}, "question: "),
    ({"combine": "max"}, "combine: got 'max'"), ({"measure": "odds"}, "measure: got 'odds'"),
    ({"vlm": Mute()}, "vlm: stand-in cannot say No"),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "said"), REFUSED)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(SearchError, match=said):
        load_vlm_judge(**{"vlm": RedIsYes(), **settings})
