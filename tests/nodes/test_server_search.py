"""Searches in a running ComfyUI, through its API: what comes out, and that it can be had again."""

import json
from typing import Any

import numpy as np
import pytest

from pack.search import ALGORITHMS
from pack.tests.host_server import HostServer
from pack.tests.workflows.graphs import (
    DEMO,
    add,
    folder_of,
    id_of,
    ledger,
    pictures,
    report_of,
    save_latent,
    search_graph,
    search_id,
    shipped,
    strict,
    without_clock,
)


@pytest.mark.parametrize("name", DEMO)
def test_a_shipped_workflow_runs_in_less_than_a_minute(server: HostServer, name: str) -> None:
    prompt = shipped(name)
    entry = server.run(prompt, timeout=60)
    for node in prompt:
        if prompt[node]["class_type"] in ("PreviewImage", "SaveImage"):
            assert all(picture.std() > 0 for picture in pictures(server, entry, node))


def test_the_first_template_gives_pictures_and_a_report(server: HostServer) -> None:
    prompt = shipped()
    node = search_id(prompt)
    prompt[id_of(prompt, "NoiseSearchNoiseCandidate")]["inputs"]["seed"] = 8  # not what another test left in the cache
    entry = server.run(prompt)
    [summary] = entry["outputs"][node]["noise_search"]
    limit = prompt[node]["inputs"]["max_candidates"]
    assert summary["candidates"] == limit and summary["stopped"] == {"candidates": limit}
    assert summary["nfe"] == limit * prompt[node]["inputs"]["steps"]
    assert summary["model_rows"] == 2 * summary["nfe"]  # conditional and unconditional
    assert summary["best"]["score"] >= summary["first"]["score"]
    assert set(summary["best"]["held_out"]) == {"Exact Judge"}

    files = [server.output_dir / path for path in entry["outputs"][id_of(prompt, "NoiseSearchSaveReport")]["text"]]
    assert [path.suffix for path in files] == [".json", ".csv"]
    report = strict(files[0].read_text(encoding="utf-8"))
    assert len(report["evaluations"]) == limit
    assert report["settings"]["prompt"] == "two red circles left of a blue square"  # read from the graph
    assert len(files[1].read_text(encoding="utf-8").splitlines()) == limit + 1
    assert report == report_of(server, entry["prompt"][1], node)


def test_the_same_prompt_is_cached_and_run_anew_it_makes_the_same_ledger(server: HostServer) -> None:
    prompt = search_graph(seed=41, top_k=2)
    node = search_id(prompt)
    first = server.run(prompt)
    with server.listen() as listener:
        again = server.queue(prompt, listener.client_id)
        cached = listener.wait_for("execution_cached", lambda data: data["prompt_id"] == again)
        server.wait(again)
    assert node in cached["nodes"]
    assert not folder_of(server, again, node).exists()
    anew = server.run(search_graph(seed=41, top_k=3))  # how many images come out is no part of a search
    one, other = (ledger(folder_of(server, entry["prompt"][1], node)) for entry in (first, anew))
    assert len(one) == 5 and without_clock(one) == without_clock(other)


def test_a_search_through_the_same_vae_twice_is_the_search_through_it_once(server: HostServer) -> None:
    ledgers = []
    for wired in (False, True):
        prompt = search_graph(seed=43, steps=8, max_candidates=0, max_nfe=96)
        sampler = prompt[search_id(prompt)]["inputs"]
        paths = {"paths": 3, "width": 2, "start": 0.2, "forward": 0.6, "backward": 0.7, "leg_steps": 0}
        sampler["algorithm"] = [add(prompt, "NoiseSearchAlgorithmPaths", **paths), 0]
        sampler |= {"preview_vae": sampler["vae"]} if wired else {}
        entry = server.run(prompt)
        [summary] = entry["outputs"][search_id(prompt)]["noise_search"]
        assert ("what was not finished was decoded by preview_vae" in summary["notes"]) is wired
        ledgers.append(without_clock(ledger(folder_of(server, entry["prompt"][1], search_id(prompt)))))
    assert ledgers[0] == ledgers[1] and any(line.get("sigma") for line in ledgers[0])


def stock_ksampler(prompt: dict[str, Any], seed: list[Any]) -> str:
    """A KSampler with the search's own inputs and a wired seed; returns the id of its Save Image."""
    inputs = prompt[search_id(prompt)]["inputs"]
    names = ("model", "steps", "cfg", "sampler_name", "scheduler", "positive", "negative", "latent_image", "denoise")
    sampler = add(prompt, "KSampler", seed=seed, **{name: inputs[name] for name in names})
    return save_latent(prompt, [sampler, 0])


