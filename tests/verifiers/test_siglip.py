"""SigLIP against transformers, both of its tokenizers, and the files that go wrong."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from pack.search import SearchError
from pack.tests.verifiers.conftest import PROMPT
from pack.tests.verifiers.samples import siglip as sample
from pack.tests.verifiers.samples import towers
from pack.verifiers.siglip import SOURCE, load_siglip
from pack.verifiers.siglip_text import load_siglip_text

PROMPTS = ["a red circle", PROMPT, "", "Two  CIRCLES, left-of a blue square!\n", "it's 100% café (round:1.2)"]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SigLIP with its SentencePiece model."""
    made = tmp_path_factory.mktemp("siglip") / "tiny"
    towers.siglip(made)
    (made / "spiece.model").write_bytes(sample.sentence_pieces())
    return made


@pytest.fixture(scope="session")
def second(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SigLIP 2: the same network, bilinear pictures, and a tokenizer like Gemma's."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    made = tmp_path_factory.mktemp("siglip2") / "tiny"
    towers.siglip(made, resample=2)
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trainer = trainers.BpeTrainer(
        vocab_size=60, special_tokens=["<pad>", "<eos>", "<bos>", "<unk>"], initial_alphabet=list("x,!"),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(sample.TEXTS, trainer)
    tokenizer.save(str(made / "tokenizer.json"))
    return made


@pytest.fixture(scope="session")
def soft() -> Tensor:
    """Square pictures [3, 80, 80, 3] without sharp edges, on which bicubic does not leave 0..1."""
    coarse = torch.rand(3, 3, 5, 5, generator=torch.Generator().manual_seed(1)) * 0.6 + 0.2
    return functional.interpolate(coarse, (80, 80), mode="bilinear").movedim(1, -1)


def by_transformers(folder: Path, images: Tensor, ids: Tensor) -> Tensor:
    """Logits by transformers' own model and image processor."""
    from transformers import SiglipImageProcessor, SiglipModel

    model = SiglipModel.from_pretrained(folder).eval()
    processor = SiglipImageProcessor.from_pretrained(folder, do_rescale=False)
    pixels = processor(images=list(images.movedim(-1, 1)), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        return model(input_ids=ids, pixel_values=pixels).logits_per_image[:, 0]


@pytest.mark.parametrize("version", ["folder", "second"])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_it_equals_transformers(request: pytest.FixtureRequest, soft: Tensor, version: str, prompt: str) -> None:
    folder = request.getfixturevalue(version)
    ids, _ = load_siglip_text(folder, SOURCE, 64).read(prompt, 16)
    expected = by_transformers(folder, soft, ids)
    assert torch.allclose(load_siglip(str(folder)).score(soft, prompt), expected, rtol=0, atol=2e-6)
    probability = load_siglip(str(folder), "probability").score(soft, prompt)
    assert torch.allclose(probability, expected.sigmoid(), rtol=0, atol=1e-6)
    assert expected.std() > 1e-3


@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_first_siglips_tokens_are_those_of_transformers(folder: Path, prompt: str) -> None:
    pytest.importorskip("google.protobuf", reason="transformers reads a SentencePiece model only with protobuf")
    from transformers import SiglipTokenizer

    theirs = SiglipTokenizer(str(folder / "spiece.model"))
    expected = theirs([prompt], padding="max_length", max_length=16, truncation=True, return_tensors="pt").input_ids
    assert torch.equal(load_siglip_text(folder, SOURCE, 64).read(prompt, 16)[0], expected)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_siglip_2s_tokens_are_those_of_transformers(second: Path, prompt: str) -> None:
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast(
        tokenizer_file=str(second / "tokenizer.json"), pad_token="<pad>", eos_token="<eos>", padding_side="right"
    )
    pieces = theirs(prompt.lower(), add_special_tokens=False).input_ids[:15]
    expected = torch.tensor([[*pieces, 1, *[0] * (15 - len(pieces))]])
    assert torch.equal(load_siglip_text(second, SOURCE, 64).read(prompt, 16)[0], expected)


def test_the_first_siglip_ignores_punctuation_and_both_ignore_capitals(folder: Path, second: Path) -> None:
    first, later = load_siglip_text(folder, SOURCE, 64), load_siglip_text(second, SOURCE, 64)
    plain, marked = "two red circles", "  Two, RED\ncircles!"
    assert torch.equal(first.read(plain, 16)[0], first.read(marked, 16)[0])
    assert torch.equal(later.read(plain, 16)[0], later.read("TWO red circles", 16)[0])
    assert not torch.equal(later.read(plain, 16)[0], later.read("two red circles!", 16)[0])


def test_a_picture_is_seen_whole(folder: Path) -> None:
    verifier = load_siglip(str(folder))
    image = torch.rand(1, 40, 90, 3, generator=torch.Generator().manual_seed(2), requires_grad=True)
    verifier.score(image, PROMPT).sum().backward()
    assert (image.grad.abs().sum(dim=(0, 3)) > 0).float().mean() > 0.99


def test_a_prompt_over_the_limit_is_cut_off_and_said_once(
    folder: Path, soft: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    verifier = load_siglip(str(folder))
    verifier.score(soft, "a cat")
    assert verifier.notes == []
    with caplog.at_level(logging.WARNING, "pack.verifiers.notes"):
        whole = verifier.score(soft, "a cat " * 30)
        for _ in range(2):
            assert torch.equal(verifier.score(soft, "a cat " * 30 + "and a dog"), whole)
    assert len(verifier.notes) == len(caplog.records) == 2
    assert "read only the first 15 of the" in verifier.notes[0]


def test_prompts_are_embedded_once_and_few_are_kept(folder: Path, soft: Tensor) -> None:
    verifier = load_siglip(str(folder))
    embedded: list[int] = []
    verifier.module.model.text_model.register_forward_hook(lambda *_: embedded.append(1))
    for _ in range(3):
        verifier.score(soft, PROMPT)
    assert len(embedded) == 1
    for number in range(100):
        verifier.score(soft[:1], f"a circle {number}")
    assert len(verifier._prompts) == 64


def test_files_that_do_not_belong_together_are_refused(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    with pytest.raises(SearchError, match="measure: got 'cosine'"):
        load_siglip(str(other), "cosine")
    (other / "spiece.model").write_bytes(b"red")
    with pytest.raises(SearchError, match="spiece.model is damaged"):
        load_siglip(str(other))
    (other / "spiece.model").unlink()
    with pytest.raises(SearchError, match="neither spiece.model nor tokenizer.json.*huggingface.co/google/siglip"):
        load_siglip(str(other))
    for content, said in (("{", "is not JSON"), ("{}", "is no tokenizer")):
        (other / "tokenizer.json").write_text(content)
        with pytest.raises(SearchError, match=said):
            load_siglip(str(other))
    (other / "tokenizer.json").unlink()
    (other / "spiece.model").write_bytes(sample.sentence_pieces())
    with pytest.raises(SearchError, match="has .* tokens; expected 30"):
        load_siglip_text(other, SOURCE, 30)
    (other / "config.json").write_text(json.dumps({"model_type": "siglip2"}))
    with pytest.raises(SearchError, match="names a siglip2 model; expected siglip .*naflex"):
        load_siglip(str(other))
