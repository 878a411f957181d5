"""Pick From Report: every candidate that a report holds can be had again, not the winner alone."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import comfy.model_management
import comfy.samplers
import pytest
import torch

from pack import search
from pack.nodes.pick_node import PickFromReport
from pack.nodes.report_nodes import SaveSearchReport
from pack.nodes.series_node import SearchPrompts
from pack.nodes.verifier_nodes import ScoreImages
from pack.search import SearchError
from pack.tests.host_server import HostServer
from pack.tests.nodes import tiny
from pack.tests.workflows.graphs import add, id_of, pictures, save_latent, search_graph, search_id


def pick(report: Any, rank: int = 1, **inputs: Any) -> Any:
    """LATENT, IMAGE, NOISE, seed, score."""
    return tiny.execute(PickFromReport, report=report, rank=rank, **inputs).args


def same_latent(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether two LATENTs are the same, with all that lies beside their samples."""
    beside = [{key: value for key, value in each.items() if key != "samples"} for each in (a, b)]
    return str(beside[0]) == str(beside[1]) and tiny.difference(a, b) == 0.0


LATENTS: dict[str, dict[str, Any]] = {
    "plain": tiny.latent(),
    "masked": {**tiny.latent(), "noise_mask": torch.ones(1, 1, 8, 8), "batch_index": [3], "of another pack": "kept"},
    "a batch": tiny.latent(batch=2),
}


@pytest.mark.parametrize("kind", LATENTS)
def test_rank_1_is_what_the_search_sampler_gives(kind: str) -> None:
    latent = LATENTS[kind]
    out = tiny.search(tiny.sd3(), max_candidates=5, top_k=3, latent_image=latent).args
    picked = pick(out[5])
    assert same_latent(picked[0], out[0]) and picked[0].keys() == latent.keys()
    assert torch.equal(picked[1], out[1] if kind == "a batch" else out[1][:1])
    assert torch.equal(picked[2].generate_noise(latent), out[2].generate_noise(latent))
    assert picked[2].seed == out[2].seed and picked[3:] == out[3:5]
    assert same_latent(tiny.execute(PickFromReport, report=out[5]).args[0], out[0])  # an API call without rank


@pytest.mark.parametrize("family", ["flow", "eps"])
def test_the_seed_of_any_rank_gives_its_latent_in_stock_ksampler(family: str) -> None:
    model = tiny.model_of(family)
    report = tiny.search(model, max_candidates=5, top_k=3, batch_size=1).args[5]
    scores = sorted((e.score for e in report.finished), reverse=True)
    seeds = set()
    for rank in (1, 2, 3):
        latent, image, noise, seed, score = pick(report, rank)
        again = tiny.stock(model, seed)
        assert torch.equal(again["samples"], latent["samples"]) and score == scores[rank - 1]
        assert torch.equal(image, tiny.PictureVAE().decode(again["samples"]))
        seeds |= {seed, noise.seed}
    assert len(seeds) == 3


def test_the_noise_of_any_rank_gives_its_latent_in_sampler_custom_advanced() -> None:
    class Given:
        """A NOISE that only its owner can make again."""

        seed = 6

        def generate_noise(self, latent: dict[str, Any]) -> torch.Tensor:
            return torch.randn(latent["samples"].shape, generator=torch.Generator().manual_seed(9))

    model = tiny.sd3()
    guider, sampler, sigmas = tiny.guider(model), comfy.samplers.sampler_object("euler"), tiny.sigmas(model, 4)
    report = tiny.search_custom(
        Given(), guider, sampler, sigmas, max_candidates=5, top_k=4, batch_size=1,
        algorithm=search.algorithm("zero_order", neighbours=2),
    ).args[5]  # fmt: skip
    starts = set()
    for rank in (1, 2, 3, 4):
        latent, _, noise, seed, _ = pick(report, rank)
        starts.add(report.top[rank - 1].evaluation.recipe[0]["op"])
        assert "this candidate's noise is no plain seed" in seed.message
        assert tiny.difference(latent, tiny.stock_custom(noise, guider, sampler, sigmas, tiny.latent())) == 0.0
    assert starts == {"given"}


