"""ImageReward against its authors' own code, and on the prompts and files that go wrong."""

import logging
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pack.search import SearchError
from pack.tests.verifiers.conftest import PROMPT, loaded
from pack.tests.verifiers.samples import image_reward as sample
from pack.verifiers.image_reward import LENGTH, ImageReward, load_image_reward
from pack.verifiers.image_reward_network import configs, parts, read_network
from pack.verifiers.images import normalised, square

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
LONG = "two red circle left of a blue square picture " * 8


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny weights and a vocabulary."""
    made = tmp_path_factory.mktemp("image_reward")
    sample.settings(made)
    return made


@pytest.fixture
def verifier(folder: Path) -> ImageReward:
    return load_image_reward(str(folder / "ImageReward.pt"))


@pytest.fixture
def authors(references: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The modules `ImageReward` and `vit` of the image-reward wheel, on a transformers that it was not written for."""
    pytest.importorskip("timm")
    if not (references / "ImageReward").is_dir():
        pytest.skip("needs image-reward in the reference implementations")
    import transformers.modeling_utils as utils
    from transformers.pytorch_utils import apply_chunking_to_forward, prune_linear_layer

    for shim in (apply_chunking_to_forward, prune_linear_layer):
        monkeypatch.setattr(utils, shim.__name__, shim, raising=False)
    monkeypatch.setattr(utils, "find_pruneable_heads_and_indices", None, raising=False)
    checkpoint = types.ModuleType("fairscale.nn.checkpoint.checkpoint_activations")
    checkpoint.checkpoint_wrapper = lambda module: module  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, checkpoint.__name__, checkpoint)
    # The packages' own __init__ files import much that scoring does not need.
    for name in ("ImageReward", "ImageReward.models", "ImageReward.models.BLIP"):
        package = types.ModuleType(name)
        package.__path__ = [str(references / name.replace(".", "/"))]
        monkeypatch.setitem(sys.modules, name, package)
    for name in ("fairscale", "fairscale.nn", "fairscale.nn.checkpoint"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    from ImageReward import ImageReward as reward
    from ImageReward.models.BLIP import blip_pretrain, med, vit

    bert = med.BertPreTrainedModel
    monkeypatch.setattr(bert, "init_weights", lambda self: None)
    monkeypatch.setattr(bert, "get_head_mask", lambda self, mask, count, *_: [None] * count, raising=False)
    monkeypatch.setattr(bert, "invert_attention_mask", _inverted, raising=False)
    monkeypatch.setattr(blip_pretrain, "init_tokenizer", lambda: None)
    yield types.SimpleNamespace(reward=reward, blip=blip_pretrain, vit=vit)
    for name in [name for name in sys.modules if name.startswith("ImageReward.")]:
        del sys.modules[name]


def _inverted(self: Any, mask: Tensor) -> Tensor:
    return (1.0 - mask[:, None, None, :].float()) * torch.finfo(torch.float32).min


def of_authors(authors: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """The authors' model with the sample's sizes and tensors."""
    import json

    def tiny(*_: Any) -> tuple[nn.Module, int]:
        made = authors.vit.VisionTransformer(
            img_size=32, patch_size=16, embed_dim=sample.WIDTH, depth=sample.LAYERS, num_heads=2, mlp_ratio=1.25
        )
        return made, sample.WIDTH

    monkeypatch.setattr(authors.blip, "create_vit", tiny)
    config = {
        "architectures": ["BertModel"], "hidden_act": "gelu", "hidden_size": sample.TEXT_WIDTH,
        "intermediate_size": 224, "layer_norm_eps": 1e-12, "max_position_embeddings": 40, "model_type": "bert",
        "num_attention_heads": 3, "num_hidden_layers": sample.LAYERS, "pad_token_id": 0, "type_vocab_size": 2,
        "vocab_size": len(sample.VOCABULARY) + 2, "encoder_width": 768, "add_cross_attention": True,
        "attention_probs_dropout_prob": 0.1, "hidden_dropout_prob": 0.1, "is_decoder": False,
    }  # fmt: skip
    (folder / "med_config.json").write_text(json.dumps(config))
    model = authors.reward.ImageReward(str(folder / "med_config.json"))
    widths = (sample.TEXT_WIDTH, 48, 24, 16, 8, 1)
    for place, ins, outs in zip((0, 2, 4, 6, 7), widths[:-1], widths[1:], strict=True):
        model.mlp.layers[place] = nn.Linear(ins, outs)
    model.blip.vision_proj, model.blip.text_proj = nn.Linear(sample.WIDTH, 32), nn.Linear(sample.TEXT_WIDTH, 32)
    missing, unexpected = model.load_state_dict(sample.tensors(), strict=False)
    assert not missing and set(unexpected) <= {"blip.text_encoder.embeddings.position_ids"}
    return model.eval()


@pytest.mark.parametrize("prompt", [PROMPT, "", "Two RED circles, left of a café!", LONG])
def test_it_equals_the_authors_code_to_the_last_bit(
    verifier: ImageReward, authors: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prompt: str
) -> None:
    from transformers import BertTokenizer

    model = of_authors(authors, tmp_path, monkeypatch)
    (tmp_path / "vocab.txt").write_text("\n".join(sample.VOCABULARY) + "\n")
    tokenizer = BertTokenizer.from_pretrained(str(tmp_path), local_files_only=True)
    text = tokenizer(prompt, padding="max_length", truncation=True, max_length=35, return_tensors="pt")
    images = torch.rand(3, 48, 40, 3, generator=torch.Generator().manual_seed(4))
    pixels = normalised(square(images.movedim(-1, 1), 32), MEAN, STD)
    with torch.no_grad():
        expected = model.score_gard(text.input_ids.expand(3, -1), text.attention_mask.expand(3, -1), pixels)[:, 0]
    scores = verifier.score(images, prompt)
    assert torch.equal(scores, expected)
    assert scores.std() > 1e-4


def test_the_real_sizes_have_the_real_files_count_of_tensors_and_weights(
    authors: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import json

    from transformers import BlipTextModel, BlipVisionModel

    config = {
        "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12,
        "max_position_embeddings": 512, "vocab_size": 30524, "encoder_width": 768, "add_cross_attention": True,
        "layer_norm_eps": 1e-12, "pad_token_id": 0, "type_vocab_size": 2, "hidden_act": "gelu",
    }  # fmt: skip
    (tmp_path / "med_config.json").write_text(json.dumps(config))
    # Drop paths are drawn from a table that has to hold numbers, even when nothing else does.
    monkeypatch.setattr(torch, "linspace", lambda *_: torch.zeros(24, device="cpu"))
    with torch.device("meta"):
        tensors = authors.reward.ImageReward(str(tmp_path / "med_config.json")).state_dict()
    assert len(tensors) == 625
    assert round(sum(t.numel() for name, t in tensors.items() if t.is_floating_point()) / 1e6, 1) == 446.7
    seen, read, head = parts(tensors)
    vision, text = configs(tmp_path, tensors, "source")  # type: ignore[arg-type]
    assert (vision.num_attention_heads, text.num_attention_heads, vision.image_size) == (16, 12, 224)
    with torch.device("meta"):
        towers = ((BlipVisionModel(vision), seen), (BlipTextModel(text, add_pooling_layer=False), read))
    for network, given in towers:
        wanted = {name: tuple(t.shape) for name, t in network.state_dict().items()}
        assert wanted == {name: tuple(t.shape) for name, t in given.items() if name != "embeddings.position_ids"}
    assert [tuple(t.shape) for name, t in head.items() if name.endswith("weight")] == [
        (1024, 768), (128, 1024), (64, 128), (16, 64), (1, 16),
    ]  # fmt: skip


def test_a_safetensors_file_scores_as_the_pickle(verifier: ImageReward, folder: Path, tmp_path: Path) -> None:
    save_file(sample.tensors(), tmp_path / "ImageReward.safetensors")
    (tmp_path / "vocab.txt").write_text((folder / "vocab.txt").read_text())
    images = torch.rand(2, 32, 32, 3, generator=torch.Generator().manual_seed(5))
    other = load_image_reward(str(tmp_path / "ImageReward.safetensors"))
    assert torch.equal(other.score(images, PROMPT), verifier.score(images, PROMPT))


def test_a_tokenizer_json_serves_as_well_as_a_vocab_txt(verifier: ImageReward, folder: Path, tmp_path: Path) -> None:
    from transformers import BertTokenizer

    BertTokenizer.from_pretrained(str(folder), local_files_only=True).save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").unlink(missing_ok=True)
    assert (tmp_path / "tokenizer.json").is_file()
    sample_file = tmp_path / "ImageReward.pt"
    torch.save(sample.tensors(), sample_file)
    images = torch.rand(2, 32, 32, 3, generator=torch.Generator().manual_seed(5))
    assert torch.equal(load_image_reward(str(sample_file)).score(images, PROMPT), verifier.score(images, PROMPT))


def test_the_prompt_matters_and_only_its_first_33_pieces_do(
    verifier: ImageReward, drawn: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    assert not torch.allclose(verifier.score(drawn, "a red circle"), verifier.score(drawn, "a blue square"), atol=1e-4)
    words = ["red"] * (LENGTH - 2)
    whole = verifier.score(drawn, " ".join(words))
    assert verifier.notes == []
    with caplog.at_level(logging.WARNING, "pack.verifiers.notes"):
        for _ in range(2):
            assert torch.equal(verifier.score(drawn, " ".join([*words, "blue", "square"])), whole)
    assert len(verifier.notes) == 1 and "first 33 of the 35 word pieces" in verifier.notes[0]
    assert [record.getMessage() for record in caplog.records] == verifier.notes


def test_heads_stay_in_float32_while_towers_are_halved(tmp_path: Path, drawn: Tensor) -> None:
    verifier = loaded("image_reward", tmp_path)
    exact = verifier.score(drawn, PROMPT)
    for name, child in verifier.module.named_children():
        if name not in verifier.heads:
            child.to(torch.bfloat16)
    assert verifier.module.head[0].weight.dtype == torch.float32
    assert torch.allclose(verifier.score(drawn, PROMPT), exact, atol=0.05)


def without(*names: str) -> dict[str, Tensor]:
    return {name: t for name, t in sample.tensors().items() if name not in names}


@pytest.mark.parametrize(
    "tensors, said",
    [
        (without("blip.visual_encoder.pos_embed"), "no usable blip.visual_encoder.pos_embed"),
        (without("blip.visual_encoder.blocks.1.norm1.bias"), "encoder.layers.1.layer_norm1.bias: got nothing"),
        (without("blip.text_encoder.encoder.layer.0.crossattention.self.key.weight"), "crossattention.self.key.weight"),
        (without("mlp.layers.7.weight"), "no usable mlp.layers.7"),
        (without("mlp.layers.7.weight", "mlp.layers.7.bias"), "ends in one number"),
        ({**without(), "blip.visual_encoder.norm.bias": torch.zeros(3)}, r"got \(3,\); expected \(128,\)"),
        ({**without(), "blip.text_encoder.cls.bias": torch.zeros(3)}, "cls.bias: got a tensor; expected none"),
        ({"red": torch.zeros(3)}, "is no ImageReward"),
    ],
)
def test_a_file_that_is_no_image_reward_is_refused(
    folder: Path, tmp_path: Path, tensors: dict[str, Tensor], said: str
) -> None:
    (tmp_path / "vocab.txt").write_text((folder / "vocab.txt").read_text())
    torch.save(tensors, tmp_path / "ImageReward.pt")
    with pytest.raises(SearchError, match=said) as told:
        load_image_reward(str(tmp_path / "ImageReward.pt"))
    assert "huggingface.co/THUDM/ImageReward" in str(told.value)


def test_a_file_that_could_run_code_or_is_cut_off_is_refused(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "ImageReward.pt"
    file.write_bytes((folder / "ImageReward.pt").read_bytes()[:5000])
    with pytest.raises(SearchError, match="cut off"):
        load_image_reward(str(file))
    torch.save({"model": nn.Linear(2, 2)}, file)
    with pytest.raises(SearchError, match="could run code"):
        load_image_reward(str(file))


def test_a_missing_or_foreign_vocabulary_is_told_with_its_address(folder: Path, tmp_path: Path) -> None:
    torch.save(sample.tensors(), tmp_path / "ImageReward.pt")
    with pytest.raises(SearchError, match="has no vocab.txt.*huggingface.co/google-bert/bert-base-uncased"):
        load_image_reward(str(tmp_path / "ImageReward.pt"))
    for words, said in ((sample.VOCABULARY[:-4], "tokens; expected"), (["red"] * 3, r"no \[CLS\]")):
        (tmp_path / "vocab.txt").write_text("\n".join(words))
        with pytest.raises(SearchError, match=said):
            load_image_reward(str(tmp_path / "ImageReward.pt"))


def test_reading_the_network_leaves_the_weights_in_float32_on_the_cpu(folder: Path) -> None:
    halved = {name: t.half() if t.is_floating_point() else t for name, t in sample.tensors().items()}
    network = read_network(folder / "ImageReward.pt", halved, "source")  # type: ignore[arg-type]
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert {p.device.type for p in network.parameters()} == {"cpu"}
