"""Image towers against transformers' own models and image processors, and the files that they are read from."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from pack.search import SearchError
from pack.tests.verifiers.samples import towers
from pack.verifiers.clip_file import read_clip
from pack.verifiers.image_towers import _dinov2_sizes, _dinov3_sizes, _siglip_sizes, features, load_image_tower, usual
from pack.verifiers.preprocessing import Preprocessing, read_preprocessing
from pack.verifiers.pretrained import Held, LinearAttention, _mismatch

WRITERS: dict[str, Callable[[Path], Path]] = {
    "dinov2": towers.dinov2,
    "dinov2 with registers": lambda folder: towers.dinov2(folder, "Dinov2WithRegistersModel", num_register_tokens=4),
    "dinov2 gated": lambda folder: towers.dinov2(folder, use_swiglu_ffn=True, mlp_ratio=4),
    "dinov3": towers.dinov3,
    "dinov3 gated": lambda folder: towers.dinov3(folder, use_gated_mlp=True, hidden_act="silu"),
    "siglip": towers.siglip,
    "siglip 2": lambda folder: towers.siglip(folder, resample=2),
}
EVERY = pytest.mark.parametrize("name", WRITERS)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One folder per kind of tower, as transformers writes it."""
    return {name: write(tmp_path_factory.mktemp("tower") / "tiny") for name, write in WRITERS.items()}


@pytest.fixture(scope="session")
def soft() -> Tensor:
    """Square pictures [3, 3, 80, 80] without sharp edges, on which bicubic does not leave 0..1."""
    coarse = torch.rand(3, 3, 5, 5, generator=torch.Generator().manual_seed(1)) * 0.6 + 0.2
    return functional.interpolate(coarse, (80, 80), mode="bilinear")


def by_transformers(folder: Path, pixels: Tensor) -> Tensor:
    """Pooled features by transformers' own model and image processor."""
    from transformers import AutoImageProcessor, AutoModel

    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoImageProcessor.from_pretrained(folder, do_rescale=False)
    prepared = processor(images=list(pixels), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        if hasattr(model, "vision_model"):
            return model.vision_model(pixel_values=prepared).pooler_output
        return model(pixel_values=prepared).pooler_output


@EVERY
def test_it_equals_transformers(folders: dict[str, Path], soft: Tensor, name: str) -> None:
    tower = load_image_tower(str(folders[name]))
    expected = functional.normalize(by_transformers(folders[name], soft), dim=-1)
    got = features(tower, soft)
    assert torch.allclose(got, expected, rtol=0, atol=1e-6)
    assert (got @ got.T).min() < 0.9999  # the pictures do not look the same to it
    assert tower.family == name.split()[0].rstrip("23v")
    assert not tower.notes


@EVERY
def test_a_lone_file_tells_its_own_sizes(folders: dict[str, Path], soft: Tensor, name: str, tmp_path: Path) -> None:
    shutil.copy(folders[name] / "model.safetensors", tmp_path / "lone.safetensors")
    whole, lone = load_image_tower(str(folders[name])), load_image_tower(str(tmp_path / "lone.safetensors"))
    pixels = whole.preprocessing.fit(soft)
    same = Preprocessing(whole.size, None, mean=whole.preprocessing.mean, std=whole.preprocessing.std)
    assert torch.equal(whole.embed(pixels), type(lone)(lone.name, lone.family, lone.module, same).embed(pixels))
    assert len(lone.notes) == 1 and "no config.json" in lone.notes[0]


def test_the_sizes_of_the_published_models_are_told_by_their_tensors(tmp_path: Path) -> None:
    import transformers

    def counted(kind: str, sizes: Callable[..., dict[str, Any]], rename: Callable[[str], str], **told: Any) -> float:
        config, model = getattr(transformers, f"{kind}Config"), getattr(transformers, f"{kind}Model")
        with torch.device("meta"):
            official = model(config(**told)).state_dict()
            found = sizes(tmp_path, {rename(name): t for name, t in official.items()})
            again = model(config(**found))
        assert {n: t.shape for n, t in again.state_dict().items()} == {n: t.shape for n, t in official.items()}
        config = again.config
        assert config.num_attention_heads == told["num_attention_heads"]
        return round(sum(p.numel() for p in again.parameters()) / 1e6, 1)

    def named(name: str) -> str:
        return name.replace("mlp.gate_proj", "mlp.weights_in")

    for width, layers, million in ((384, 12, 22.1), (768, 12, 86.6), (1024, 24, 304.4), (1536, 40, 1136.5)):
        told = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": width // 64}
        told |= {"image_size": 518, "patch_size": 14, "use_swiglu_ffn": width == 1536}
        assert counted("Dinov2", _dinov2_sizes, named, **told) == million
    for width, layers, mlp, heads, gated, million in (
        (384, 12, 1536, 6, False, 21.6), (768, 12, 3072, 12, False, 85.7), (1024, 24, 4096, 16, False, 303.1),
        (1280, 32, 5120, 20, True, 840.6), (4096, 40, 8192, 32, True, 6716.0),
    ):  # fmt: skip
        told = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, "patch_size": 16}
        told |= {"intermediate_size": mlp, "use_gated_mlp": gated, "num_register_tokens": 4, "key_bias": False}
        told |= {"query_bias": width < 4096, "value_bias": width < 4096}
        assert counted("DINOv3ViT", _dinov3_sizes, str, **told) == million
    for width, layers, mlp, heads, size, patch, million in (
        (768, 12, 3072, 12, 224, 16, 92.9), (1152, 27, 4304, 16, 384, 14, 428.2),
    ):  # fmt: skip
        told = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, "patch_size": patch}
        assert counted("SiglipVision", _siglip_sizes, str, intermediate_size=mlp, image_size=size, **told) == million


