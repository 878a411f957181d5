"""Any open_clip model from a local file against open_clip itself: its network, tokenizer and image transform."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pack.search import SearchError
from pack.tests.verifiers.samples import open_clip as sample
from pack.verifiers.open_clip_model import load_open_clip

open_clip = pytest.importorskip("open_clip")
PROMPTS = ["a red circle", "", "café 漢字 🙂", "circle " * 200]
#: SigLIP's way: no causal mask, the last token, a bias on the logit, and words from a tokenizer of its own.
SIGLIP = {
    "embed_dim": 24, "custom_text": True, "init_logit_bias": -10,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16, "pool_type": "avg"},
    "text_cfg": {"context_length": 20, "vocab_size": 30, "width": 32, "heads": 2, "layers": 2, "no_causal_mask": True,
                 "proj_bias": True, "pool_type": "last", "hf_tokenizer_name": "nobody/nothing",
                 "tokenizer_kwargs": {"clean": "canonicalize"}},
}  # fmt: skip
#: An image tower of timm's, and bilinear resizing.
TIMM = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "timm_model_name": "resnet10t", "timm_pool": "avg", "timm_proj": "linear",
                   "timm_model_pretrained": False},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}  # fmt: skip
SQUASHED = {**sample.PREPROCESSING, "mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"}
MODELS = {
    "CLIP": (sample.MODEL, sample.PREPROCESSING),
    "SigLIP": (SIGLIP, SQUASHED),
    "timm": (TIMM, {**sample.PREPROCESSING, "interpolation": "bilinear"}),
    "letterbox": (sample.MODEL, {**sample.PREPROCESSING, "resize_mode": "longest"}),
}


def words(folder: Path) -> None:
    """A tokenizer of thirty words as the hub has them."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    known = ["<unk>", "<pad>", "a", "red", "circle", "blue", "square", *(f"w{i}" for i in range(23))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(known)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))


def written(folder: Path, name: str) -> str:
    model, preprocessing = MODELS[name]
    words(folder)
    return sample.write(folder, model, preprocessing)