def stock_custom_sampler(prompt: dict[str, Any], noise: list[Any]) -> str:
    """SamplerCustomAdvanced with the search's own inputs and a wired NOISE; returns the id of its Save Image."""
    inputs = prompt[search_id(prompt)]["inputs"]
    guider = add(
        prompt, "CFGGuider", **{name: inputs[name] for name in ("model", "positive", "negative", "cfg")}
    )
    sampler = add(prompt, "KSamplerSelect", sampler_name=inputs["sampler_name"])
    sigmas = add(prompt, "BasicScheduler", **{n: inputs[n] for n in ("model", "scheduler", "steps", "denoise")})
    done = add(
        prompt, "SamplerCustomAdvanced", noise=noise, guider=[guider, 0], sampler=[sampler, 0], sigmas=[sigmas, 0],
        latent_image=inputs["latent_image"],
    )  # fmt: skip
    return save_latent(prompt, [done, 0])


@pytest.mark.parametrize("sampler_name", ["euler", "dpmpp_2m_sde"])
def test_seed_and_noise_of_the_winner_make_the_same_image_in_stock_samplers(
    server: HostServer, sampler_name: str
) -> None:
    prompt = search_graph(sampler_name=sampler_name, max_candidates=6)
    node, saved = search_id(prompt), id_of(prompt, "SaveImage")
    by_seed = stock_ksampler(prompt, [node, 3])
    by_noise = stock_custom_sampler(prompt, [node, 2])
    top = add(prompt, "SaveImage", images=[node, 1], filename_prefix="top")
    entry = server.run(prompt)
    [winner] = pictures(server, entry, saved)
    assert winner.shape == (64, 64, 3)
    assert np.array_equal(winner, pictures(server, entry, by_seed)[0])
    assert np.array_equal(winner, pictures(server, entry, by_noise)[0])
    images = pictures(server, entry, top)
    assert len(images) == 2 and np.array_equal(images[0], winner)


def test_candidates_gathered_into_one_forward_win_with_the_same_image(server: HostServer) -> None:
    """On a CPU a gathered forward may differ in the last bits, which is one of 255 levels at most."""
    prompt = search_graph(max_candidates=6, batch_size=6)
    saved = id_of(prompt, "SaveImage")
    entry = server.run(prompt)
    alone = server.run(search_graph(max_candidates=6, batch_size=1))
    gathered, single = (pictures(server, e, saved)[0].astype(int) for e in (entry, alone))
    assert np.abs(gathered - single).max() <= 1


def test_one_candidate_is_ksampler(server: HostServer) -> None:
    prompt = search_graph(max_candidates=1)
    saved = id_of(prompt, "SaveImage")
    stock = stock_ksampler(prompt, prompt[search_id(prompt)]["inputs"]["seed"])
    entry = server.run(prompt)
    assert np.array_equal(pictures(server, entry, saved)[0], pictures(server, entry, stock)[0])


def test_a_winner_that_is_no_plain_seed_blocks_the_seed_output_alone(server: HostServer) -> None:
    prompt = search_graph(max_candidates=6)
    node, saved = search_id(prompt), id_of(prompt, "SaveImage")
    around = add(prompt, "NoiseSearchNoiseFromRecipe", recipe='[{"op": "seed", "seed": 3}, '
                 '{"op": "near", "seed": 4, "cosine": 0.5}]')  # fmt: skip
    wired = add(prompt, "NoiseSearchNoiseCandidate", seed=1, cosine=0.9, noise=[around, 0])
    prompt[node]["inputs"]["candidates"] = [wired, 0]
    by_seed = stock_ksampler(prompt, [node, 3])
    by_noise = stock_custom_sampler(prompt, [node, 2])
    entry = server.run(prompt)
    assert by_seed not in entry["outputs"]
    assert np.array_equal(pictures(server, entry, saved)[0], pictures(server, entry, by_noise)[0])


def test_a_wired_random_noise_counts_as_its_plain_seed(server: HostServer) -> None:
    """ComfyUI loads its own node files under their paths, so its classes are not those that an import finds."""
    prompt = search_graph(max_candidates=1)
    node, saved = search_id(prompt), id_of(prompt, "SaveImage")
    liked = add(prompt, "RandomNoise", noise_seed=5)
    prompt[node]["inputs"]["candidates"] = [
        add(prompt, "NoiseSearchNoiseCandidate", seed=1, cosine=0.9, noise=[liked, 0]), 0
    ]  # fmt: skip
    by_seed = stock_ksampler(prompt, [node, 3])
    entry = server.run(prompt)
    assert entry["outputs"][node]["noise_search"][0]["best"]["recipe"] == [{"op": "seed", "seed": 5}]
    assert np.array_equal(pictures(server, entry, saved)[0], pictures(server, entry, by_seed)[0])