def test_a_classifier_serves_as_the_tower_that_is_in_it(folders: dict[str, Path], soft: Tensor, tmp_path: Path) -> None:
    folder = towers.classifier(tmp_path / "head")
    backbone = load_image_tower(str(folder))
    from transformers import AutoModelForImageClassification

    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    pixels = backbone.preprocessing.normalise(backbone.preprocessing.fit(soft))
    with torch.no_grad():
        expected = model.dinov2(pixels).pooler_output
    assert torch.allclose(backbone.embed(backbone.preprocessing.fit(soft)), expected, rtol=0, atol=1e-6)


def test_clip_is_the_image_tower_of_the_clip_file(clip_folder: Path, soft: Tensor) -> None:
    tower = load_image_tower(str(clip_folder))
    assert (tower.family, tower.size) == ("clip", 32)
    clip = read_clip(str(clip_folder))
    pixels = tower.preprocessing.fit(soft)
    mean, std = (torch.tensor(values)[:, None, None] for values in (clip.mean, clip.std))
    assert torch.equal(tower.embed(pixels), clip.network.embed_images((pixels - mean) / std))


@EVERY
def test_a_gradient_reaches_pixels_of_any_shape(folders: dict[str, Path], name: str) -> None:
    tower = load_image_tower(str(folders[name]))
    pixels = torch.rand(2, 3, 50, 72, generator=torch.Generator().manual_seed(2), requires_grad=True)
    target = torch.randn(64, generator=torch.Generator().manual_seed(3))
    (features(tower, pixels) @ target).sum().backward()
    seen = pixels.grad.abs().sum(dim=(0, 1))
    assert pixels.grad.isfinite().all()
    middle = seen[10:40, 20:52]
    assert (middle > 0).float().mean() > 0.95


