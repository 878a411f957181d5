"""Searches that do not end well or not by themselves: what was found is kept, and ComfyUI goes on."""

import json
import math
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pack.tests.host_server import PACK, HostServer, Listener, failure
from pack.tests.workflows.graphs import (
    Prompt,
    add,
    folder_of,
    id_of,
    ledger,
    pictures,
    report_of,
    search_graph,
    search_id,
)

#: What a stranger has to write to bring a verifier of their own.
STRANGERS_PACK = '''
class Judge:
    def __init__(self, mode):
        self.name, self.mode, self.seen = f"stranger ({mode})", mode, []

    def score(self, images, prompt):
        return images.new_tensor([self.one(image) for image in images])

    def one(self, image):
        key = image.numpy().tobytes()
        self.seen += [key] * (key not in self.seen)
        number = self.seen.index(key)
        if self.mode == "fails" and number == 4:
            raise RuntimeError("no such picture")
        odd = {"not a number": float("nan"), "infinite": float("inf")}.get(self.mode)
        return odd if odd is not None and number % 2 else float(image.mean())


class StrangersVerifier:
    RETURN_TYPES, FUNCTION, CATEGORY = ("VERIFIER",), "make", "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"mode": ("STRING", {"default": "brightness"})}}

    def make(self, mode):
        return (Judge(mode),)


NODE_CLASS_MAPPINGS = {"StrangersVerifier": StrangersVerifier}
'''


@pytest.fixture(scope="module")
def strangers(host: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostServer]:
    """A server with this pack and the pack of a stranger who has never heard of it."""
    pack = tmp_path_factory.mktemp("packs") / "strangers_pack"
    pack.mkdir()
    (pack / "__init__.py").write_text(textwrap.dedent(STRANGERS_PACK), encoding="utf-8")
    with HostServer(host, tmp_path_factory.mktemp("strangers"), packs=[PACK, pack]) as running:
        yield running


def strangers_graph(mode: str, **inputs: Any) -> Prompt:
    """A search that the stranger's verifier steers."""
    prompt = search_graph(**inputs)
    prompt[search_id(prompt)]["inputs"]["verifier"] = [add(prompt, "StrangersVerifier", mode=mode), 0]
    return prompt


def endless(**inputs: Any) -> Prompt:
    """A search that goes on until somebody ends it."""
    return search_graph(max_candidates=100000, **inputs)


def mid_search(listener: Listener, node: str, nfe: int = 9) -> None:
    """Return once the search in a node has made so many model calls and shown its first image."""
    listener.wait_for("progress", lambda data: data["node"] == node and data["value"] >= nfe)
    listener.wait_for("binary")


