"""The templates with real models: legal as they are, and run whole with tiny random weights in the real formats.

What the page makes of them is tested with the others' in tests/web/test_browser.py. No real weights are needed here,
and none are at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import isfinite
from pathlib import Path
from typing import Any

import pytest

from pack.tests.host_server import PACK, HostError, HostServer, failure
from pack.tests.workflows.graphs import REAL, Prompt, add, id_of, pictures, report_of, search_id, shipped
from pack.tests.workflows.legality import problems
from pack.tests.workflows.tiny_files import write_models, write_verifiers
from pack.verifiers import VERIFIERS

#: The loader of each template that cannot take a tiny file, and what stands in for it.
SWAPPED = {
    "sdxl_30_seconds": ("CheckpointLoaderSimple", "TinyCheckpointLoader"),
    "flux_dev_30_seconds": ("DualCLIPLoader", "TinyDualCLIPLoader"),
}


@pytest.fixture(scope="module")
def stocked(host: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostServer]:
    """A running ComfyUI with tiny files under all names that the templates ask for, and the two tiny loaders."""
    loaders = PACK / "tests" / "workflows" / "tiny_loaders.py"
    running = HostServer(host, tmp_path_factory.mktemp("stocked"), packs=(PACK, loaders))
    running.models_dir.mkdir()
    write_models(running.models_dir)
    write_verifiers(running.models_dir / "verifiers")
    with running:
        yield running


@pytest.fixture(scope="module")
def known(stocked: HostServer) -> dict[str, Any]:
    """/object_info of that server."""
    return stocked.object_info()


@pytest.mark.parametrize("name", REAL)
def test_every_node_input_link_and_value_is_one_that_the_host_knows(known: dict[str, Any], name: str) -> None:
    assert problems(shipped(name), known) == []


def inputs_of(prompt: Prompt, class_type: str) -> dict[str, Any]:
    """The inputs of the only node of a class."""
    found: dict[str, Any] = prompt[id_of(prompt, class_type)]["inputs"]
    return found


#: What the check says -> what breaks the graph so.
BROKEN: dict[str, Callable[[Prompt], object]] = {
    "no such node": lambda p: add(p, "NoNode"),
    "no input max_minutes": lambda p: inputs_of(p, "NoiseSearchSampler").update(max_minutes=1),
    "vae is missing": lambda p: inputs_of(p, "NoiseSearchSampler").pop("vae"),
    "vae is VAE, and output 0": lambda p: inputs_of(p, "NoiseSearchSampler").update(vae=["3", 0]),
    "max_seconds is -1, outside 0": lambda p: inputs_of(p, "NoiseSearchSampler").update(max_seconds=-1),
    "steps is INT and has the value 2.5": lambda p: inputs_of(p, "NoiseSearchSampler").update(steps=2.5),
    "ckpt_name has the value 'x'": lambda p: inputs_of(p, "CheckpointLoaderSimple").update(ckpt_name="x"),
    "verifier.file has the value 'x'": lambda p: p["9"]["inputs"].update({"verifier.file": "x"}),
    "verifiers.verifier1 is missing": lambda p: inputs_of(p, "NoiseSearchVerifierEnsemble").pop("verifiers.verifier1"),
}


@pytest.mark.parametrize("said", list(BROKEN))
def test_the_check_finds_what_is_broken(known: dict[str, Any], said: str) -> None:
    prompt = shipped("sdxl_30_seconds")
    BROKEN[said](prompt)
    [found] = problems(prompt, known)
    assert said in found


@pytest.mark.parametrize("name", REAL)
def test_the_host_takes_the_template_as_it_is_and_only_one_loader_refuses_its_tiny_file(
    stocked: HostServer, name: str
) -> None:
    entry = stocked.wait(stocked.queue(shipped(name)))
    assert f"({SWAPPED[name][0]})" in (failure(entry) or "no error")


def tiny(name: str) -> Prompt:
    """A template with one loader swapped. For time's sake its pictures are small, and there are three of them."""
    prompt = shipped(name)
    stock, ours = SWAPPED[name]
    prompt[id_of(prompt, stock)]["class_type"] = ours
    [latent] = [node for node in prompt.values() if node["class_type"].startswith("Empty")]
    latent["inputs"] |= {"width": 64, "height": 64}
    prompt[search_id(prompt)]["inputs"]["max_candidates"] = 3  # max_seconds stays 30
    return prompt


@pytest.mark.parametrize("name", REAL)
def test_a_template_runs_whole_with_tiny_random_weights(stocked: HostServer, known: dict[str, Any], name: str) -> None:
    prompt = tiny(name)
    assert problems(prompt, known) == []
    entry = stocked.run(prompt)
    node = search_id(prompt)
    [summary] = entry["outputs"][node]["noise_search"]
    assert summary["stopped"] == {"candidates": 3} and summary["candidates"] == 3
    assert summary["nfe"] == 3 * prompt[node]["inputs"]["steps"]
    negatives = 1 if prompt[node]["inputs"]["cfg"] == 1 else 2
    assert summary["model_rows"] == negatives * summary["nfe"]

    report = report_of(stocked, entry["prompt"][1], node)
    positive, *_ = [n["inputs"]["text"] for n in prompt.values() if n["class_type"] == "CLIPTextEncode"]
    assert report["settings"]["prompt"] == positive  # found in the graph, behind the sampler
    assert len(report["evaluations"]) == 3
    for evaluation in report["evaluations"]:
        assert list(evaluation["parts"]) == ["ImageReward", "PickScore", "CLIPScore"]
        assert list(evaluation["held_out"]) == ["HPSv2"]
        assert all(isfinite(s) for s in [*evaluation["parts"].values(), *evaluation["held_out"].values()])
    scores = [evaluation["score"] for evaluation in report["evaluations"]]
    assert summary["best"]["score"] == max(scores) and len(set(scores)) == 3
    for key in prompt:
        if prompt[key]["class_type"] in ("PreviewImage", "SaveImage"):
            assert all(picture.std() > 0 for picture in pictures(stocked, entry, key))


# ---- without the files


@pytest.mark.parametrize("name", REAL)
def test_without_the_files_the_host_names_every_loader_and_its_value(server: HostServer, name: str) -> None:
    with pytest.raises(HostError) as refused:
        server.queue(shipped(name))
    said = str(refused.value)
    assert "status 400" in said and "value_not_in_list" in said
    for node in shipped(name).values():
        if node["class_type"] in ("CheckpointLoaderSimple", "UNETLoader", "DualCLIPLoader", "VAELoader"):
            files = [v for v in node["inputs"].values() if v.endswith(".safetensors")]
            assert files and all(file in said for file in files)


@pytest.mark.parametrize("name", ["ImageReward", "PickScore", "HPSv2"])
def test_without_its_file_a_verifier_of_the_templates_says_in_one_sentence_what_to_fetch(
    server: HostServer, name: str
) -> None:
    prompt = {k: n for k, n in shipped("sdxl_30_seconds").items() if n["inputs"].get("verifier") == name}
    [key] = prompt
    picture = add(prompt, "EmptyImage", width=64, height=64, batch_size=1, color=0)
    scored = add(prompt, "NoiseSearchScoreImages", images=[picture, 0], verifier=[key, 0], prompt="a bicycle")
    add(prompt, "PreviewImage", images=[scored, 0])
    with pytest.raises(HostError) as refused:
        server.run(prompt)
    said = str(refused.value).splitlines()[0]
    [kind] = [kind for kind in VERIFIERS.values() if kind.name == name]
    assert "(NoiseSearchVerifier)" in said and said.endswith(str(kind.sources[0]))