def test_each_family_has_its_geometry() -> None:
    transforms = pytest.importorskip("torchvision.transforms.v2")
    bicubic = transforms.InterpolationMode.BICUBIC
    for height, width in ((640, 480), (480, 700)):
        pixels = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(4))
        expected = {
            "dino": [transforms.Resize(256, interpolation=bicubic), transforms.CenterCrop(224)],
            "clip": [transforms.Resize(224, interpolation=bicubic), transforms.CenterCrop(224)],
            "siglip": [transforms.Resize((224, 224), interpolation=bicubic)],
        }
        for family, steps in expected.items():
            cut = transforms.Compose(steps)(pixels).clamp(0, 1)
            assert torch.allclose(usual(family, 224).fit(pixels), cut, rtol=0, atol=1e-6)


def test_a_tower_of_the_host_is_given_pictures_as_its_family_sees_them() -> None:
    shapes: list[tuple[int, ...]] = []

    def embed(pixels: Tensor) -> Tensor:
        shapes.append(tuple(pixels.shape))
        return pixels.flatten(2).mean(dim=2) * 3

    for family in ("dino", "siglip", "clip"):
        got = features(SimpleNamespace(name="x", family=family, size=20, embed=embed), torch.rand(2, 3, 30, 50))
        assert torch.allclose(got.norm(dim=1), torch.ones(2))
    assert shapes == [(2, 3, 20, 20)] * 3


@pytest.mark.parametrize(
    "told, expected",
    [
        ({"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}}, (224, 256, "bicubic")),
        ({"size": {"height": 384, "width": 384}, "resample": 2}, (384, None, "bilinear")),
        ({"size": 224, "resample": 2}, (224, None, "bilinear")),
        ({"size": 256, "crop_size": 224, "do_center_crop": True}, (224, 256, "bicubic")),
        ({"size": {"shortest_edge": 256}, "crop_size": 224, "do_center_crop": False}, (256, 256, "bicubic")),
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.875}, (224, 256, "bicubic")),
        ({"size": {"shortest_edge": 384}, "crop_pct": None}, (384, None, "bicubic")),
        ({"resample": 2}, (28, 32, "bilinear")),
    ],
)
def test_image_processor_files_of_all_ages_are_understood(
    tmp_path: Path, told: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**told, "image_mean": [0.1, 0.2, 0.3]}))
    read = read_preprocessing(tmp_path, usual("dino", 28))
    assert (read.size, read.short, read.mode) == expected
    assert read.mean == (0.1, 0.2, 0.3) and read.std == (0.229, 0.224, 0.225)
    assert read.fit(torch.rand(1, 3, 300, 500)).shape == (1, 3, read.size, read.size)


def test_an_image_processor_that_does_more_is_refused(tmp_path: Path) -> None:
    for told, said in (({"do_flip_channel_order": True}, "asks for do_flip"), ({"image_mean": [0.5]}, "1 channels")):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(told))
        with pytest.raises(SearchError, match=said):
            read_preprocessing(tmp_path, usual("dino", 28))


def test_half_precision_files_are_read_in_float32(folders: dict[str, Path], soft: Tensor, tmp_path: Path) -> None:
    for name in ("dinov2", "siglip"):
        folder = tmp_path / name
        shutil.copytree(folders[name], folder)
        halved = {key: t.half() for key, t in load_file(folder / "model.safetensors").items()}
        save_file(halved, folder / "model.safetensors")
        config = json.loads((folder / "config.json").read_text())
        for told in (config, config.get("vision_config", {}), config.get("text_config", {})):
            told["dtype"] = told["torch_dtype"] = "float16"
        (folder / "config.json").write_text(json.dumps(config))
        tower = load_image_tower(str(folder))
        assert {p.dtype for p in tower.module.parameters()} == {torch.float32}
        assert torch.allclose(features(tower, soft), features(load_image_tower(str(folders[name])), soft), atol=2e-3)


def test_tables_follow_the_weights_to_their_device(folders: dict[str, Path]) -> None:
    held = load_image_tower(str(folders["dinov3"])).module
    assert isinstance(held, Held) and len(list(held.model.buffers())) > 0
    held.anchor = nn.Parameter(torch.zeros((), device="meta"), requires_grad=False)  # any other device would do
    assert held.here(torch.zeros(2)).device.type == "meta"
    assert {table.device.type for table in held.model.buffers()} == {"meta"}


