"""What a search leaves in files and tells the browser in a running ComfyUI, and what stock nodes make of it."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
from PIL import Image

from pack.tests.host_server import HostServer, failure
from pack.tests.workflows.graphs import (
    Prompt,
    add,
    folder_of,
    id_of,
    pictures,
    save_latent,
    search_graph,
    search_id,
    shipped,
    strict,
)

WORKFLOW = {"nodes": [], "links": [], "version": 0.4}


def run(server: HostServer, prompt: Prompt) -> dict[str, Any]:
    """Run a prompt as the page sends it: with the graph that the user sees."""
    extra = {"extra_pnginfo": {"workflow": WORKFLOW}}
    entry = server.wait(server.queue(prompt, extra_data=extra))
    assert entry["status"]["status_str"] == "success", failure(entry)
    return entry


def texts(server: HostServer, entry: dict[str, Any], node: str) -> dict[str, Any]:
    """What the first picture of a Save Image node holds beside its pixels."""
    picture = Image.open(io.BytesIO(server.view(entry["outputs"][node]["images"][0])))
    return {key: strict(value) for key, value in picture.text.items()}  # type: ignore[attr-defined]


def test_load_latent_reads_the_best_latent_and_its_image_is_the_winners(server: HostServer) -> None:
    prompt = search_graph(seed=71)
    node, saved = search_id(prompt), id_of(prompt, "SaveImage")
    entry = server.run(prompt)
    other = {key: node for key, node in shipped().items() if node["class_type"] == "VAELoader"}
    path = folder_of(server, entry["prompt"][1], node).relative_to(server.output_dir) / "best.latent"
    loaded = add(other, "LoadLatent", latent=f"{path.as_posix()} [output]")
    again = save_latent(other, [loaded, 0])
    assert np.array_equal(pictures(server, server.run(other), again)[0], pictures(server, entry, saved)[0])


def test_a_stock_save_image_after_two_searches_says_what_each_of_them_found(server: HostServer) -> None:
    prompt = search_graph(seed=72)
    one, saved = search_id(prompt), id_of(prompt, "SaveImage")
    other = add(prompt, "NoiseSearchSampler", **{**prompt[one]["inputs"], "seed": 73})
    both = add(prompt, "LatentBatch", samples1=[one, 0], samples2=[other, 0])
    prompt[id_of(prompt, "VAEDecode")]["inputs"]["samples"] = [both, 0]
    entry = run(server, prompt)
    found = texts(server, entry, saved)
    assert found["workflow"] == WORKFLOW and found["prompt"][one]["class_type"] == "NoiseSearchSampler"
    assert found["noise_search"].keys() == {one, other}
    for node, told in found["noise_search"].items():
        best = entry["outputs"][node]["noise_search"][0]["best"]
        assert {key: best[key] for key in ("recipe", "seed", "score", "held_out")}.items() <= told.items()
        assert told["budget"] == {"candidates": 4} and told["nfe"] == 16 and told["verifier"] == "Exact Judge"
        file = Image.open(folder_of(server, entry["prompt"][1], node) / "best.png").text  # type: ignore[attr-defined]
        assert json.loads(file["workflow"]) == WORKFLOW and json.loads(file["noise_search"]) == best


def test_where_the_search_comes_from_the_cache_save_image_says_nothing_of_it(server: HostServer) -> None:
    prompt = search_graph(seed=74)
    saved = id_of(prompt, "SaveImage")
    assert "noise_search" in texts(server, run(server, prompt), saved)
    prompt[saved]["inputs"]["filename_prefix"] = "another"
    assert texts(server, run(server, prompt), saved).keys() == {"prompt", "workflow"}


def test_search_prompts_says_what_it_found_for_each(server: HostServer) -> None:
    prompt = search_graph(save=False)
    inputs = {**prompt[search_id(prompt)]["inputs"], "max_candidates": 2}
    for name in ("positive", "negative", "top_k", "prompt", "distinct"):
        inputs.pop(name, None)
    del prompt[search_id(prompt)]
    clip = [id_of(prompt, "NoiseSearchLoadDemoTextEncoder"), 0]
    node = add(prompt, "NoiseSearchPrompts", **inputs, clip=clip, prompts="a red circle\na blue square", negative="")
    saved = add(prompt, "SaveImage", images=[node, 0], filename_prefix="test")
    found = texts(server, run(server, prompt), saved)
    assert found["noise_search"].keys() == {f"{node}/0001", f"{node}/0002"}


def test_the_browser_that_queued_it_hears_how_the_search_goes(server: HostServer) -> None:
    prompt = search_graph(seed=75, max_candidates=40)
    node = search_id(prompt)
    with server.listen() as bystander, server.listen() as listener:
        prompt_id = server.queue(prompt, listener.client_id)
        server.wait(prompt_id)
        listener.wait_for("executing", lambda data: data["node"] is None)
        news = listener.of_type("noise_search.news")
        assert bystander.of_type("noise_search.news") == []
    assert len(news) >= 2 and news[0]["images"] == 0 and news[0]["best"] is None
    later = [each for each in news if each["images"]]
    counts, bests = [each["images"] for each in later], [each["best"] for each in later]
    assert counts == sorted(counts) and 1 <= counts[0] and counts[-1] <= 40 and bests == sorted(bests)
    assert all(each["node_id"] == node and each["seconds_per_nfe"] > 0 for each in later)
    [shown] = server.wait(prompt_id)["outputs"][node]["noise_search"]
    assert len(news) <= 2 + 4 * (shown["seconds"] + 2)  # a few in a second


def test_a_search_that_nothing_can_win_names_the_picture_that_came_nearest(server: HostServer) -> None:
    prompt = search_graph(seed=76)
    node = search_id(prompt)
    judge = prompt[node]["inputs"]["verifier"]
    members = {"verifiers.verifier0": judge, "verifiers.verifier1": judge}
    vetoing = add(prompt, "NoiseSearchVerifierEnsemble", method="z_score", weights="", vetoes="2, -", **members)
    prompt[node]["inputs"]["verifier"] = [vetoing, 0]
    prompt_id = server.queue(prompt)
    said = failure(server.wait(prompt_id))
    assert said is not None and f"output/noise_search/{prompt_id}-{node}/no_winner.png" in said
    assert Image.open(folder_of(server, prompt_id, node) / "no_winner.png").size == (64, 64)
