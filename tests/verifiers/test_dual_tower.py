"""The towers of the CLIP family against transformers and open_clip, from files in both spellings and in parts."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from pack.search import SearchError
from pack.tests.verifiers.conftest import random_clip
from pack.tests.verifiers.tiny_clip import (
    normal,
    open_clip_model,
    open_clip_names,
    soft_pictures,
    token_ids,
    write_clip,
)
from pack.verifiers.clip_file import SOURCE, _Part, _sizes, read_clip
from pack.verifiers.clip_names import hugging_face_names
from pack.verifiers.clip_network import CLIPNetwork
from pack.verifiers.clip_score import load_clip_score
from pack.verifiers.dual_tower import DualTower, towers
from pack.verifiers.images import letterbox, square, squashed

PROMPTS = ["a red circle", "", "café 漢字 🙂 – naïve", " ".join(f"word{i}" for i in range(200))]
SHAPES = [(80, 80), (96, 64), (50, 113)]
SPELLINGS = ["whole.safetensors", "whole.pt"]


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return dict(random_clip().state_dict())


@pytest.fixture(params=SPELLINGS)
def tiny(request: pytest.FixtureRequest, tmp_path: Path) -> DualTower:
    """The tiny CLIP, from a file with Hugging Face's and with OpenCLIP's names."""
    return towers(read_clip(write_clip(tmp_path / request.param)), "", "test")


def test_images_equal_transformers_and_open_clip(tiny: DualTower, weights: dict[str, Tensor]) -> None:
    pixels = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    got = tiny.images(pixels)
    by_transformers = random_clip().get_image_features(normal(pixels)).pooler_output
    by_open_clip = open_clip_model(weights).encode_image(normal(pixels))
    for expected in (by_transformers, by_open_clip):
        assert torch.allclose(got, functional.normalize(expected, dim=-1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("prompt", PROMPTS, ids=["plain", "empty", "not ASCII", "200 words"])
def test_prompts_equal_transformers_and_open_clip(tiny: DualTower, weights: dict[str, Tensor], prompt: str) -> None:
    ids, got = token_ids(prompt), tiny.prompt(prompt)
    by_transformers = random_clip().get_text_features(ids).pooler_output
    by_open_clip = open_clip_model(weights).encode_text(ids)
    for expected in (by_transformers, by_open_clip):
        assert torch.allclose(got, functional.normalize(expected[0], dim=-1), rtol=0, atol=1e-6)


def test_both_spellings_are_one_network_to_the_last_bit(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    first, second = (read_clip(write_clip(tmp_path / name)) for name in SPELLINGS)
    assert first.logit_scale == second.logit_scale == float(weights["logit_scale"])
    there = second.network.state_dict()
    assert there.keys() == first.network.state_dict().keys() == weights.keys() - {"logit_scale"}
    assert all(torch.equal(tensor, there[name]) for name, tensor in first.network.state_dict().items())


def test_names_of_hugging_face_stay_and_counts_go(weights: dict[str, Tensor]) -> None:
    extra = {"text_model.embeddings.position_ids": torch.arange(3), "input_resolution": torch.tensor(224)}
    assert hugging_face_names({**weights, **extra}) == weights
    assert hugging_face_names(open_clip_names(weights)).keys() == weights.keys()


@pytest.mark.parametrize(
    "name, millions, heads",
    [("ViT-B-32-quickgelu", 151.3, (12, 8)), ("ViT-L-14-quickgelu", 427.6, (16, 12)), ("ViT-H-14", 986.1, (16, 16))],
)
def test_the_published_networks_are_built_to_their_size(name: str, millions: float, heads: tuple[int, int]) -> None:
    open_clip = pytest.importorskip("open_clip")
    config = open_clip.get_model_config(name)
    with torch.device("meta"):
        model = open_clip.CLIP(**config)
        tensors = hugging_face_names(dict(model.state_dict()))
        scale = tensors.pop("logit_scale")
        part = _Part(Path("x.safetensors"), tensors, SOURCE)
        sizes = _sizes(part, part, "auto")
        network = CLIPNetwork(sizes)
    assert {k: v.shape for k, v in network.state_dict().items()} == {k: v.shape for k, v in tensors.items()}
    parameters = sum(p.numel() for p in network.parameters()) + scale.numel()
    assert parameters == sum(p.numel() for p in model.parameters())
    assert round(parameters / 1e6, 1) == millions
    assert sizes.text is not None and (sizes.vision.heads, sizes.text.heads) == heads
    assert sizes.vision.activation == ("quick_gelu" if config.get("quick_gelu") else "gelu")


@pytest.mark.parametrize("height, width", SHAPES)
def test_a_batch_of_eight_is_eight_single_pictures_in_any_order(tmp_path: Path, height: int, width: int) -> None:
    verifier = load_clip_score(write_clip(tmp_path / "clip.safetensors"))
    pictures = torch.rand(8, height, width, 3, generator=torch.Generator().manual_seed(4))
    order = torch.randperm(8, generator=torch.Generator().manual_seed(5))
    whole = verifier.score(pictures, "a red circle")
    singles = torch.cat([verifier.score(picture[None], "a red circle") for picture in pictures])
    assert torch.allclose(whole, singles, rtol=0, atol=1e-6)
    assert torch.allclose(verifier.score(pictures[order], "a red circle"), whole[order], rtol=0, atol=1e-6)


def test_many_texts_at_once_are_the_prompts_one_by_one(tiny: DualTower) -> None:
    texts = PROMPTS * 70  # more than are read at once
    one_by_one = torch.stack([tiny.prompt(text) for text in PROMPTS]).repeat(70, 1)
    assert torch.allclose(tiny.texts(texts), one_by_one, rtol=0, atol=1e-6)

    class Plain:
        """A tower that reads one text at a time."""

        name, width = "plain", 48

        def embed(self, text: str, long_prompts: str = "chunk") -> Tensor:
            assert tiny.text is not None
            return tiny.text.embed(text, long_prompts)

    assert torch.allclose(DualTower(tiny.image, Plain()).texts(PROMPTS), one_by_one[:4], rtol=0, atol=1e-6)


# ---- pictures that are not square


@pytest.mark.parametrize("height, width", [(1024, 1024), (832, 1216), (1000, 667), (223, 224), (20, 1000)])
def test_a_letterbox_is_open_clips(height: int, width: int) -> None:
    transform = pytest.importorskip("open_clip.transform")
    from PIL import Image
    from torchvision.transforms.v2.functional import resize

    eight_bit = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(6))
    eight_bit = resize(eight_bit.movedim(-1, 0)[..., ::8, ::8], [height, width]).movedim(0, -1)  # as smooth as a photo
    picture, pixels = Image.fromarray(eight_bit.numpy()), eight_bit.movedim(-1, 0)[None] / 255
    got = letterbox(pixels, 224)
    # On tensors, by open_clip's own sizes and padding: the same but for the cut to 0..1.
    keep_ratio = transform.ResizeKeepRatio(224, longest=1)
    size = keep_ratio.get_params(picture, (224, 224), 1.0, 0, (1, 1), 0, (1, 1))
    resized = resize(pixels, size, interpolation=transform.InterpolationMode.BICUBIC, antialias=True)
    assert torch.allclose(got, transform.CenterCropOrPad(224)(resized).clamp(0, 1), rtol=0, atol=1e-6)
    # On bytes, which open_clip rounds twice: by at most 1.5 of 255 steps, 0.022 when divided by CLIP's deviations.
    whole = transform.image_transform(224, is_train=False, resize_mode="longest")(picture)
    assert (normal(got)[0] - whole).abs().max() < 0.025


def test_a_letterbox_shows_the_whole_picture_between_black_bars() -> None:
    white = torch.ones(1, 3, 100, 50)
    shown = letterbox(white, 32)
    assert shown.shape == (1, 3, 32, 32)
    assert torch.equal(shown[0, 0, 0].bool(), torch.tensor([False] * 8 + [True] * 16 + [False] * 8))
    assert letterbox(torch.ones(1, 3, 1, 500), 32)[0, 0].sum(dim=1).count_nonzero() == 1


def test_squashing_is_torchvisions() -> None:
    functions = pytest.importorskip("torchvision.transforms.v2.functional")
    pixels = torch.rand(2, 3, 90, 41, generator=torch.Generator().manual_seed(7))
    for mode in ("bicubic", "bilinear"):
        expected = functions.resize(pixels, [32, 32], interpolation=functions.InterpolationMode(mode), antialias=True)
        assert torch.allclose(squashed(pixels, 32, mode), expected.clamp(0, 1), rtol=0, atol=1e-6)


def test_all_ways_agree_on_square_pictures() -> None:
    pixels = soft_pictures().movedim(-1, 1)
    assert torch.equal(letterbox(pixels, 32), square(pixels, 32))
    assert torch.equal(squashed(pixels, 32), square(pixels, 32))


# ---- towers in two files


def halves(folder: Path, weights: dict[str, Tensor]) -> tuple[str, str]:
    """The image tower in a file, and the text tower with its tokenizer and logit_scale in another."""
    image = {k: v for k, v in weights.items() if k.startswith("vis")}
    text = {k: v for k, v in weights.items() if k not in image}
    return write_clip(folder / "vision" / "image.safetensors", image), write_clip(folder / "text.safetensors", text)


def test_two_files_make_one_clip_and_the_user_is_told(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    image, text = halves(tmp_path, weights)
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / "vision" / name).unlink()
    whole = load_clip_score(write_clip(tmp_path / "whole.safetensors"))
    parts = load_clip_score(image, text_file=text)
    got, expected = (verifier.score(soft_pictures(), "a red circle") for verifier in (parts, whole))
    assert torch.allclose(got, expected, rtol=0, atol=1e-6)
    assert read_clip(image, text_file=text).logit_scale == float(weights["logit_scale"])
    assert any("only if these two towers were trained together" in note for note in parts.notes)


def test_an_image_tower_alone_is_enough_where_there_is_no_text(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    image, _ = halves(tmp_path, weights)
    alone = read_clip(image, texts=False).network
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(8))
    whole = read_clip(write_clip(tmp_path / "whole.safetensors"), texts=False).network
    assert torch.allclose(alone.embed_images(pixels), whole.embed_images(pixels), rtol=0, atol=1e-5)
    assert not any(name.startswith("text") for name in whole.state_dict())
    with pytest.raises(SearchError, match="image.safetensors has an image tower alone; choose the text tower"):
        read_clip(image)
    with pytest.raises(SearchError, match="this verifier has no text tower"):
        DualTower(towers(read_clip(write_clip(tmp_path / "whole.safetensors")), "", "").image, None).prompt("")


def test_text_files_that_do_not_fit_are_refused(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    image, text = halves(tmp_path, weights)
    whole = write_clip(tmp_path / "whole.safetensors")
    with pytest.raises(SearchError, match="text_file: got text.safetensors, but whole.safetensors has a text tower"):
        read_clip(whole, text_file=text)
    with pytest.raises(SearchError, match="text.safetensors has no usable visual_projection.weight"):
        read_clip(text)
    texts = {k: v for k, v in weights.items() if k.startswith("text")}
    bare = {k: v for k, v in texts.items() if k != "text_projection.weight"}
    with pytest.raises(SearchError, match="bare.safetensors has no usable text_projection.weight"):
        read_clip(image, text_file=write_clip(tmp_path / "bare.safetensors", bare))
    wide = {**texts, "text_projection.weight": torch.zeros(64, 128)}
    with pytest.raises(SearchError, match="wide.safetensors has embeddings of 64 numbers, image.safetensors of 48"):
        read_clip(image, text_file=write_clip(tmp_path / "wide.safetensors", wide))


def test_what_open_clips_json_file_says_is_believed(tmp_path: Path) -> None:
    file = write_clip(tmp_path / "open.pt")
    (tmp_path / "config.json").write_text('{"architecture": "vit_base_patch32_clip_224"}')  # another library's
    vision, text = {"width": 64, "layers": 3, "head_width": 32}, {"width": 128, "heads": 4}
    told = {
        "model_cfg": {"embed_dim": 48, "quick_gelu": False, "vision_cfg": vision, "text_cfg": text},
        "preprocess_cfg": {"mean": [0.5, 0.4, 0.3], "std": [1, 1, 2]},
    }
    (tmp_path / "open_clip_config.json").write_text(json.dumps(told))
    clip = read_clip(file)
    sizes = clip.network.sizes
    assert sizes.text is not None and (sizes.vision.heads, sizes.text.heads) == (2, 4)
    assert sizes.vision.activation == sizes.text.activation == "gelu"
    assert (clip.mean, clip.std, clip.notes) == ((0.5, 0.4, 0.3), (1, 1, 2), [])
