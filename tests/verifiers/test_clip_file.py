"""Which CLIP files are read, and what is said of those that are not."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pack.search import SearchError
from pack.tests.verifiers.conftest import PROMPT, random_clip
from pack.verifiers.clip_file import OPENAI_MEAN, SOURCE, _Part, _sizes, read_clip
from pack.verifiers.clip_score import load_clip_score


@pytest.fixture
def folder(clip_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny CLIP's folder that a test may spoil."""
    return Path(shutil.copytree(clip_folder, tmp_path / "clip"))


@pytest.fixture(scope="session")
def weights(clip_folder: Path) -> dict[str, Tensor]:
    return load_file(clip_folder / "model.safetensors")


def saved(path: Path, tensors: dict[str, Tensor]) -> str:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return str(path)


def refusal(file: str) -> str:
    """The sentence with which a file is refused."""
    with pytest.raises(SearchError) as refused:
        read_clip(file)
    return str(refused.value)


def test_a_lone_file_scores_as_its_folder(
    clip_folder: Path, weights: dict[str, Tensor], tmp_path: Path, drawn: Tensor
) -> None:
    folder = load_clip_score(str(clip_folder))
    alone = load_clip_score(saved(tmp_path / "alone.safetensors", weights), tokenizer=str(clip_folder))
    # Image statistics are the one thing that a lone file cannot tell and that does not follow from its size.
    assert alone.towers.image._clip.mean == OPENAI_MEAN != folder.towers.image._clip.mean
    alone.towers.image = folder.towers.image
    assert torch.allclose(alone.score(drawn, PROMPT), folder.score(drawn, PROMPT), atol=1e-6)
    assert len(alone.notes) == 1 and "alone.safetensors has no config.json" in alone.notes[0]
    assert folder.notes == []


def test_a_file_inside_a_folder_is_read_with_the_json_files_beside_it(clip_folder: Path) -> None:
    assert read_clip(str(clip_folder / "model.safetensors")).mean == read_clip(str(clip_folder)).mean == (0.4, 0.5, 0.6)


def test_old_position_ids_and_the_logit_scale_are_ignored(weights: dict[str, Tensor], tmp_path: Path) -> None:
    old = {
        **weights,
        "text_model.embeddings.position_ids": torch.arange(16)[None],
        "vision_model.embeddings.position_ids": torch.arange(17)[None],
    }
    assert "logit_scale" in weights
    read_clip(saved(tmp_path / "old.safetensors", old))
    del old["logit_scale"]
    read_clip(saved(tmp_path / "bare.safetensors", old))


def test_half_precision_files_are_read_as_float32(weights: dict[str, Tensor], tmp_path: Path) -> None:
    clip = read_clip(saved(tmp_path / "half.safetensors", {name: tensor.half() for name, tensor in weights.items()}))
    assert {parameter.dtype for parameter in clip.network.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    "vision, text, expected",
    [
        # width, layers, mlp, patch, positions; then heads and activation
        ((768, 12, 3072, 32, 50), (512, 12, 2048), (12, 8, 224, "quick_gelu")),
        ((1024, 24, 4096, 14, 257), (768, 12, 3072), (16, 12, 224, "quick_gelu")),
        ((1280, 32, 5120, 14, 257), (1024, 24, 4096), (16, 16, 224, "gelu")),
    ],
    ids=["B/32", "L/14", "H/14"],
)
def test_the_published_sizes_are_known_from_the_tensors(
    vision: tuple[int, ...], text: tuple[int, ...], expected: tuple[object, ...]
) -> None:
    width, layers, mlp, patch, positions = vision
    tensors = {
        "visual_projection.weight": (512, width),
        "text_projection.weight": (512, text[0]),
        "text_model.embeddings.token_embedding.weight": (49408, text[0]),
        "text_model.embeddings.position_embedding.weight": (77, text[0]),
        "vision_model.embeddings.patch_embedding.weight": (width, 3, patch, patch),
        "vision_model.embeddings.position_embedding.weight": (positions, width),
    }
    tensors |= {f"vision_model.encoder.layers.{i}.mlp.fc1.weight": (mlp, width) for i in range(layers)}
    tensors |= {f"text_model.encoder.layers.{i}.mlp.fc1.weight": (text[2], text[0]) for i in range(text[1])}
    made = {name: torch.empty(shape, device="meta") for name, shape in tensors.items()}
    part = _Part(Path("x.safetensors"), made, SOURCE)
    sizes = _sizes(part, part, "auto")
    assert (sizes.vision.heads, sizes.text.heads, sizes.image, sizes.vision.activation) == expected
    assert sizes.text.activation == sizes.vision.activation
    assert (sizes.vision.layers, sizes.text.layers) == (layers, text[1])