MIDWAY = {
    "smc": {"algorithm": search.algorithm("smc", particles=4, start=0.2, end=0.9)},
    "paths": {"algorithm": search.algorithm("paths", paths=1, width=3)},
}


@pytest.mark.parametrize("name", MIDWAY)
def test_where_the_search_acted_on_the_way_seed_and_noise_are_blocked_and_the_latent_is_there(name: str) -> None:
    report = tiny.search(
        tiny.sd3(), steps=6, max_candidates=0, max_nfe=80, top_k=8, verifier=tiny.Later(), **MIDWAY[name]
    ).args[5]
    latent, image, noise, seed, score = pick(report, 3)
    assert "acted on this candidate on its way" in noise.message and "use its LATENT" in noise.message
    assert "this candidate's noise is no plain seed" in seed.message
    assert torch.equal(image, tiny.PictureVAE().decode(latent["samples"]))
    assert score == report.top[2].evaluation.score < pick(report, 1)[4]


@pytest.mark.parametrize("kind", ["a batch", "a video"])
def test_a_candidate_of_several_images_comes_with_all_of_them(kind: str) -> None:
    model, latent = (tiny.sd3(), tiny.latent(batch=3)) if kind == "a batch" else (tiny.wan(), tiny.video_latent())
    report = tiny.search(model, latent_image=latent, max_candidates=4, top_k=3).args[5]
    for rank in (1, 2, 3):
        picked, image, *_ = pick(report, rank, vae=tiny.PictureVAE())
        decoded = tiny.PictureVAE().decode(picked["samples"])
        assert picked["samples"].shape == latent["samples"].shape
        assert torch.equal(image, decoded.reshape(-1, 8, 8, 3)) and len(image) == 3
    assert len(pick(report, 1)[1]) == 3
    picked, image, noise, seed, _ = pick(report, 2)  # the report holds one of them: nothing decodes the others
    assert "wire vae" in image.message and picked["samples"].shape == latent["samples"].shape
    if kind == "a batch":
        assert tiny.difference(tiny.stock(model, seed, latent_image=latent), picked) <= 1e-5


@pytest.mark.skipif(not tiny.HAS_MINIMAX, reason="this ComfyUI has no tiny model of nested latents")
def test_a_nested_latent_is_nested_again() -> None:
    settings = {"latent_image": tiny.nested_latent(), "positive": tiny.conditioning(1, width=48),
                "negative": tiny.conditioning(2, width=48), "max_candidates": 3, "top_k": 2}  # fmt: skip
    out = tiny.search(tiny.minimax_h3(), **settings).args
    assert same_latent(pick(out[5])[0], out[0])
    picked, image, *_ = pick(out[5], 2, vae=tiny.PictureVAE())
    assert [part.shape for part in tiny.parts(picked["samples"])] == [
        part.shape for part in tiny.parts(settings["latent_image"]["samples"])
    ]
    assert torch.equal(image, tiny.PictureVAE().decode(tiny.parts(picked["samples"])[0])[0])


@pytest.mark.parametrize("rank", [0, -1, 3, 256])
def test_a_rank_that_the_report_does_not_hold_names_the_widget(rank: int) -> None:
    report = tiny.search(tiny.sd3(), max_candidates=4, top_k=2).args[5]
    with pytest.raises(SearchError, match=f"rank: got {rank}; the report holds the best 2 of 4 .* 1 to 2, .* top_k"):
        pick(report, rank)


def test_a_report_of_images_is_refused_with_what_to_do_instead() -> None:
    pictures = torch.rand(3, 8, 8, 3, generator=torch.Generator().manual_seed(1))
    for report in (tiny.execute(ScoreImages, images=pictures, verifier=tiny.Mean()).args[2], None):
        with pytest.raises(SearchError, match="report: .* report of a Search Sampler, or wire latent to Score Images"):
            pick(report)


