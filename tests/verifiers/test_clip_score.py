"""CLIPScore against two other implementations of CLIP, and on the prompts and pictures that go wrong."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from pack.demo import paths
from pack.tests.verifiers.conftest import PROMPT, random_clip
from pack.tests.verifiers.tiny_clip import open_clip_model
from pack.verifiers.clip_score import CLIPScore, load_clip_score
from pack.verifiers.clip_text import load_tokenizer, windows
from pack.verifiers.images import square

LONG = "a picture of two red circles to the left of a blue square and three green crosses below the purple triangle"
PROMPTS = ["a red circle", PROMPT, "", "café 漢字 🙂 – naïve", "UPPER  case,\n and \t white space"]


@pytest.fixture(scope="session")
def soft() -> Tensor:
    """Square pictures [3, 80, 80, 3] without sharp edges, on which bicubic does not leave 0..1."""
    coarse = torch.rand(3, 3, 5, 5, generator=torch.Generator().manual_seed(1)) * 0.6 + 0.2
    return functional.interpolate(coarse, (80, 80), mode="bilinear").movedim(1, -1)


@pytest.fixture(scope="session")
def clip_score(clip_folder: Path) -> CLIPScore:
    return load_clip_score(str(clip_folder))


def by_transformers(folder: Path, images: Tensor, prompt: str, weight: float = 2.5) -> Tensor:
    """CLIPScore by transformers' own model, tokenizer and image processor."""
    from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

    model = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
    processor = CLIPImageProcessor.from_pretrained(folder, do_rescale=False)
    pixels = processor(images=list(images.movedim(-1, 1)), return_tensors="pt")["pixel_values"]
    text = CLIPTokenizer.from_pretrained(folder)([prompt], return_tensors="pt", truncation=True)
    with torch.no_grad():
        output = model(pixel_values=pixels, **text)
    return weight * (output.image_embeds @ output.text_embeds.T).clamp(min=0)[:, 0]


@pytest.mark.parametrize("prompt", [*PROMPTS, LONG])
def test_it_equals_transformers_which_cuts_long_prompts_off(clip_folder: Path, soft: Tensor, prompt: str) -> None:
    verifier = load_clip_score(str(clip_folder), long_prompts="truncate")
    expected = by_transformers(clip_folder, soft, prompt)
    assert torch.allclose(verifier.score(soft, prompt), expected, rtol=0, atol=1e-5)


def test_these_comparisons_are_not_all_zero(clip_score: CLIPScore, soft: Tensor) -> None:
    scores = torch.stack([clip_score.score(soft, prompt) for prompt in PROMPTS])
    assert (scores > 0).sum() > scores.numel() / 2
    assert scores.std() > 0.01


def test_the_demo_clip_equals_transformers_on_drawn_pictures(drawn: Tensor) -> None:
    verifier = load_clip_score(str(paths.CLIP / "model.safetensors"))
    expected = by_transformers(paths.CLIP, drawn, PROMPT)
    scores = verifier.score(drawn, PROMPT)
    assert torch.allclose(scores, expected, rtol=0, atol=1e-5)
    assert scores[:2].min() > scores[2] + 0.3


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_it_equals_open_clip(clip_folder: Path, soft: Tensor, activation: str) -> None:
    verifier = load_clip_score(str(clip_folder), activation=activation)
    model = open_clip_model(random_clip().state_dict(), quick_gelu=activation == "quick_gelu")
    ids = torch.zeros(1, 16, dtype=torch.long)
    words = [token for window in windows(verifier.towers.text._tokenizer, PROMPT, 14) for token in window]
    ids[0, : len(words) + 2] = torch.tensor([616, *words, 617])
    size = 32
    pixels = functional.interpolate(soft.movedim(-1, 1), (size, size), mode="bicubic", antialias=True)
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    with torch.no_grad():
        image = model.encode_image((pixels - mean[:, None, None]) / std[:, None, None], normalize=True)
        text = model.encode_text(ids, normalize=True)
    expected = 2.5 * (image @ text.T).clamp(min=0)[:, 0]
    assert torch.allclose(verifier.score(soft, PROMPT), expected, rtol=0, atol=1e-5)


def test_weight_scales_the_score_and_the_prefix_stands_before_the_prompt(clip_folder: Path, soft: Tensor) -> None:
    plain = load_clip_score(str(clip_folder), weight=1.0)
    assert torch.allclose(plain.score(soft, PROMPT), by_transformers(clip_folder, soft, PROMPT, 1.0), atol=1e-5)
    prefixed = load_clip_score(str(clip_folder), weight=1.0, prefix="a photo of ")
    assert torch.equal(prefixed.score(soft, "the sea"), plain.score(soft, "a photo of the sea"))