def test_attention_in_linear_layers_equals_torchs(soft: Tensor) -> None:
    torch.manual_seed(5)
    theirs = nn.MultiheadAttention(64, 4, batch_first=True).eval().requires_grad_(False)
    theirs.in_proj_bias.data.normal_()
    query, key = torch.randn(2, 1, 64), torch.randn(2, 9, 64)
    assert torch.allclose(LinearAttention(theirs)(query, key, key)[0], theirs(query, key, key)[0], rtol=0, atol=1e-6)


def test_transformers_4_tells_less_about_a_wrong_shape() -> None:
    assert _mismatch("norm.weight")[1] == "norm.weight: got another shape than its config tells"
    assert _mismatch(("norm.weight", torch.Size([3]), torch.Size([4])))[1] == "norm.weight: got (3,); expected (4,)"


def altered(folder: Path, target: Path, change: Callable[[dict[str, Tensor]], None]) -> Path:
    """A copy of a folder with other tensors."""
    shutil.copytree(folder, target)
    tensors = load_file(target / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors")
    return target


@pytest.mark.parametrize(
    "name, change, said",
    [
        ("dinov2", lambda t: t.pop("encoder.layer.1.norm1.bias"), "norm1.bias: got nothing"),
        ("dinov2", lambda t: t.update(extra=torch.zeros(1)), "extra: got a tensor; expected none"),
        ("dinov2", lambda t: t.update({"layernorm.bias": torch.zeros(3)}), r"got \(3,\); expected \(64,\)"),
        ("dinov3", lambda t: t.pop("norm.weight"), "norm.weight: got nothing"),
        ("siglip", lambda t: t.pop("vision_model.head.probe"), "head.probe: got nothing"),
    ],
)
def test_a_file_that_is_not_whole_is_refused(
    folders: dict[str, Path], tmp_path: Path, name: str, change: Callable[[dict[str, Tensor]], None], said: str
) -> None:
    with pytest.raises(SearchError, match=said):
        load_image_tower(str(altered(folders[name], tmp_path / "altered", change)))


def test_files_of_other_kinds_are_refused_with_what_is_expected(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(SearchError, match="none is chosen.*huggingface.co/facebook/dinov2-base"):
        load_image_tower("")
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(SearchError, match="no DINOv2, DINOv3, SigLIP or CLIP"):
        load_image_tower(str(tmp_path / "other.safetensors"))
    with pytest.raises(SearchError, match="is a dinov2 model; expected one of the family siglip"):
        load_image_tower(str(folders["dinov2"]), family="siglip")
    with pytest.raises(SearchError, match="family: got 'vgg'"):
        load_image_tower(str(folders["dinov2"]), family="vgg")
    assert load_image_tower(str(folders["dinov3"]), family="dino").name == "DINOv3"
    other = tmp_path / "naflex"
    shutil.copytree(folders["siglip"], other)
    for config, said in (
        ({"model_type": "siglip2"}, "is a siglip2 model"),
        ({"model_type": "siglip", "vision_config": {"hidden_size": "many"}}, "config.json beside .* is damaged"),
        ({"model_type": "siglip", "vision_config": {"hidden_size": 60, "num_attention_heads": 7}}, "does not describe"),
    ):
        (other / "config.json").write_text(json.dumps(config))
        with pytest.raises(SearchError, match=said):
            load_image_tower(str(other))


def test_a_cut_off_file_and_one_that_could_run_code_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((folders["dinov2"] / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(SearchError, match="cut off"):
        load_image_tower(str(cut))
    torch.save(nn.Linear(2, 2), tmp_path / "code.bin")
    with pytest.raises(SearchError, match="could run code"):
        load_image_tower(str(tmp_path / "code.bin"))
