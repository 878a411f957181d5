"""PickScore against transformers: exp(logit_scale) times the cosine."""

from pathlib import Path

import pytest
import torch

from pack.search import SearchError
from pack.tests.verifiers.conftest import random_clip
from pack.tests.verifiers.tiny_clip import normal, soft_pictures, token_ids, write_clip
from pack.verifiers.images import square
from pack.verifiers.pick_score import load_pick_score


@pytest.mark.parametrize("name", ["pick.safetensors", "pick.pt"])
@pytest.mark.parametrize("prompt", ["a red circle left of a blue square", ""])
def test_it_is_transformers_logit(tmp_path: Path, name: str, prompt: str) -> None:
    model, pictures = random_clip(), soft_pictures(8)
    pixels = normal(square(pictures.movedim(-1, 1), 32))
    expected = model(pixel_values=pixels, input_ids=token_ids(prompt)).logits_per_image[:, 0]
    got = load_pick_score(write_clip(tmp_path / name)).score(pictures, prompt)
    # logits are cosines times 11.4, so this is a cosine to 1e-6
    assert torch.allclose(got, expected, rtol=0, atol=1e-6 * float(model.logit_scale.exp()))
    assert got.std() > 0.05


def test_portrait_and_landscape_pictures_are_cropped_to_their_middle(tmp_path: Path) -> None:
    verifier = load_pick_score(write_clip(tmp_path / "pick.safetensors"))
    wide = torch.rand(2, 64, 96, 3, generator=torch.Generator().manual_seed(1))
    edge = wide.clone()
    edge[:, :, :8] = edge[:, :, -8:] = 0
    tall = [pictures.transpose(1, 2).contiguous() for pictures in (wide, edge)]
    assert torch.equal(verifier.score(wide, "x"), verifier.score(edge, "x"))
    assert torch.equal(*(verifier.score(pictures, "x") for pictures in tall))


def test_long_prompts_are_cut_off_as_the_original_does_and_told_of(tmp_path: Path) -> None:
    verifier = load_pick_score(write_clip(tmp_path / "pick.safetensors"))
    words = ["circle"] * 200
    whole, start = (verifier.score(soft_pictures(), " ".join(some)) for some in (words, words[:14]))
    assert torch.equal(whole, start)
    assert verifier.notes[-1].startswith("PickScore read only the first 14 of the 200 tokens")


def test_a_file_without_logit_scale_is_refused(tmp_path: Path) -> None:
    bare = {k: v for k, v in random_clip().state_dict().items() if k != "logit_scale"}
    with pytest.raises(SearchError, match="there is no logit_scale.*yuvalkirstain/PickScore_v1"):
        load_pick_score(write_clip(tmp_path / "clip.safetensors", bare))