def test_a_score_is_never_below_zero(clip_folder: Path, soft: Tensor) -> None:
    verifier = load_clip_score(str(clip_folder))
    verifier.module.text_projection.weight.data *= -1
    assert torch.equal(verifier.score(soft, PROMPT), torch.zeros(3))


def test_a_long_prompt_is_the_mean_of_its_windows(clip_folder: Path, soft: Tensor) -> None:
    verifier = load_clip_score(str(clip_folder), weight=1.0)
    words, parts = LONG.split(), []
    tokenizer = verifier.towers.text._tokenizer
    for ids in windows(tokenizer, LONG, 14):
        text = []
        while ids:
            pieces = tokenizer.pieces(words[0])
            assert ids[: len(pieces)] == pieces
            text.append(words.pop(0))
            ids = ids[len(pieces) :]
        parts.append(verifier.towers.prompt(" ".join(text)))
    assert not words and len(parts) == 2
    mean = functional.normalize(torch.stack(parts).mean(dim=0), dim=-1)
    assert torch.allclose(verifier.towers.prompt(LONG), mean, atol=1e-6)


def test_windows_together_are_the_tokens_of_the_whole_text() -> None:
    from transformers import CLIPTokenizer

    whole = CLIPTokenizer.from_pretrained(str(paths.CLIP))
    tokenizer = load_tokenizer(paths.CLIP, "", 618)
    for text in (*PROMPTS, LONG, "it's 100% (round:1.2), isn't it?", "x" * 100):
        filled = windows(tokenizer, text, 14)
        assert [i for ids in filled for i in ids] == whole(text, add_special_tokens=False, verbose=False)["input_ids"]
        assert all(len(ids) <= 14 for ids in filled)


@pytest.mark.parametrize("how, said", [("chunk", "in 2 windows"), ("truncate", "only the first 14")])
def test_a_prompt_over_the_limit_is_said_once(
    clip_folder: Path, soft: Tensor, caplog: pytest.LogCaptureFixture, how: str, said: str
) -> None:
    verifier = load_clip_score(str(clip_folder), long_prompts=how)
    with caplog.at_level(logging.WARNING, "pack.verifiers.notes"):
        verifier.score(soft, PROMPT)
        assert verifier.notes == []
        for _ in range(3):
            verifier.score(soft, LONG)
    assert len(verifier.notes) == 1 and said in verifier.notes[0]
    assert [record.getMessage() for record in caplog.records] == verifier.notes


def test_a_prompt_of_five_hundred_words_is_scored(clip_score: CLIPScore, soft: Tensor) -> None:
    assert clip_score.score(soft, "a red circle and " * 125).isfinite().all()


def test_texts_are_embedded_once_and_few_are_kept(clip_folder: Path, soft: Tensor) -> None:
    verifier = load_clip_score(str(clip_folder))
    embedded: list[Any] = []
    verifier.module.text_model.register_forward_hook(lambda *_: embedded.append(1))
    for _ in range(3):
        verifier.score(soft, PROMPT)
    assert len(embedded) == 1
    for number in range(100):
        verifier.score(soft[:1], f"a circle {number}")
    assert len(verifier.towers._prompts) == 64


def test_a_gradient_reaches_every_pixel_that_is_not_cropped(clip_score: CLIPScore) -> None:
    image = torch.rand(1, 80, 112, 3, generator=torch.Generator().manual_seed(3), requires_grad=True)
    clip_score.score(image, PROMPT).sum().backward()
    seen = image.grad.abs().sum(dim=(0, 3))
    assert (seen[:, 18:94] > 0).float().mean() > 0.99
    assert (seen[:, :8] == 0).all() and (seen[:, 104:] == 0).all()


@pytest.mark.parametrize("height, width", [(1024, 1024), (832, 1216), (1000, 667), (224, 224), (225, 224)])
def test_pictures_are_cut_as_torchvision_cuts_them(height: int, width: int) -> None:
    transforms = pytest.importorskip("torchvision.transforms.v2")
    pixels = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(2))
    expected = transforms.Compose(
        [transforms.Resize(224, interpolation=transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(224)]
    )(pixels)
    assert torch.allclose(square(pixels, 224), expected.clamp(0, 1), rtol=0, atol=1e-6)