def numbers(value: Any) -> list[float]:
    """All floats anywhere in a message."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for item in value for number in numbers(item)]
    return [value] if isinstance(value, float) else []


def test_a_strangers_verifier_takes_part(strangers: HostServer) -> None:
    prompt = strangers_graph("brightness", seed=11)
    entry = strangers.run(prompt)
    node = search_id(prompt)
    report = report_of(strangers, entry["prompt"][1], node)
    scores = [line["score"] for line in report["evaluations"]]
    assert len(scores) == 4 and report["best"]["score"] == max(scores)
    winner = pictures(strangers, entry, id_of(prompt, "SaveImage"))[0]
    assert abs(winner.mean() / 255 - max(scores)) < 0.01


@pytest.mark.parametrize("mode", ["not a number", "infinite"])
def test_scores_that_are_no_numbers_reach_neither_browser_nor_disk(strangers: HostServer, mode: str) -> None:
    prompt = strangers_graph(mode, seed=12)
    node = search_id(prompt)
    add(prompt, "NoiseSearchSaveReport", report=[node, 5], filename_prefix="odd")
    sheet = add(prompt, "NoiseSearchContactSheet", report=[node, 5], columns=2, cell=64)
    add(prompt, "PreviewImage", images=[sheet, 0])
    plot = add(prompt, "NoiseSearchReportPlot", report=[node, 5], width=320, height=240)
    add(prompt, "PreviewImage", images=[plot, 0])
    with strangers.listen() as listener:
        prompt_id = strangers.queue(prompt, listener.client_id)
        entry = strangers.wait(prompt_id)
        listener.wait_for("executing", lambda data: data["node"] is None)
        sent = [data for kind, data in listener.messages if kind != "binary"]
    assert entry["status"]["status_str"] == "success"
    assert all(math.isfinite(number) for number in numbers(sent))
    json.dumps(entry, allow_nan=False)
    lines = ledger(folder_of(strangers, prompt_id, node))[1:]  # parsed strictly
    assert [line["verdict"] for line in lines] == ["judged", "not judged"] * 2
    assert [line["score"] is None for line in lines] == [False, True] * 2


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_a_verifier_that_raises_is_named_with_its_candidate_and_the_ledger_stays(
    strangers: HostServer, batch_size: int
) -> None:
    prompt = strangers_graph("fails", max_candidates=8, batch_size=batch_size)
    node = search_id(prompt)
    prompt_id = strangers.queue(prompt)
    entry = strangers.wait(prompt_id)
    said = failure(entry)
    assert said is not None and entry["status"]["status_str"] == "error"
    assert f"node {node} " in said
    assert "verifier stranger (fails) failed: RuntimeError: no such picture" in said and "candidate 4" in said
    assert [line["candidate"] for line in ledger(folder_of(strangers, prompt_id, node))[1:]] == [0, 1, 2, 3]
    assert Image.open(folder_of(strangers, prompt_id, node) / "best.png").size == (64, 64)
    strangers.run(strangers_graph("brightness", seed=13))  # the next search runs as if nothing had happened


def test_cancel_keeps_ledger_and_best_image_and_the_next_prompt_runs(server: HostServer) -> None:
    prompt = endless()
    node = search_id(prompt)
    with server.listen() as listener:
        prompt_id = server.queue(prompt, listener.client_id)
        mid_search(listener, node)
        server.interrupt()
        listener.wait_for("execution_interrupted", lambda data: data["prompt_id"] == prompt_id)
    entry = server.wait(prompt_id)
    assert "interruption" in str(failure(entry))
    folder = folder_of(server, prompt_id, node)
    lines = ledger(folder)[1:]
    assert len(lines) >= 2
    best = Image.open(folder / "best.png")
    told = json.loads(best.text["noise_search"])  # type: ignore[attr-defined]
    assert best.size == (64, 64) and told["score"] == max(line["score"] for line in lines)
    after = server.run(search_graph(seed=21))
    assert after["outputs"][node]["noise_search"][0]["candidates"] == 4


def finish(server: HostServer, prompt: Prompt, asked: Any) -> dict[str, Any]:
    """Run an endless search, press Finish now in the middle of it, and return the finished prompt."""
    node = search_id(prompt)
    with server.listen() as listener:
        prompt_id = server.queue(prompt, listener.client_id)
        mid_search(listener, node)
        assert json.loads(server.post("/noise_search/finish", asked)) == {"finishing": [node]}
        listener.wait_for("executed", lambda data: data["node"] == node and data["prompt_id"] == prompt_id)
    entry = server.wait(prompt_id)
    assert entry["status"]["status_str"] == "success"
    return entry


def test_finish_now_gives_the_normal_output_and_is_not_served_from_the_cache(server: HostServer) -> None:
    prompt = endless(seed=31)
    node, saved = search_id(prompt), id_of(prompt, "SaveImage")
    with server.listen() as bystander:
        before = len(bystander.messages)
        first = finish(server, prompt, {"node_id": node})
        assert first["outputs"][node]["noise_search"][0]["stopped"] == {"finish now": 1}
        assert len(pictures(server, first, saved)) == 1
        again = finish(server, prompt, {"node_id": node})  # it runs, or there would be nothing to finish
        assert len(bystander.messages) >= before
    one, other = (ledger(folder_of(server, entry["prompt"][1], node))[1:] for entry in (first, again))
    shared = min(len(one), len(other))
    assert shared >= 2
    assert [line["score"] for line in one[:shared]] == [line["score"] for line in other[:shared]]
    assert report_of(server, first["prompt"][1], node)["stopped"] == {"finish now": 1}


def test_a_search_that_ends_by_itself_after_one_that_was_cut_short_is_cached(server: HostServer) -> None:
    finish(server, endless(seed=32), {})  # without an id, every running search
    prompt = search_graph(seed=32)
    server.run(prompt)
    with server.listen() as listener:
        prompt_id = server.queue(prompt, listener.client_id)
        cached = listener.wait_for("execution_cached", lambda data: data["prompt_id"] == prompt_id)
        server.wait(prompt_id)
    assert search_id(prompt) in cached["nodes"]


def test_the_page_that_queued_a_search_can_ask_how_it_goes(server: HostServer) -> None:
    prompt = endless(seed=33)
    node = search_id(prompt)
    with server.listen() as listener:
        prompt_id = server.queue(prompt, listener.client_id)
        mid_search(listener, node)
        [own] = server.get_json(f"/noise_search/running?client_id={listener.client_id}")["running"]
        assert own["node_id"] == node and own["nfe"] >= 9 and own["expected"] == 400000 and own["images"] >= 1
        assert server.get_json("/noise_search/running?client_id=another") == {"running": []}
        assert len(server.get_json("/noise_search/running")["running"]) == 1
        server.post("/noise_search/finish", {"node_id": node})
        server.wait(prompt_id)
    assert server.get_json("/noise_search/running") == {"running": []}


@pytest.mark.slow
def test_a_killed_server_leaves_a_whole_ledger_and_a_whole_picture(host: Path, tmp_path: Path) -> None:
    prompt = endless()
    node = search_id(prompt)
    with HostServer(host, tmp_path) as server, server.listen() as listener:
        prompt_id = server.queue(prompt, listener.client_id)
        mid_search(listener, node, nfe=17)
        server.kill()
    folder = folder_of(server, prompt_id, node)
    whole = [line + "\n" for line in (folder / "ledger.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]
    lines = [json.loads(line) for line in whole]
    assert "settings" in lines[0] and [line["candidate"] for line in lines[1:]] == list(range(len(lines) - 1))
    assert len(lines) >= 3
    Image.open(folder / "best.png").load()
