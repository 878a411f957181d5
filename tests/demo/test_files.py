"""The shipped files of the demo: hashes, size, formats, and equality with ComfyUI's own readers of them."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

from pack.demo import classifier, clip_model, mmdit, paths, scenes, tokens, vae

TEXTS = [
    "",
    "a picture of three purple triangles to the left of three yellow squares.",
    "two red circles",
    "Zorg crosses!",
    "naïve 日本",
]


def test_the_listed_hashes_are_those_of_the_files() -> None:
    lines = (paths.MODELS / "SHA256SUMS").read_text().splitlines()
    listed = dict(reversed(line.split("  ", 1)) for line in lines)
    present = {str(p.relative_to(paths.MODELS)) for p in paths.MODELS.rglob("*") if p.is_file()}
    assert set(listed) == {name.replace("\\", "/") for name in present} - {"SHA256SUMS", "MODEL_CARD.md"}
    for name, expected in listed.items():
        assert hashlib.sha256((paths.MODELS / name).read_bytes()).hexdigest() == expected, name


def test_all_files_together_stay_below_thirty_megabytes() -> None:
    assert sum(path.stat().st_size for path in paths.MODELS.rglob("*") if path.is_file()) < 30_000_000


def test_every_word_of_the_grammar_is_one_token_and_every_prompt_fits() -> None:
    _, tokenizer = clip_model.load(paths.CLIP)
    longest = scenes.prompts(scenes.parse("three purple triangles to the left of three yellow crosses"))
    for text in longest:
        ids = tokenizer(text + ".")["input_ids"]
        assert len(ids) == len(text.split()) + 3 <= tokens.MAX_LENGTH


def test_any_text_makes_the_round_trip_through_the_tokenizer() -> None:
    _, tokenizer = clip_model.load(paths.CLIP)
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        back = tokenizer.decode(ids, skip_special_tokens=True)
        assert back.replace(" ", "") == text.lower().replace(" ", "")


def test_the_host_tokenizer_gives_the_same_ids_as_transformers(host: Path) -> None:
    from comfy.sd1_clip import SDTokenizer

    theirs = SDTokenizer(tokenizer_path=str(paths.CLIP), embedding_size=128, max_length=tokens.MAX_LENGTH)
    _, tokenizer = clip_model.load(paths.CLIP)
    for text in TEXTS:
        (row, *_) = theirs.tokenize_with_weights(text)
        assert [token for token, _ in row] == clip_model.tokenize(tokenizer, [text])[0].tolist()


def test_a_thin_vae_and_its_wide_copy_are_the_same_function() -> None:
    wide = vae.load(paths.VAE)
    thin = vae.narrow(wide)
    images = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        latents = wide.encode(images)
        torch.testing.assert_close(thin.encode(images), latents, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(thin.decode(latents), wide.decode(latents), rtol=1e-4, atol=1e-4)
    assert all(torch.equal(a, b) for a, b in zip(vae.widen(thin).parameters(), wide.parameters(), strict=True))


def test_the_host_vae_loader_gives_the_same_pictures(host: Path) -> None:
    import comfy.sd
    import comfy.utils

    theirs = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(paths.VAE)), dtype=torch.float32)
    ours = vae.load(paths.VAE)
    images = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        latents = ours.encode(images)
        torch.testing.assert_close(theirs.encode(images), latents, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(theirs.decode(latents), ours.decode(latents), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", list(paths.DIFFUSION_FILES))
def test_the_host_loads_each_diffusion_model_natively_as_sd3_and_predicts_the_same(host: Path, name: str) -> None:
    import comfy.model_base
    import comfy.sd

    patcher = comfy.sd.load_diffusion_model(str(paths.DIFFUSION_FILES[name]), model_options={"dtype": torch.float32})
    assert isinstance(patcher.model, comfy.model_base.SD3)
    ours = mmdit.load(paths.DIFFUSION_FILES[name])
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 16, 8, 8, generator=generator)
    context = torch.randn(3, tokens.MAX_LENGTH, 128, generator=generator)
    y = torch.randn(3, 128, generator=generator)
    time = torch.tensor([10.0, 500.0, 999.0])
    with torch.no_grad():
        theirs = patcher.model.diffusion_model(x, time, context=context, y=y)
        torch.testing.assert_close(theirs, ours(x, time, context, y), rtol=1e-3, atol=1e-3)


def test_the_clip_folder_loads_in_transformers_and_its_text_does_not_depend_on_the_batch() -> None:
    model, tokenizer = clip_model.load(paths.CLIP)
    ids = clip_model.tokenize(tokenizer, ["a red circle", "two blue squares above a black cross"])
    with torch.no_grad():
        context, pooled = clip_model.encode_text(model, ids)
        alone = clip_model.encode_text(model, ids[:1])
    assert context.shape == (2, tokens.MAX_LENGTH, 128)
    torch.testing.assert_close(context[:1], alone[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(pooled[:1], alone[1], rtol=1e-4, atol=1e-4)
    config = json.loads((paths.CLIP / "config.json").read_text())
    assert config["text_config"]["eos_token_id"] == int(ids[0, -1])


def test_the_classifier_names_what_a_picture_shows() -> None:
    import random

    model = classifier.load(paths.CLASSIFIER)
    assert model.classes == scenes.CLASSES
    assert sum(parameter.numel() for parameter in model.parameters()) <= 500_000
    image = scenes.draw(scenes.parse("a red circle and a blue square"), random.Random(7))
    with torch.no_grad():
        logits = model(image[None].permute(0, 3, 1, 2))[0]
    assert {model.classes[int(index)] for index in logits.topk(2).indices} == {"red circle", "blue square"}