def test_a_re_noised_winner_blocks_seed_and_noise_and_what_hangs_on_the_latent_runs(server: HostServer) -> None:
    """Search: Paths finishes its first paths too, so with some seeds the winner is a plain one, and blocks nothing."""
    for seed in range(8):
        prompt = search_graph(verifier="CLIPScore", max_candidates=7, steps=10, seed=seed)
        node, saved = search_id(prompt), id_of(prompt, "SaveImage")
        paths = add(
            prompt, "NoiseSearchAlgorithmPaths", paths=3, width=2, start=0.2, forward=0.6, backward=0.7, leg_steps=0
        )
        prompt[node]["inputs"]["algorithm"] = [paths, 0]
        by_seed = stock_ksampler(prompt, [node, 3])
        by_noise = stock_custom_sampler(prompt, [node, 2])
        entry = server.run(prompt)
        assert saved in entry["outputs"]
        best = entry["outputs"][node]["noise_search"][0]["best"]
        plain = all(operation["op"] != "renoise" for operation in best["recipe"])
        assert (by_seed in entry["outputs"], by_noise in entry["outputs"]) == (plain, plain)
        if not plain:
            return
    pytest.fail("the winner was a plain seed eight times")


def algorithm_nodes(server: HostServer) -> list[str]:
    """The ids of all nodes whose output is an algorithm."""
    return [name for name, info in server.object_info().items() if info["output"] == ["SEARCH_ALGORITHM"]]


def defaults(server: HostServer, name: str) -> dict[str, Any]:
    """The values that a node's widgets have when it is put on the canvas."""
    required = server.object_info(name)["input"].get("required", {})
    values = {}
    for widget, (kind, *more) in required.items():
        options = more[0] if more else {}
        first = options["options"][0] if options.get("options") else None
        first = first["key"] if isinstance(first, dict) else first
        values[widget] = options.get("default", kind[0] if isinstance(kind, list) else first)
    return values


def test_every_algorithm_runs_from_its_node_with_its_defaults(server: HostServer) -> None:
    names = algorithm_nodes(server)
    assert len(names) == len(ALGORITHMS)
    for name in names:
        prompt = search_graph(verifier="CLIPScore", max_candidates=0, max_nfe=60, steps=5, seed=3)
        node, saved = search_id(prompt), id_of(prompt, "SaveImage")
        prompt[node]["inputs"]["algorithm"] = [add(prompt, name, **defaults(server, name)), 0]
        entry = server.run(prompt)
        shown = entry["outputs"][node]["noise_search"][0]
        assert saved in entry["outputs"], name
        assert 0 < shown["nfe"] <= 60 and shown["best"] is not None, name


def test_two_searches_with_equal_inputs_in_one_graph_each_get_their_own_result(server: HostServer) -> None:
    prompt = search_graph()
    one = search_id(prompt)
    other = add(prompt, "NoiseSearchSampler", **prompt[one]["inputs"])
    saved = [id_of(prompt, "SaveImage"), save_latent(prompt, [other, 0])]
    entry = server.run(prompt)
    pair = [pictures(server, entry, node)[0] for node in saved]
    assert np.array_equal(*pair)
    for node in (one, other):
        assert entry["outputs"][node]["noise_search"][0]["candidates"] == 4
        assert len(ledger(folder_of(server, entry["prompt"][1], node))) == 5


def test_progress_counts_model_calls_and_the_best_image_so_far_is_shown(server: HostServer) -> None:
    prompt = search_graph(steps=5, seed=123)
    node = search_id(prompt)
    with server.listen() as listener:
        prompt_id = server.queue(prompt, listener.client_id)
        result = listener.wait_for("executed", lambda data: data["node"] == node)
        server.wait(prompt_id)
        bars = [data for data in listener.of_type("progress") if data["node"] == node]
        previews = listener.of_type("binary")
    values = [bar["value"] for bar in bars]
    # the host drops what comes within 100 ms, but always sends the first value, the last and every preview
    assert values == sorted(values) and values[0] < values[-1] == 20
    assert {bar["max"] for bar in bars} == {20}
    assert previews and all(b"\xff\xd8" in preview[:16] for preview in previews)  # JPEG
    json.dumps(result, allow_nan=False)
    assert result["output"]["noise_search"][0]["nfe"] == 20
