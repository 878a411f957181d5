"""What a running ComfyUI knows of this pack: its nodes, its templates, and how it refuses bad inputs."""

import http.client
import json
from typing import Any

import pytest

from pack.nodes import NODES
from pack.nodes.model_files import register_folders
from pack.tests.host_server import PACK, HostError, HostServer
from pack.tests.workflows.graphs import NAMES, WORKFLOWS, Prompt, add, id_of, search_graph, search_id, shipped

SOCKETS_OF_STOCK = {"MODEL", "CONDITIONING", "LATENT", "GUIDER", "SAMPLER", "SIGMAS", "CLIP", "IMAGE"}


def schema_of(node: Any) -> Any:
    """A node's schema in this process, where no server has told ComfyUI about the pack's model folders yet."""
    register_folders()
    return node.GET_SCHEMA()


def widgets(inputs: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """All inputs of a node by name, with their options, those that a drop-down brings included."""
    found: dict[str, dict[str, Any]] = {}
    for group in ("required", "optional"):
        for name, spec in inputs.get(group, {}).items():
            options = spec[1] if len(spec) > 1 else {}
            found[name] = {"type": spec[0], **options}
            for choice in options.get("options", []):
                if isinstance(choice, dict):
                    found |= {f"{name}.{key}": value for key, value in widgets(choice["inputs"]).items()}
    return found


@pytest.mark.parametrize("node", NODES, ids=lambda node: node.__name__)
def test_a_node_is_listed_with_its_names_and_a_tooltip_on_every_widget(server: HostServer, node: Any) -> None:
    schema = schema_of(node)
    info = server.object_info(schema.node_id)
    assert info["display_name"] == schema.display_name
    assert schema.node_id.startswith("NoiseSearch")
    assert info["category"].split("/")[0] == "noise search"
    assert len(info["description"]) > 20
    silent = [
        name
        for name, widget in widgets(info["input"]).items()
        if not widget.get("tooltip") and widget["type"] not in SOCKETS_OF_STOCK
    ]
    assert silent == []


@pytest.mark.parametrize("node", NODES, ids=lambda node: node.__name__)
def test_every_output_says_what_it_is(server: HostServer, node: Any) -> None:
    info = server.object_info(schema_of(node).node_id)
    said = info["output_tooltips"] or []
    assert len(said) == len(info["output"]) and all(said)


def test_every_node_has_its_help_page(server: HostServer) -> None:
    for node in NODES:
        page = server.get(f"/extensions/{PACK.name}/docs/{schema_of(node).node_id}.md").decode()
        assert page.startswith("# ") and 200 < len(page) < 6000


def test_the_browser_side_is_served_and_listed(server: HostServer) -> None:
    address = f"/extensions/{PACK.name}/noise_search.js"
    assert address in server.get_json("/api/extensions")
    assert server.get(address) == (PACK / "web" / "noise_search.js").read_bytes()


def test_the_templates_are_listed_and_served_each_with_its_thumbnail(server: HostServer) -> None:
    assert sorted(server.get_json("/workflow_templates")[PACK.name]) == NAMES
    for name in NAMES:
        served = server.get(f"/api/workflow_templates/{PACK.name}/{name}.json")
        assert json.loads(served) == json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))
        assert server.get(f"/api/workflow_templates/{PACK.name}/{name}.jpg").startswith(b"\xff\xd8")


def test_the_demo_models_are_in_the_stock_loaders(server: HostServer) -> None:
    [choices, *_] = server.object_info("UNETLoader")["input"]["required"]["unet_name"]
    assert "noise_search_demo_flow.safetensors" in choices
    [choices, *_] = server.object_info("VAELoader")["input"]["required"]["vae_name"]
    assert "noise_search_demo_vae.safetensors" in choices


# ---- bad inputs: refused with a sentence that a user understands


def refusal(server: HostServer, prompt: Prompt) -> str:
    """What the server says to a prompt that fails, when it is queued or when it runs."""
    with pytest.raises(HostError) as caught:
        server.run(prompt)
    return str(caught.value).splitlines()[0]


def test_a_missing_verifier_is_refused_before_anything_runs(server: HostServer) -> None:
    prompt = search_graph()
    del prompt[search_id(prompt)]["inputs"]["verifier"]
    said = refusal(server, prompt)
    assert "status 400" in said and "required_input_missing" in said and "verifier" in said


def test_a_value_outside_its_range_is_refused_before_anything_runs(server: HostServer) -> None:
    said = refusal(server, search_graph(top_k=0))
    assert "status 400" in said and "value_smaller_than_min" in said and "top_k" in said


def test_a_budget_without_a_limit_is_refused(server: HostServer) -> None:
    said = refusal(server, search_graph(max_candidates=0))
    assert "(NoiseSearchSampler)" in said and "budget" in said and "never end" in said


def test_a_budget_too_small_for_one_candidate_is_refused(server: HostServer) -> None:
    assert "budget: got max_nfe=3; one candidate takes 4" in refusal(server, search_graph(max_nfe=3))


def test_an_unknown_verifier_is_refused_with_the_known_ones(server: HostServer) -> None:
    said = refusal(server, search_graph(verifier="Nobody"))
    # ComfyUI drops a choice that it does not know without a word
    assert "(NoiseSearchVerifier)" in said and "expected one of CLIPScore" in said and "drop-down" in said


def test_a_prompt_that_the_exact_judge_cannot_read_is_refused_with_the_known_words(server: HostServer) -> None:
    said = refusal(server, search_graph(prompt="a castle in the clouds"))
    assert "Exact Judge" in said and "triangle" in said


def test_a_graph_with_several_texts_asks_for_the_prompt(server: HostServer) -> None:
    prompt = search_graph()
    inputs = prompt[search_id(prompt)]["inputs"]
    clip = [id_of(prompt, "NoiseSearchLoadDemoTextEncoder"), 0]
    second = add(prompt, "CLIPTextEncode", text="a green cross", clip=clip)
    both = add(prompt, "ConditioningCombine", conditioning_1=inputs["positive"], conditioning_2=[second, 0])
    inputs["positive"] = [both, 0]
    said = refusal(server, prompt)
    assert "2 different texts" in said and "prompt widget" in said


def test_weights_that_do_not_match_the_verifiers_are_refused(server: HostServer) -> None:
    prompt = shipped()
    prompt[id_of(prompt, "NoiseSearchVerifierEnsemble")]["inputs"]["weights"] = "1, 2, 3"
    assert "got 3 values for 2 verifiers" in refusal(server, prompt)


def test_a_request_to_finish_what_does_not_run_finishes_nothing(server: HostServer) -> None:
    for asked in ({"node_id": "999"}, {"node_id": 999}, {}, ["999"]):
        assert json.loads(server.post("/noise_search/finish", asked)) == {"finishing": []}


def test_a_request_to_finish_that_is_no_json_is_refused(server: HostServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("POST", "/noise_search/finish", b"{", {"Content-Type": "application/json"})
    answer = connection.getresponse()
    assert answer.status == 400 and "node_id" in json.loads(answer.read())["error"]
    connection.close()
