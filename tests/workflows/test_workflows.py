"""The shipped workflow files: well formed, readable, and each there in both forms."""

import json
import re
from typing import Any

import pytest

from pack.demo.scenes import parse
from pack.tests.workflows.graphs import NAMES, WORKFLOWS, shipped

TITLE = 30  # a node's title bar lies above its position


def graph(name: str) -> dict[str, Any]:
    """A shipped workflow as the page opens it."""
    return dict(json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8")))


def test_every_workflow_is_there_for_the_page_and_for_the_api() -> None:
    assert NAMES == sorted(path.stem for path in WORKFLOWS.glob("*.json"))
    assert "first_search" in NAMES
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
def test_the_api_form_has_titles_and_prompts_that_the_demo_world_knows(name: str) -> None:
    prompt = shipped(name)
    texts = []
    for node in prompt.values():
        assert node["_meta"]["title"]
        for value in node["inputs"].values():
            assert not isinstance(value, list) or str(value[0]) in prompt
        if node["class_type"] == "CLIPTextEncode":
            texts.append(node["inputs"]["text"])
    scenes = [parse(text) for text in texts if text]
    assert scenes


@pytest.mark.parametrize("name", NAMES)
def test_a_workflow_carries_no_path_and_no_name_of_the_machine_it_was_made_on(name: str) -> None:
    for path in (WORKFLOWS / f"{name}.json", WORKFLOWS / "api" / f"{name}.json"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r'"(/|[A-Za-z]:\\\\)', text)
        assert text.endswith("\n")
