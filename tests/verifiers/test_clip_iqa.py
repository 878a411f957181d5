"""CLIP-IQA against transformers' embeddings and a softmax by hand."""

from pathlib import Path

import pytest
import torch

from pack.search import SearchError
from pack.tests.verifiers.conftest import random_clip
from pack.tests.verifiers.tiny_clip import normal, soft_pictures, token_ids, write_clip
from pack.verifiers.clip_iqa import _DEFAULT, PAIRS, load_clip_iqa, pairs_in
from pack.verifiers.images import square

OWN = "Red photo. | Blue photo."


@pytest.mark.parametrize("pairs", [_DEFAULT, "quality", f"sharpness\n\n  {OWN}\nBeautiful"])
@pytest.mark.parametrize("name", ["clip.safetensors", "clip.pt"])
def test_it_is_the_mean_probability_of_the_good_sentences(tmp_path: Path, name: str, pairs: str) -> None:
    model, pictures = random_clip(), soft_pictures(8)
    image = model.get_image_features(normal(square(pictures.movedim(-1, 1), 32))).pooler_output
    expected = torch.zeros(8)
    for pair in pairs_in(pairs):
        texts = torch.cat([model.get_text_features(token_ids(text)).pooler_output for text in pair])
        cosines = torch.nn.functional.cosine_similarity(image[:, None], texts[None], dim=-1)
        expected += torch.exp(100 * cosines[:, 0]) / torch.exp(100 * cosines).sum(dim=1) / len(pairs_in(pairs))
    got = load_clip_iqa(write_clip(tmp_path / name), pairs).score(pictures, "")
    # a probability moves by at most 25 times as much as its logit's hundredth
    assert torch.allclose(got, expected, rtol=0, atol=2.5e-5)
    assert ((got >= 0) & (got <= 1)).all()


def test_turning_a_pair_round_turns_the_score_round(tmp_path: Path) -> None:
    file = write_clip(tmp_path / "clip.safetensors")
    one, other = (load_clip_iqa(file, pair).score(soft_pictures(), "") for pair in (OWN, "Blue photo. | Red photo."))
    assert torch.allclose(one + other, torch.ones(3), rtol=0, atol=1e-6)


def test_sentences_are_read_once_and_the_prompt_never(tmp_path: Path) -> None:
    verifier = load_clip_iqa(write_clip(tmp_path / "clip.safetensors"))
    read: list[int] = []
    verifier.module.text_model.register_forward_hook(lambda module, ids, out: read.append(len(out)))
    scores = [verifier.score(soft_pictures(), prompt) for prompt in ("", "a red circle", "漢字 " * 200)]
    assert read == [10] and torch.equal(scores[0], scores[1]) and torch.equal(scores[0], scores[2])


def test_lines_that_are_no_pair_are_refused() -> None:
    assert pairs_in("\n quality \nGood | Bad\n") == [PAIRS["quality"], ("Good", "Bad")]
    for line in ("shiny", "a | b | c", "only one |"):
        with pytest.raises(SearchError, match="pairs: got"):
            pairs_in(line)


def test_no_pair_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SearchError, match="pairs: got none; expected some of quality"):
        load_clip_iqa(write_clip(tmp_path / "clip.safetensors"), "  \n")