def test_a_setting_left_out_of_the_config_has_the_librarys_default(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    for kind in ("text", "vision"):
        config[f"{kind}_config"].pop("hidden_act", None)
        config[f"{kind}_config_dict"] = {"layer_norm_eps": 0.5}
    (folder / "config.json").write_text(json.dumps(config))
    sizes = read_clip(str(folder)).network.sizes
    assert (sizes.text.activation, sizes.vision.epsilon) == ("quick_gelu", 0.5)


def test_a_missing_file_is_named_with_where_to_get_it(tmp_path: Path) -> None:
    for file in ("", str(tmp_path / "gone.safetensors"), str(tmp_path)):
        said = refusal(file)
        for part in ("https://huggingface.co/openai/clip-vit-base-patch32", "605 MB", "MIT", "models/verifiers"):
            assert part in said
    assert "gone.safetensors is not in" in refusal(str(tmp_path / "gone.safetensors"))


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.made,)


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".pth"])
def test_code_in_a_pickle_is_refused_and_does_not_run(weights: dict[str, Tensor], tmp_path: Path, suffix: str) -> None:
    path, made = tmp_path / f"pickle{suffix}", tmp_path / "made"
    torch.save({**weights, "extra": Payload(made)}, path)
    said = refusal(str(path))
    assert f"pickle{suffix} holds more than tensors, and opening it could run code: it was not opened" in said
    assert not made.exists()
    torch.load(path, weights_only=False)
    assert made.exists()  # it would have


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".pth"])
def test_pickles_of_tensors_are_read_also_from_one_level_down(
    weights: dict[str, Tensor], tmp_path: Path, suffix: str
) -> None:
    torch.save(weights, tmp_path / f"flat{suffix}")
    torch.save({"epoch": 3, "state_dict": weights}, tmp_path / f"nested{suffix}")
    for name in ("flat", "nested"):
        network = read_clip(str(tmp_path / f"{name}{suffix}")).network
        assert all(torch.equal(tensor, weights[name]) for name, tensor in network.state_dict().items())


def test_other_kinds_of_files_are_not_opened(tmp_path: Path) -> None:
    (tmp_path / "old.ckpt").write_bytes(b"never read")
    assert "got old.ckpt; expected .safetensors" in refusal(str(tmp_path / "old.ckpt"))


@pytest.mark.parametrize("kept", [0, 7, 1000, 100_000])
def test_a_truncated_file_is_refused(clip_folder: Path, tmp_path: Path, kept: int) -> None:
    path = tmp_path / "cut.safetensors"
    path.write_bytes((clip_folder / "model.safetensors").read_bytes()[:kept])
    assert "cut.safetensors is cut off or is no safetensors file" in refusal(str(path))


@pytest.mark.parametrize(
    "lost", ["text_projection.weight", "visual_projection.weight", "vision_model.embeddings.patch_embedding.weight"]
)
def test_a_file_without_a_projection_or_a_tower_is_refused(
    weights: dict[str, Tensor], tmp_path: Path, lost: str
) -> None:
    rest = {name: tensor for name, tensor in weights.items() if name != lost}
    said = refusal(saved(tmp_path / "part.safetensors", rest))
    assert f"part.safetensors has no usable {lost}" in said


def test_other_architectures_are_refused(weights: dict[str, Tensor], tmp_path: Path) -> None:
    assert "no usable" in refusal(saved(tmp_path / "sd.safetensors", {"model.weight": torch.zeros(3)}))
    part = {"visual.conv1.weight": torch.zeros(4, 3, 2, 2), "transformer.resblocks.0.ln_1.weight": torch.zeros(4)}
    assert "no usable visual_projection.weight" in refusal(saved(tmp_path / "open.safetensors", part))
    more = {**weights, "vision_model.head.probe": torch.zeros(1, 1, 64)}
    assert "got (1, 1, 64); expected nothing" in refusal(saved(tmp_path / "siglip.safetensors", more))
    name = "text_model.encoder.layers.1.mlp.fc2.bias"
    short = {**weights, name: weights[name][:5]}
    assert f"first {name}: got (5,); expected (128,)" in refusal(saved(tmp_path / "odd.safetensors", short))


def test_a_config_of_another_model_is_refused(folder: Path) -> None:
    random_clip(hidden_size=192, num_attention_heads=3).config.save_pretrained(folder)
    assert "describes a vision tower of width 192, the tensors have 64" in refusal(str(folder))


def test_a_broken_config_is_named(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    assert "config.json is not JSON" in refusal(str(folder))


def test_an_unknown_activation_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["hidden_act"] = "relu"
    (folder / "config.json").write_text(json.dumps(config))
    assert "activation: got 'relu' for model.safetensors" in refusal(str(folder))


def test_a_missing_tokenizer_is_named_and_the_network_is_not_asked(folder: Path, tmp_path: Path) -> None:
    (folder / "vocab.json").unlink()
    for fallback in ("", "openai/clip-vit-base-patch32", str(tmp_path)):
        with pytest.raises(SearchError, match=r"tokenizer: neither .* has vocab.json and merges.txt"):
            load_clip_score(str(folder), tokenizer=fallback)


def test_a_tokenizer_of_another_size_is_refused(folder: Path) -> None:
    words = json.loads((folder / "vocab.json").read_text())
    words["one more</w>"] = len(words)
    (folder / "vocab.json").write_text(json.dumps(words))
    with pytest.raises(SearchError, match="has 619 tokens, the CLIP file has 618"):
        load_clip_score(str(folder))


def test_settings_out_of_range_are_refused(clip_folder: Path) -> None:
    with pytest.raises(SearchError, match="long_prompts: got 'cut'"):
        load_clip_score(str(clip_folder), long_prompts="cut")
    with pytest.raises(SearchError, match="activation: got 'swish'"):
        load_clip_score(str(clip_folder), activation="swish")