def by_open_clip(folder: Path, eight_bit: Tensor, prompt: str) -> tuple[Tensor, Any]:
    """Cosines of pictures [B, H, W, 3] of bytes by open_clip from its own folder, and its model."""
    from PIL import Image

    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    pixels = torch.stack([transform(Image.fromarray(one.numpy())) for one in eight_bit])
    with torch.no_grad():
        image = model.eval().encode_image(pixels, normalize=True)
        text = model.encode_text(tokenizer([prompt]), normalize=True)
    return (image @ text.T)[:, 0], model


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize("prompt", PROMPTS, ids=["plain", "empty", "not ASCII", "200 words"])
@pytest.mark.parametrize("name", MODELS)
def test_it_equals_open_clip(tmp_path: Path, name: str, prompt: str) -> None:
    file = written(tmp_path, name)
    # of the size that the network takes, so that nothing is resized and rounded
    eight_bit = torch.randint(0, 256, (8, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    expected, model = by_open_clip(tmp_path, eight_bit, prompt)
    got = load_open_clip(file).score(eight_bit / 255, prompt)
    assert torch.allclose(got, expected, rtol=0, atol=1e-6)
    logits = load_open_clip(file, measure="logit").score(eight_bit / 255, prompt)
    bias = 0.0 if model.logit_bias is None else float(model.logit_bias.detach())
    times = float(model.logit_scale.detach().exp())
    assert torch.allclose(logits, times * expected + bias, rtol=0, atol=1e-6 * times)


@pytest.mark.parametrize("name", ["CLIP", "SigLIP", "timm", "letterbox"])
def test_pictures_of_other_shapes_are_prepared_as_the_model_wants_them(tmp_path: Path, name: str) -> None:
    file = written(tmp_path, name)
    coarse = torch.rand(4, 3, 6, 6, generator=torch.Generator().manual_seed(2))
    large = torch.nn.functional.interpolate(coarse, (200, 120), mode="bilinear").movedim(1, -1)
    eight_bit = (large * 255).round().byte()
    expected, _ = by_open_clip(tmp_path, eight_bit, "a red circle")
    got = load_open_clip(file).score(eight_bit / 255, "a red circle")
    # open_clip resizes bytes and rounds them; another way to prepare them is off by more, as the next test shows
    assert torch.allclose(got, expected, rtol=0, atol=6e-3)


def test_the_way_to_prepare_pictures_matters(tmp_path: Path) -> None:
    wide = torch.rand(2, 64, 120, 3, generator=torch.Generator().manual_seed(3))
    scores = []
    for name in ("CLIP", "letterbox"):
        (tmp_path / name).mkdir()
        scores.append(load_open_clip(written(tmp_path / name, name)).score(wide, "a red circle"))
    assert (scores[0] - scores[1]).abs().max() > 6e-3


def test_long_prompts_are_told_of(tmp_path: Path) -> None:
    for name in ("CLIP", "SigLIP"):
        (tmp_path / name).mkdir()
        verifier = load_open_clip(written(tmp_path / name, name))
        verifier.score(torch.rand(1, 32, 32, 3), "a red circle")
        assert verifier.notes == []
        verifier.score(torch.rand(1, 32, 32, 3), "circle " * 200)
        assert len(verifier.notes) == 1 and "read only 20 of the 20" in verifier.notes[0]


def test_an_architecture_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", sample.MODEL)
    file = written(tmp_path, "CLIP")
    (tmp_path / "open_clip_config.json").unlink()
    verifier = load_open_clip(file, "tiny")
    assert any("nothing says how images are prepared" in note for note in verifier.notes)
    with pytest.raises(SearchError, match="architecture: got nothing, and there is no open_clip_config.json beside"):
        load_open_clip(file)
    with pytest.raises(SearchError, match=r"architecture: got 'ViT-B32', which open_clip lacks; expected .*ViT-B-32"):
        load_open_clip(file, "ViT-B32")
    with pytest.raises(SearchError, match="architecture: roberta-ViT-B-32 has a text tower of the transformers"):
        load_open_clip(file, "roberta-ViT-B-32")
    with pytest.raises(SearchError, match="file: ViT-B-16-SigLIP has a tokenizer of its own, and none of"):
        (tmp_path / "tokenizer.json").unlink()
        load_open_clip(file, "ViT-B-16-SigLIP")


@pytest.mark.parametrize(
    "architecture, tag, mean, mode, notes",
    [
        ("ViT-B-32", "", 0.48145466, "square", 0),
        ("ViT-B-16-SigLIP", "webli", 0.5, "squashed", 0),
        ("ViT-L-14", "", 0.48145466, "square", 1),  # LAION's weights of that name want 0.5
        ("ViT-L-14", "laion2b_s32b_b82k", 0.5, "square", 0),
        ("ViT-H-14-quickgelu", "dfn5b", 0.48145466, "squashed", 0),
    ],
)
def test_published_weights_say_how_pictures_are_prepared(
    architecture: str, tag: str, mean: float, mode: str, notes: int
) -> None:
    from pack.verifiers.open_clip_model import _GEOMETRIES, _preprocessing

    told, said = _preprocessing(architecture, tag, {})
    assert (told["mean"][0], _GEOMETRIES[told["resize_mode"]].__name__, len(said)) == (mean, mode, notes)
    with pytest.raises(SearchError, match="tag: got 'nobody'; expected one of"):
        _preprocessing(architecture, "nobody", {})


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    file = written(tmp_path, "CLIP")
    tensors = load_file(file)
    save_file({k: v for k, v in tensors.items() if k != "text_projection"}, tmp_path / "part.safetensors")
    with pytest.raises(SearchError, match=r"1 of its tensors do not fit, first text_projection: got nothing; expected"):
        load_open_clip(str(tmp_path / "part.safetensors"))
    with pytest.raises(SearchError, match="measure: got 'odds'"):
        load_open_clip(file, measure="odds")
    save_file({f"module.{k}": v.half() for k, v in tensors.items()}, tmp_path / "wrapped.safetensors")
    load_open_clip(str(tmp_path / "wrapped.safetensors"))


def test_a_tokenizer_with_more_words_than_the_model_is_refused(tmp_path: Path) -> None:
    model = {**SIGLIP, "text_cfg": {**SIGLIP["text_cfg"], "vocab_size": 20}}
    words(tmp_path)
    with pytest.raises(SearchError, match="has 30 tokens, .* knows 20"):
        load_open_clip(sample.write(tmp_path, model, SQUASHED))
