"""The shipped workflow files: well formed, readable, and each there in both forms."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from pack.demo.scenes import parse
from pack.tests.workflows.graphs import DEMO, NAMES, REAL, WORKFLOWS, shipped
from pack.verifiers import VERIFIERS
from pack.verifiers.files import Source

TITLE = 30  # a node's title bar lies above its position
WEIGHTS = (".safetensors", ".pt", ".pth", ".bin")


def graph(name: str) -> dict[str, Any]:
    """A shipped workflow as the page opens it."""
    return dict(json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8")))


def test_every_workflow_is_there_for_the_page_and_for_the_api() -> None:
    assert NAMES == sorted(path.stem for path in WORKFLOWS.glob("*.json"))
    assert "first_search" in NAMES and set(REAL) <= set(NAMES)
    assert all((WORKFLOWS / f"{name}.jpg").stat().st_size < 100_000 for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_workflow_is_in_the_saved_form_with_whole_links(name: str) -> None:
    saved = graph(name)
    assert saved["version"] == 0.4
    nodes = {node["id"]: node for node in saved["nodes"]}
    assert saved["last_node_id"] >= max(nodes)
    for link, source, slot, target, target_slot, kind in saved["links"]:
        output, entry = nodes[source]["outputs"][slot], nodes[target]["inputs"][target_slot]
        assert link in output["links"] and entry["link"] == link
        assert output["type"] == entry["type"] == kind


@pytest.mark.parametrize("name", NAMES)
def test_no_node_covers_another_and_no_node_is_muted(name: str) -> None:
    nodes = graph(name)["nodes"]
    assert all(node["mode"] == 0 for node in nodes)
    boxes = [(node["pos"], node["size"], node["type"]) for node in nodes]
    for i, ((x, y), (w, h), one) in enumerate(boxes):
        for (x2, y2), (w2, h2), other in boxes[:i]:
            apart = x >= x2 + w2 or x2 >= x + w or y - TITLE >= y2 + h2 or y2 - TITLE >= y + h
            assert apart, f"{one} covers {other}"


@pytest.mark.parametrize("name", NAMES)
def test_seeds_stay_as_they_are_so_that_everyone_sees_the_same_result(name: str) -> None:
    for node in graph(name)["nodes"]:
        values = [v for v in node.get("widgets_values") or [] if v in ("randomize", "increment", "decrement")]
        assert values == [], node["type"]


@pytest.mark.parametrize("name", NAMES)
def test_the_api_form_has_titles_and_whole_links(name: str) -> None:
    prompt = shipped(name)
    for node in prompt.values():
        assert node["_meta"]["title"]
        for value in node["inputs"].values():
            assert not isinstance(value, list) or str(value[0]) in prompt


@pytest.mark.parametrize("name", DEMO)
def test_the_demo_world_knows_the_prompts_of_its_templates(name: str) -> None:
    nodes = shipped(name).values()
    texts = [node["inputs"]["text"] for node in nodes if node["class_type"] == "CLIPTextEncode"]
    assert [parse(text) for text in texts if text]


@pytest.mark.parametrize("name", REAL)
def test_a_template_with_real_models_has_30_seconds_an_ensemble_and_a_held_out_verifier(name: str) -> None:
    prompt = shipped(name)
    [search] = [node["inputs"] for node in prompt.values() if node["class_type"] == "NoiseSearchSampler"]
    limits = ("max_candidates", "max_nfe", "max_seconds", "target_score", "patience")
    assert [search[limit] for limit in limits] == [0, 0, 30, 0, 0]
    ensemble = prompt[search["verifier"][0]]["inputs"]
    members = [prompt[v[0]]["inputs"]["verifier"] for key, v in ensemble.items() if key.startswith("verifiers.")]
    assert members == ["ImageReward", "PickScore", "CLIPScore"] and ensemble["method"] == "z_score"
    held_out = prompt[search["held_out"][0]]["inputs"]
    assert held_out["verifier"] == "HPSv2" and "v2.1" in held_out["verifier.file"]
    assert prompt[search["candidates"][0]]["class_type"] == "NoiseSearchNoiseCandidate"


def fetched(saved: dict[str, Any]) -> Iterator[tuple[str, str, Source | None]]:
    """What a user of a template fetches: a link with the file's name, its folder, and what its verifier says of it."""
    kinds = {kind.name: kind for kind in VERIFIERS.values()}
    for node in saved["nodes"]:
        sources = kinds[node["widgets_values"][0]].sources if node["type"] == "NoiseSearchVerifier" else ()
        # The page offers these to the user when the loader's list lacks them.
        for model in node["properties"].get("models", []):
            assert model["name"] in node["widgets_values"]
            of_it = [s for s in sources if any(d.path == model["name"] for d in s.downloads)]
            used = [s for s in sources if s in of_it or not any(d.path.endswith(WEIGHTS) for d in s.downloads)]
            files = [(d.address, f"{model['directory']}/{d.path}", s) for s in used for d in s.downloads]
            for address, path, source in files or [(model["url"], f"{model['directory']}/{model['name']}", None)]:
                folder, _, file = path.rpartition("/")
                yield f"[{file}]({address})", f"models/{folder}", source


@pytest.mark.parametrize("name", REAL)
def test_the_note_says_of_every_file_where_it_is_and_where_it_goes(name: str) -> None:
    saved = graph(name)
    [note] = [node["widgets_values"][0] for node in saved["nodes"] if node["type"] == "MarkdownNote"]
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in note.splitlines() if "](http" in line]
    told = {(link, folder.strip("`")): (size, licence) for links, folder, size, licence in rows
            for link in re.findall(r"\[[^]]+\]\([^)]+\)", links)}  # fmt: skip
    wanted = {(link, folder): source for link, folder, source in fetched(saved)}
    assert told.keys() == wanted.keys()
    for key, (size, licence) in told.items():
        source = wanted[key]
        assert re.fullmatch(r"[\d.]+ [kMG]B", size) and licence
        assert source is None or (size == source.size and source.licence in licence)


@pytest.mark.parametrize("name", REAL)
def test_every_weight_file_that_a_widget_names_can_be_fetched_from_the_page(name: str) -> None:
    for node in graph(name)["nodes"]:
        files = {value for value in node.get("widgets_values") or [] if str(value).endswith(WEIGHTS)}
        assert files == {model["name"] for model in node["properties"].get("models", [])}


@pytest.mark.parametrize("name", NAMES)
def test_a_workflow_carries_no_path_and_no_name_of_the_machine_it_was_made_on(name: str) -> None:
    for path in (WORKFLOWS / f"{name}.json", WORKFLOWS / "api" / f"{name}.json"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r'"(/|[A-Za-z]:\\\\)', text)
        assert text.endswith("\n")