def test_of_each_prompt_of_search_prompts_the_best_can_be_picked_and_no_other() -> None:
    class TextEncoder:
        """A CLIP whose conditioning is a function of the text."""

        def tokenize(self, text: str) -> str:
            return text

        def encode_from_tokens_scheduled(self, tokens: str) -> Any:
            return tiny.conditioning(sum(map(ord, tokens)))

    widgets = {k: v for k, v in tiny.WIDGETS.items() if k not in ("positive", "negative")}
    images, latents, *_, reports = tiny.execute(
        SearchPrompts, model=tiny.sd3(), clip=TextEncoder(), prompts="a\nb", seed=5, vae=tiny.PictureVAE(),
        verifier=tiny.Mean(), max_candidates=3, **widgets,
    ).args  # fmt: skip
    for image, latent, report in zip(images, latents, reports, strict=True):
        picked = pick(report)
        assert same_latent(picked[0], latent) and torch.equal(picked[1], image)
        with pytest.raises(SearchError, match="Search Prompts and Measure Curve keep the best alone"):
            pick(report, 2)


def test_a_report_keeps_no_model_and_no_latent_of_the_user_alive_and_is_saved_as_ever() -> None:
    model, vae, latent = tiny.sd3(), tiny.PictureVAE(), tiny.latent()
    report = tiny.search(model, vae=vae, latent_image=latent, max_candidates=3, top_k=2).args[5]
    gone = [weakref.ref(each) for each in (model, model.model.diffusion_model, vae, latent["samples"])]
    del model, vae, latent
    comfy.model_management.unload_all_models()
    gc.collect()
    assert [each() for each in gone] == [None] * 4
    assert pick(report, 2)[0]["samples"].shape == (1, tiny.CHANNELS, 8, 8)
    assert "origin" not in report.to_dict() and tiny.execute(SaveSearchReport, report=report).args[0]


def test_in_a_running_comfyui_a_picked_seed_wired_to_ksampler_makes_the_picked_image(server: HostServer) -> None:
    prompt = search_graph(seed=47)
    inputs = prompt[search_id(prompt)]["inputs"]
    picked = add(prompt, "NoiseSearchPick", report=[search_id(prompt), 5], rank=2)
    image = add(prompt, "SaveImage", images=[picked, 1], filename_prefix="test")
    names = ("model", "steps", "cfg", "sampler_name", "scheduler", "positive", "negative", "latent_image", "denoise")
    again = add(prompt, "KSampler", seed=[picked, 3], **{name: inputs[name] for name in names})
    saved = [save_latent(prompt, [again, 0]), save_latent(prompt, [picked, 0])]
    entry = server.run(prompt)
    [shown] = pictures(server, entry, image)
    assert shown.std() > 0 and all((pictures(server, entry, node)[0] == shown).all() for node in saved)


def test_in_a_running_comfyui_score_images_sorts_a_latent_and_lists_where_its_rows_stood(server: HostServer) -> None:
    prompt = search_graph(seed=47, top_k=3)
    inputs = prompt[search_id(prompt)]["inputs"]
    names = ("model", "steps", "cfg", "sampler_name", "scheduler", "positive", "negative", "denoise")
    batch = add(prompt, "RepeatLatentBatch", samples=inputs["latent_image"], amount=3)
    made = add(prompt, "KSampler", seed=47, latent_image=[batch, 0], **{name: inputs[name] for name in names})
    decoded = add(prompt, "VAEDecode", samples=[made, 0], vae=[id_of(prompt, "VAELoader"), 0])
    scored = add(
        prompt, "NoiseSearchScoreImages", images=[decoded, 0], verifier=inputs["verifier"], keep=2, latent=[made, 0],
        prompt="two red circles left of a blue square",
    )  # fmt: skip
    images = add(prompt, "SaveImage", images=[scored, 0], filename_prefix="test")
    latents = save_latent(prompt, [scored, 4])
    place = add(prompt, "ImageFromBatch", image=[decoded, 0], batch_index=[scored, 3], length=1)
    each = add(prompt, "SaveImage", images=[place, 0], filename_prefix="test")  # runs once for each index
    entry = server.run(prompt)
    shown = [pictures(server, entry, node) for node in (images, latents, each)]
    assert [len(of) for of in shown] == [2, 2, 2]
    assert all((a == b).all() and (a == c).all() for a, b, c in zip(*shown, strict=True))
