"""CLIP and CLIP_VISION of the graph as towers, compared with transformers on the same random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.clip_vision
import comfy.sd
import comfy.sd1_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from pack.nodes.host_towers import HostImageTower, HostTextTower
from pack.nodes.model_files import register_folders
from pack.nodes.verifier_nodes import VerifierNode
from pack.search import SearchError
from pack.tests.nodes import tiny
from pack.verifiers.aesthetic import load_aesthetic
from pack.verifiers.clip_score import load_clip_score
from pack.verifiers.images import normalised

WORDS = Path(comfy.sd1_clip.__file__).parent / "sd1_tokenizer"
TEXT = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2, "num_hidden_layers": 2}
VISION = {
    "hidden_size": 48, "intermediate_size": 64, "num_attention_heads": 3, "num_hidden_layers": 3, "image_size": 32,
    "patch_size": 8, "num_channels": 3, "projection_dim": 64, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
}  # fmt: skip
PROMPTS = ["a red circle", "", "a (red:1.3) circle, [blue] square", "café 漢字 🙂", "two red circles and " * 40]
PIXELS = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))
PICTURES = torch.rand(4, 40, 60, 3, generator=torch.Generator().manual_seed(3))


class Both:
    """One CLIP in ComfyUI and in transformers, with the same weights: those that ComfyUI has rounded to its dtype."""

    def __init__(self) -> None:
        from transformers import CLIPConfig, CLIPModel

        ends = {"bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407}
        text = {**TEXT, "vocab_size": 49408, "max_position_embeddings": 77, "projection_dim": 64, **ends}
        torch.manual_seed(3)
        self.model = CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=64)).eval()
        for parameter in self.model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        self.model.requires_grad_(False)
        self.exact = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        self.clip_vision = comfy.clip_vision.ClipVisionModel({**VISION, "model_type": "clip_vision_model"})
        missing, _ = self.clip_vision.load_sd(self.part("vis"))
        assert not missing
        self.clip = text_encoder(self.part("text"))
        rounded = {**self.clip_vision.get_sd(), **self.clip.cond_stage_model.clip_l.transformer.state_dict()}
        missing, _ = self.model.load_state_dict({k: v.float() for k, v in rounded.items()}, strict=False)
        assert missing == ["logit_scale"]

    def part(self, prefix: str) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in self.exact.items() if name.startswith(prefix)}

    def text(self, prompt: str) -> Tensor:
        """transformers' embedding [64] of a prompt, with transformers' own tokenizer."""
        from transformers import CLIPTokenizer

        tokenizer = CLIPTokenizer.from_pretrained(WORDS)
        ids = tokenizer([prompt], return_tensors="pt", truncation=True, max_length=77)
        return self.model.get_text_features(**ids).pooler_output[0]


def text_encoder(tensors: dict[str, Tensor]) -> Any:
    """A CLIP of SD1's kind with a small text tower, through ComfyUI's own loader."""
    kind = comfy.sd.CLIPType.STABLE_DIFFUSION
    return comfy.sd.load_text_encoder_state_dicts([dict(tensors)], None, kind, {"model_config": dict(TEXT)})


@pytest.fixture(scope="module")
def both() -> Both:
    return Both()


def unit(embedded: Tensor) -> Tensor:
    return functional.normalize(embedded, dim=-1)


def test_an_image_tower_equals_transformers_and_does_not_round_the_pixels(both: Both) -> None:
    tower = HostImageTower(both.clip_vision)
    assert (tower.family, tower.size, tower.notes) == ("clip", 32, [])
    mean, std = tuple(both.clip_vision.image_mean), tuple(both.clip_vision.image_std)
    expected = both.model.get_image_features(normalised(PIXELS, mean, std)).pooler_output
    got = tower.embed(PIXELS)
    assert got.dtype == torch.float32 and torch.allclose(unit(got), unit(expected), rtol=0, atol=1e-6)
    # ComfyUI's own way rounds to 8 bits: pixels that differ by less are one picture to it, and two to the tower.
    near = (PIXELS * 255).round() / 255
    assert (unit(tower.embed(near)) - unit(got)).abs().max() > 1e-4


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_text_tower_equals_transformers_on_the_plain_prompt(both: Both, prompt: str) -> None:
    tower = HostTextTower(both.clip)
    got = tower.embed(prompt, "truncate")
    assert got.dtype == torch.float32 and got.shape == (tower.width,) == (64,)
    assert torch.allclose(unit(got), unit(both.text(prompt)), rtol=0, atol=1e-6)


def test_a_long_prompt_can_be_read_whole_and_is_told_of(both: Both) -> None:
    tower = HostTextTower(both.clip)
    start, whole = tower.embed(PROMPTS[-1], "truncate"), tower.embed(PROMPTS[-1])
    assert (unit(start) - unit(whole)).abs().max() > 1e-3
    assert [note for note in tower.notes if "only the first 75" in note] and "3 windows" in tower.notes[-1]


def test_clip_score_is_the_same_from_the_graph_and_from_a_file(both: Both, tmp_path: Path) -> None:
    save_file({k: v.contiguous() for k, v in both.model.state_dict().items()}, tmp_path / "clip.safetensors")
    (tmp_path / "config.json").write_text(both.model.config.to_json_string())
    file = load_clip_score(str(tmp_path / "clip.safetensors"), tokenizer=str(WORDS))
    register_folders()
    wired = {"verifier": "CLIPScore", "clip_vision": both.clip_vision, "clip_text": both.clip}
    graph = tiny.execute(VerifierNode, verifier=wired).args[0]
    assert graph.module is None and not graph.differentiable and file.differentiable
    for prompt in PROMPTS:
        with torch.inference_mode():
            got = graph.score(PICTURES, prompt)
        assert torch.allclose(got, file.score(PICTURES, prompt), rtol=0, atol=2.5e-6)
    assert graph.score(PICTURES.clone().requires_grad_(), PROMPTS[0]).requires_grad is False
    assert any("is taken as published" in note for note in graph.notes)


def test_the_aesthetic_predictor_takes_an_image_tower_from_the_graph(both: Both, tmp_path: Path) -> None:
    from pack.tests.verifiers.samples import aesthetic

    torch.save(aesthetic.head(64).state_dict(), tmp_path / "head.pth")
    verifier = load_aesthetic("", str(tmp_path / "head.pth"), clip_vision=HostImageTower(both.clip_vision))
    towers = verifier.towers.images(PICTURES.movedim(-1, 1))
    expected = aesthetic.head(64).layers(towers)[:, 0]
    assert verifier.module is None and torch.allclose(verifier.score(PICTURES, ""), expected, rtol=0, atol=1e-6)


def test_weights_in_half_precision_change_the_cosine_by_less_than_a_thousandth(both: Both) -> None:
    rounded = HostImageTower(both.clip_vision).embed(PIXELS), HostTextTower(both.clip).embed(PROMPTS[0])
    now = unit(rounded[0]) @ unit(rounded[1])
    kept = both.model.state_dict()
    kept = {name: tensor.clone() for name, tensor in kept.items()}
    both.model.load_state_dict(both.exact)
    mean, std = tuple(both.clip_vision.image_mean), tuple(both.clip_vision.image_std)
    image = both.model.get_image_features(normalised(PIXELS, mean, std)).pooler_output
    exact = unit(image) @ unit(both.text(PROMPTS[0]))
    both.model.load_state_dict(kept)
    assert (now - exact).abs().max() < 1e-3


def test_one_tower_alone_is_refused(both: Both) -> None:
    with pytest.raises(SearchError, match="clip_text: got nothing; wire both"):
        load_clip_score("", clip_vision=HostImageTower(both.clip_vision))
    with pytest.raises(SearchError, match="clip_vision: got nothing; wire both"):
        load_clip_score("", clip_text=HostTextTower(both.clip))


def test_towers_of_different_clips_are_refused(both: Both) -> None:
    other = comfy.clip_vision.ClipVisionModel({**VISION, "projection_dim": 32, "model_type": "clip_vision_model"})
    other.load_sd({**both.part("vis"), "visual_projection.weight": torch.randn(32, 48)})
    verifier = load_clip_score("", clip_vision=HostImageTower(other), clip_text=HostTextTower(both.clip))
    with pytest.raises(SearchError, match="gives 32 numbers, and 64 are expected"):
        verifier.score(PICTURES, "a red circle")


@pytest.mark.parametrize("what", ["missing", "zero", "identity"])
def test_a_text_tower_without_projection_is_refused(both: Both, what: str) -> None:
    tensors = both.part("text")
    clip = text_encoder({k: v for k, v in tensors.items() if what != "missing" or k != "text_projection.weight"})
    weight = clip.cond_stage_model.clip_l.transformer.text_projection.weight
    if what != "missing":
        weight.data.copy_(torch.zeros(64, 64) if what == "zero" else torch.eye(64))
    with pytest.raises(SearchError, match="without text_projection"):
        HostTextTower(clip)


def test_a_text_tower_with_a_lora_is_refused(both: Both) -> None:
    patched = both.clip.clone()
    key = "clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.weight"
    assert patched.add_patches({key: ("diff", (torch.ones(96, 64),))}) == [key]
    with pytest.raises(SearchError, match="CLIP-L from the graph has a LoRA"):
        HostTextTower(patched)
    HostTextTower(both.clip)


def test_models_that_are_no_towers_are_refused() -> None:
    with pytest.raises(SearchError, match="clip_vision: got a NoneType"):
        HostImageTower(None)
    with pytest.raises(SearchError, match="clip_text: got a Mean without CLIP's own text tower"):
        HostTextTower(tiny.Mean())
    siglip = {**VISION, "model_type": "siglip_vision_model"}
    with pytest.raises(SearchError, match="clip_vision: got a siglip_vision_model"):
        HostImageTower(comfy.clip_vision.ClipVisionModel(siglip))
    bare = {k: v for k, v in VISION.items() if k != "projection_dim"}
    with pytest.raises(SearchError, match="has no projection"):
        HostImageTower(comfy.clip_vision.ClipVisionModel({**bare, "model_type": "clip_vision_model"}))


def test_a_vision_tower_of_24_layers_is_told_to_be_taken_as_openais() -> None:
    deep = comfy.clip_vision.ClipVisionModel({**VISION, "num_hidden_layers": 24, "model_type": "clip_vision_model"})
    assert "as OpenAI's ViT-L/14" in HostImageTower(deep).notes[0]


def test_dino_gives_its_class_token_as_transformers_does() -> None:
    from transformers import Dinov2Config, Dinov2Model

    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 14, "image_size": 518}
    torch.manual_seed(4)
    reference = Dinov2Model(Dinov2Config(**sizes, layerscale_value=0.5)).eval().requires_grad_(False)
    host = comfy.clip_vision.ClipVisionModel(
        {**sizes, "model_type": "dinov2", "layer_norm_eps": 1e-6, "use_swiglu_ffn": False,
         "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    )  # fmt: skip
    hub = reference.state_dict()
    names = {
        "q_proj": "attention.query", "k_proj": "attention.key", "v_proj": "attention.value", "o_proj": "output.dense",
    }  # fmt: skip
    told = {}
    for name, tensor in hub.items():
        for here, there in names.items():
            name = name.replace(f".attention.{here}", f".attention.{there}")
        told[name] = tensor.half()
    assert not host.load_sd(told)[0]
    reference.load_state_dict({name: tensor.half().float() for name, tensor in hub.items()})
    tower = HostImageTower(host)
    pixels = torch.rand(1, 3, 518, 518, generator=torch.Generator().manual_seed(5))
    seen = normalised(pixels, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    expected = reference(pixel_values=seen).last_hidden_state[:, 0]
    assert (tower.family, tower.size) == ("dino", 518)
    assert torch.allclose(unit(tower.embed(pixels)), unit(expected), rtol=0, atol=1e-6)
