"""The page: the templates open and run, and the search nodes' own panel works, in both of ComfyUI's renderers."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pack.tests.host_server import PACK, HostServer
from pack.tests.workflows.graphs import NAMES, WORKFLOWS, folder_of, id_of, ledger, shipped

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright (pip install playwright)")

pytestmark = pytest.mark.browser

QUIET = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync",
         "--no-first-run"]  # fmt: skip
TIMEOUT = 240_000  # ms; software rendering on a small loaded machine
SEARCH = "13"  # the Search Sampler's id in first_search

#: Let the canvas paint what has arrived.
REDRAWN = """() => new Promise((done) => {
  let frames = 0;
  const next = () => {
    app.canvas.setDirty(true, true);
    if (++frames > 40) done(); else requestAnimationFrame(next);
  };
  next();
})"""

#: What the panel of a search says after its first image.
GOING = re.compile(r"^searching: \d{2,} of \d+ NFE, \d+ images?, best -?[\d.e-]+ \(about \d+ (s|min|h) left\)$")

#: Opens the page of a server with (True) or without (False) ComfyUI's Vue renderer.
Opener = Callable[[bool], Any]


@pytest.fixture(scope="module")
def chromium(browser: str) -> Iterator[Any]:
    """A headless Chromium."""
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=browser, headless=True, args=QUIET)
        yield running
        running.close()


@pytest.fixture
def opened(chromium: Any, server: HostServer) -> Iterator[Opener]:
    """Opens ComfyUI's page; a page that met an error of its own fails the test at its end."""
    contexts: list[Any] = []
    errors: list[str] = []

    def open_page(vue: bool) -> Any:
        settings = {
            "Comfy.TutorialCompleted": True, "Comfy.VueNodes.Enabled": vue, "Comfy.Minimap.Visible": False,
            "LiteGraph.Canvas.MinFontSizeForLOD": 0, "LiteGraph.Canvas.MaximumFps": 10,
            "Comfy.NodeBadge.NodeSourceBadgeMode": "None",
        }  # fmt: skip
        server.post("/api/settings", settings)
        contexts.append(chromium.new_context(viewport={"width": 1900, "height": 800}))
        page = contexts[-1].new_page()
        page.set_default_timeout(TIMEOUT)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(server.url)
        page.wait_for_function(
            "() => window.app?.extensionManager && LiteGraph.registered_node_types.NoiseSearchSampler && "
            "app.rootGraph?.nodes.length"
        )
        assert page.evaluate("() => LiteGraph.vueNodesMode === true") is vue
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert [error for error in errors if "noise" in error.lower()] == []


def load(page: Any, server: HostServer, name: str) -> None:
    """Open a template as the template list does: what the server serves, into the graph."""
    graph = server.get_json(f"/api/workflow_templates/{PACK.name}/{name}.json")
    page.evaluate("async (graph) => { await app.loadGraphData(graph, true, true, 'test') }", graph)
    page.wait_for_function(
        "(count) => app.rootGraph.nodes.length === count && !document.querySelector('[role=dialog]')",
        arg=len(graph["nodes"]),
    )


def queue(page: Any) -> None:
    """Press Run."""
    page.evaluate("async () => { await app.queuePrompt(0, 1) }")  # what it returns differs between ComfyUI versions


def panel(page: Any, node: str = SEARCH) -> tuple[Any, Any]:
    """The button and the text of a search node's panel."""
    page.evaluate(
        """(id) => {
          const node = app.rootGraph.getNodeById(id);
          app.canvas.ds.scale = 1;
          app.canvas.centerOnNode(node);
        }""",
        node,
    )
    return page.locator("button.noise-search-finish"), page.locator(".noise-search-result")


def set_widget(page: Any, name: str, value: int) -> None:
    """Set a widget of the search in the open first template."""
    page.evaluate(
        """([id, name, value]) => {
          app.rootGraph.getNodeById(id).widgets.find((w) => w.name === name).value = value;
        }""",
        [SEARCH, name, value],
    )


def endless(page: Any) -> None:
    """Let the search of the open first template run until it is ended."""
    set_widget(page, "max_candidates", 100000)


@pytest.mark.parametrize("name", NAMES)
def test_the_page_sends_what_the_api_file_says_and_saves_what_it_opened(
    opened: Opener, server: HostServer, name: str
) -> None:
    page = opened(False)
    load(page, server, name)
    types = page.evaluate("() => app.rootGraph.nodes.map((n) => [n.type, n.type in LiteGraph.registered_node_types])")
    assert [kind for kind, known in types if not known] == []
    sent = json.loads(page.evaluate("async () => JSON.stringify(await app.graphToPrompt())"))
    told = {key: (node["class_type"], node["inputs"]) for key, node in sent["output"].items()}
    assert told == {key: (node["class_type"], node["inputs"]) for key, node in shipped(name).items()}
    before = json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))
    for graph in (before, sent["workflow"]):
        graph["saved"] = {node["id"]: node.get("widgets_values") or [] for node in graph["nodes"]}
    assert sent["workflow"]["saved"] == before["saved"]
    assert sorted(sent["workflow"]["links"]) == sorted(before["links"])


@pytest.mark.parametrize("name, values", [("first_search", 15), ("refine_a_liked_image", 8)])
def test_a_graph_that_was_saved_before_distinct_existed_loads_with_its_values_and_with_that_off(
    opened: Opener, server: HostServer, name: str, values: int
) -> None:
    graph = json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))
    [node] = [node for node in graph["nodes"] if node["type"].startswith("NoiseSearchSampler")]
    del node["widgets_values"][values:]  # as many as the node had then
    page = opened(False)
    load(page, server, name)
    page.evaluate("async (graph) => { await app.loadGraphData(graph, true, true, 'old') }", graph)
    page.wait_for_function("(count) => app.rootGraph.nodes.length === count", arg=len(graph["nodes"]))
    sent = json.loads(page.evaluate("async () => JSON.stringify((await app.graphToPrompt()).output)"))
    told = {key: (each["class_type"], each["inputs"]) for key, each in sent.items()}
    assert told == {key: (each["class_type"], each["inputs"]) for key, each in shipped(name).items()}
    assert sent[str(node["id"])]["inputs"]["distinct"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("vue", [False, True], ids=["classic", "vue"])
def test_the_first_template_runs_and_shows_its_result(opened: Opener, server: HostServer, vue: bool) -> None:
    page = opened(vue)
    load(page, server, "first_search")
    button, text = panel(page)
    sync_api.expect(button).to_have_count(1)
    sync_api.expect(button).to_be_disabled()
    server.post("/free", {"free_memory": True})  # or it would show what it has made before
    queue(page)
    sync_api.expect(text).to_contain_text("best score", timeout=TIMEOUT)
    sync_api.expect(text).to_contain_text("24 candidates, 480 NFE")
    sync_api.expect(text).to_contain_text("held-out Exact Judge")
    sync_api.expect(text).to_contain_text("gain over the mean: searched ")
    sync_api.expect(text).to_contain_text(re.compile(r"rank agreement of .+ and .+: -?[\d.e-]+, the lowest of 3 pairs"))
    sync_api.expect(text).to_contain_text("stopped by candidates")
    sync_api.expect(button).to_be_disabled()
    page.evaluate("async () => { await app.extensionManager.command.execute('Comfy.Canvas.FitView') }")
    views = [key for key, node in shipped().items() if node["class_type"] in ("PreviewImage", "SaveImage")]
    shown = """(ids) => ids.every((id) => {
      const images = LiteGraph.vueNodesMode
        ? [...document.querySelectorAll(`[data-node-id="${id}"] img`)]
        : app.rootGraph.getNodeById(id).imgs ?? [];
      return images.length > 0 && images.every((image) => image.naturalWidth > 0);
    })"""
    page.wait_for_function(shown, arg=views)
    wanted = os.environ.get("NOISE_SEARCH_SCREENSHOT")
    if wanted and not vue:
        page.evaluate(REDRAWN)
        page.screenshot(path=wanted, timeout=TIMEOUT)


@pytest.mark.slow
@pytest.mark.parametrize("vue", [False, True], ids=["classic", "vue"])
def test_finish_now_ends_the_search_with_a_result(opened: Opener, server: HostServer, vue: bool) -> None:
    page = opened(vue)
    load(page, server, "first_search")
    endless(page)
    button, text = panel(page)
    queue(page)
    sync_api.expect(text).to_have_text(GOING, timeout=TIMEOUT)
    sync_api.expect(button).to_be_enabled()
    button.click()
    sync_api.expect(text).to_contain_text("stopped by finish now", timeout=TIMEOUT)
    sync_api.expect(button).to_be_disabled()


def test_a_result_that_overtakes_the_answer_to_finish_now_stays(opened: Opener, server: HostServer) -> None:
    page = opened(False)
    load(page, server, "first_search")
    button, text = panel(page)
    page.evaluate(
        """(id) => {
          const { api } = window.comfyAPI.api;
          const nodes = { [id]: { state: "running", value: 20, max: 480 } };
          api.dispatchEvent(new CustomEvent("progress_state", { detail: { nodes } }));
          const fetchApi = api.fetchApi.bind(api);
          api.fetchApi = async (path, ...rest) => {
            if (path !== "/noise_search/finish") return fetchApi(path, ...rest); // the page asks for other things too
            const result = { stopped: { "finish now": 1 }, candidates: 1, nfe: 20, seconds: 1 };
            app.rootGraph.getNodeById(id).onExecuted({ noise_search: [result] });
            return new Response(JSON.stringify({ finishing: [String(id)] }));
          };
        }""",
        SEARCH,
    )
    sync_api.expect(text).to_have_text("searching: 20 of 480 NFE")
    button.click()
    page.evaluate("() => new Promise((done) => setTimeout(done, 300))")  # whatever comes after the answer
    sync_api.expect(text).to_contain_text("stopped by finish now", timeout=1000)
    sync_api.expect(button).to_be_disabled()


TELL = """([states, news]) => {
  const { api } = window.comfyAPI.api;
  const send = (kind, detail) => api.dispatchEvent(new CustomEvent(kind, { detail }));
  const running = ([value, max]) => ({ state: "running", value, max });
  const nodes = Object.fromEntries(Object.entries(states).map(([id, state]) => [id, running(state)]));
  send("progress_state", { nodes });
  const all = { part: "", images: 0, best: null, seconds_per_nfe: null };
  for (const each of news) send("noise_search.news", { ...all, ...each });
  if (!Object.keys(states).length) send("executing", null);
}"""


def test_the_panel_says_how_its_own_search_goes(opened: Opener, server: HostServer) -> None:
    page = opened(False)
    load(page, server, "first_search")
    _, text = panel(page)

    def told(*news: dict[str, Any], nfe: tuple[int, int] = (120, 320)) -> str:
        page.evaluate(TELL, [{SEARCH: nfe, "99": (1, 2)}, news])
        return str(text.inner_text())

    counted = {"node_id": SEARCH, "nfe": 120, "expected": 320}
    own = {**counted, "images": 6, "best": 1.23456, "seconds_per_nfe": 0.2}
    assert told() == "searching: 120 of 320 NFE"
    assert told(counted) == "searching: 120 of 320 NFE"
    assert told(own) == "searching: 120 of 320 NFE, 6 images, best 1.235 (about 40 s left)"
    other = {**own, "node_id": "99", "images": 9}
    assert told(other) == "searching: 120 of 320 NFE, 6 images, best 1.235 (about 40 s left)"
    later = {**own, "nfe": 816, "expected": 2000000}
    assert told(later, nfe=(100, 2000000)).startswith("searching: 816 of 2000000 NFE, 6 images")  # the host's stands
    assert told({**own, "images": 1, "seconds_per_nfe": 3}).endswith("1 image, best 1.235 (about 10 min left)")
    assert told({**own, "nfe": 320, "best": None}) == "searching: 320 of 320 NFE, 6 images, none can win yet"
    unknown = {"expected": None, "seconds_per_nfe": None}
    assert told({**own, **unknown}, nfe=(120, 121)) == "searching: 120 NFE so far, 6 images, best 1.235"
    assert told({**counted, **unknown, "images": 0}, nfe=(120, 121)) == "searching: 120 NFE so far"
    assert told({**own, "part": "0003"}).startswith("searching prompt 3: 120 of 320 NFE, 6 images")
    page.evaluate(TELL, [{}, []])  # it is over; the next search in this node begins with nothing
    assert told() == "searching: 120 of 320 NFE"


def test_the_panel_says_how_well_scouts_told_the_scores(opened: Opener, server: HostServer) -> None:
    page = opened(False)
    load(page, server, "first_search")
    _, text = panel(page)

    def shown(**more: Any) -> str:
        result = {"stopped": {"nfe": 9}, "candidates": 3, "nfe": 9, "seconds": 1, **more}
        page.evaluate(
            "([id, result]) => app.rootGraph.getNodeById(id).onExecuted({ noise_search: [result] })", [SEARCH, result]
        )
        return str(text.inner_text())

    scouting = {"scouts": 24, "rendered": 6, "correlation": 0.82857}
    assert "24 scouts, 6 rendered in full, rank agreement with those: 0.8286\n" in shown(scouting=scouting)
    assert "24 scouts, 6 rendered in full\n" in shown(scouting={**scouting, "correlation": None})
    pair = {"first": "A", "second": "B", "correlation": 0.5}
    assert "rank agreement of A and B: 0.5\n" in shown(agreements=[pair, {**pair, "correlation": None}])
    said = shown(agreements=[], scouting=None)
    assert "agreement" not in said and "scouts" not in said


def test_the_panel_says_where_a_gain_cannot_be_measured(opened: Opener, server: HostServer) -> None:
    page = opened(False)
    load(page, server, "first_search")
    _, text = panel(page)

    def shown(gain: float | None, score: float | None) -> str:
        gains = [{"held_out_name": "Judge", "searched": 1.03, "held_out": gain, "ratio": None}]
        result = {"best": {"score": 2, "held_out": {"Judge": score}}, "gains": gains, "candidates": 3, "nfe": 9}
        page.evaluate(
            "([id, result]) => app.rootGraph.getNodeById(id).onExecuted({ noise_search: [result] })", [SEARCH, result]
        )
        return str(text.inner_text())

    assert "gain over the mean: searched 1.03 sd, Judge 0.5 sd\n" in shown(0.5, 1)
    assert "gain over the mean: searched 1.03 sd, Judge: all candidates score alike\n" in shown(None, 1)
    assert "gain over the mean: searched 1.03 sd, Judge: no score\n" in shown(None, None)


@pytest.mark.parametrize("vue", [False, True], ids=["classic", "vue"])
def test_a_long_result_scrolls_and_the_panel_grows_with_its_node(opened: Opener, server: HostServer, vue: bool) -> None:
    page = opened(vue)
    load(page, server, "first_search")
    _, text = panel(page)
    result = {"candidates": 3, "nfe": 9, "warnings": ["it pleases itself"], "notes": ["a note"] * 30}
    page.evaluate(
        "([id, result]) => app.rootGraph.getNodeById(id).onExecuted({ noise_search: [result] })", [SEARCH, result]
    )
    page.evaluate(REDRAWN)
    height = "(text) => text.parentElement.offsetHeight"
    before = text.evaluate(height)
    assert before >= 138
    assert text.evaluate("(text) => text.scrollHeight > text.clientHeight && text.clientHeight > 100")
    assert "gradient" in text.evaluate("(text) => text.style.maskImage")  # more lies below
    text.evaluate("(text) => { text.scrollTop = text.scrollHeight; }")
    page.wait_for_function("(text) => text.style.maskImage === 'none'", arg=text.element_handle())
    colours = "(text) => [text, text.firstChild, text.lastChild].map((each) => getComputedStyle(each).color)"
    plain, warns, note = text.evaluate(colours)
    assert plain == note != warns and "it pleases itself" in text.locator(".noise-search-warning").inner_text()
    page.evaluate(
        """(id) => {
          const node = app.rootGraph.getNodeById(id);
          node.setSize([node.size[0], node.size[1] + 300]);
        }""",
        SEARCH,
    )
    page.evaluate(REDRAWN)
    assert text.evaluate(height) >= before + 100  # the prompt above it takes its share


FAILS = """([node, detail]) => {
  const { api } = window.comfyAPI.api;
  const send = (kind, what) => api.dispatchEvent(new CustomEvent(kind, { detail: what }));
  send("execution_error", { prompt_id: "none-such", node_id: node, ...detail });
  send("executing", null);
}"""


def test_an_error_is_shown_on_its_own_node_and_names_no_file_that_is_not_there(
    opened: Opener, server: HostServer
) -> None:
    page = opened(False)
    load(page, server, "first_search")
    _, text = panel(page)
    failure = {"exception_message": "max_candidates: set a limit\n"}
    with page.expect_response("**/view?filename=ledger.jsonl*noise_search%2Fnone-such-13%2F0001*"):
        page.evaluate(FAILS, [SEARCH, failure])
    page.wait_for_timeout(300)
    assert text.inner_text() == "max_candidates: set a limit"
    page.evaluate(FAILS, ["99", {"exception_message": "another node's"}])
    assert text.inner_text() == "max_candidates: set a limit"
    files = server.output_dir / "noise_search" / f"none-such-{SEARCH}"
    files.mkdir(parents=True)
    (files / "ledger.jsonl").write_text("{}\n", encoding="utf-8")
    where = f"in output/noise_search/none-such-{SEARCH}"
    page.evaluate(FAILS, [SEARCH, failure])
    sync_api.expect(text).to_have_text(f"max_candidates: set a limit\nthe ledger is {where}")
    (files / "best.png").write_bytes(b"")
    page.evaluate(FAILS, [SEARCH, failure])
    sync_api.expect(text).to_have_text(f"max_candidates: set a limit\nthe best so far and the ledger are {where}")


def test_an_error_inside_a_subgraph_is_shown_there(opened: Opener, server: HostServer) -> None:
    page = opened(False)
    load(page, server, "first_search")
    search = page.evaluate(
        """(id) => {
          const made = app.rootGraph.convertToSubgraph(new Set([app.rootGraph.getNodeById(id)]));
          app.canvas.setGraph(made.subgraph);
          const inner = made.subgraph.nodes.find((node) => node.comfyClass === "NoiseSearchSampler");
          return `${made.node.id}:${inner.id}`;
        }""",
        SEARCH,
    )
    page.evaluate(FAILS, [search, {"exception_message": "vae: got nothing"}])
    sync_api.expect(page.locator(".noise-search-result")).to_have_text("vae: got nothing")


@pytest.mark.slow
def test_a_search_that_refuses_its_inputs_says_why(opened: Opener, server: HostServer) -> None:
    page = opened(False)
    load(page, server, "first_search")
    set_widget(page, "max_candidates", 0)
    _, text = panel(page)
    queue(page)
    sync_api.expect(text).to_contain_text("max_candidates", timeout=TIMEOUT)
    page.wait_for_timeout(500)
    assert "output/noise_search" not in text.inner_text()


def test_a_page_that_is_opened_during_a_search_knows_it_at_once(opened: Opener, server: HostServer) -> None:
    page = opened(False)
    load(page, server, "first_search")
    going = {"node_id": SEARCH, "part": "", "nfe": 120, "expected": 320, "images": 6, "best": 1.5}
    answer = {"running": [{**going, "seconds_per_nfe": 0.2}]}
    page.route("**/noise_search/running?client_id=*", lambda route: route.fulfill(json=answer))
    with page.expect_request("**/noise_search/running?client_id=*") as asked:
        page.reload()
    assert re.search(r"client_id=\w{8,}", asked.value.url)
    page.wait_for_function("() => window.app?.extensionManager && app.rootGraph?.nodes.length")
    load(page, server, "first_search")
    button, text = panel(page)
    sync_api.expect(text).to_have_text("searching: 120 of 320 NFE, 6 images, best 1.5 (about 40 s left)")
    sync_api.expect(button).to_be_enabled()
    with page.expect_request("**/noise_search/finish"):
        button.click()


@pytest.mark.slow
def test_a_page_that_is_opened_again_goes_on_to_say_how_the_search_goes(opened: Opener, server: HostServer) -> None:
    page = opened(False)
    load(page, server, "first_search")
    endless(page)
    queue(page)
    sync_api.expect(panel(page)[1]).to_have_text(GOING, timeout=TIMEOUT)
    page.reload()
    page.wait_for_function("() => window.app?.extensionManager && app.rootGraph?.nodes.length")
    load(page, server, "first_search")
    button, text = panel(page)
    sync_api.expect(text).to_have_text(GOING, timeout=TIMEOUT)
    button.click()
    sync_api.expect(text).to_contain_text("stopped by finish now", timeout=TIMEOUT)


@pytest.mark.slow
def test_the_files_of_a_search_bring_its_graph_back(opened: Opener, server: HostServer) -> None:
    page = opened(False)
    load(page, server, "first_search")
    set_widget(page, "max_candidates", 3)
    before = json.loads(page.evaluate("async () => JSON.stringify((await app.graphToPrompt()).output)"))
    count = page.evaluate("() => app.rootGraph.nodes.length")
    queue(page)
    sync_api.expect(panel(page)[1]).to_contain_text("3 candidates", timeout=TIMEOUT)
    page.wait_for_function("(id) => app.rootGraph.getNodeById(id).imgs?.length", arg=id_of(shipped(), "SaveImage"))
    files = server.output_dir / "noise_search"
    for pattern in ("best_*.png", f"*-{SEARCH}/best.png", f"*-{SEARCH}/best.latent"):
        path = max(files.glob(pattern), key=lambda path: path.stat().st_mtime)
        page.evaluate("() => { app.rootGraph.clear(); }")
        page.evaluate(
            """async ([filename, subfolder]) => {
              const where = new URLSearchParams({ filename, subfolder, type: "output" });
              const blob = await (await fetch(`/view?${where}`)).blob();
              await app.handleFile(new File([blob], filename, { type: filename.endsWith("png") ? "image/png" : "" }));
            }""",
            [path.name, path.parent.relative_to(server.output_dir).as_posix()],
        )
        page.wait_for_function("(count) => app.rootGraph.nodes.length === count", arg=count)
        after = json.loads(page.evaluate("async () => JSON.stringify((await app.graphToPrompt()).output)"))
        assert {key: node["inputs"] for key, node in after.items()} == {
            key: node["inputs"] for key, node in before.items()
        }


@pytest.mark.slow
def test_a_cancelled_search_says_where_its_files_are(opened: Opener, server: HostServer) -> None:
    page = opened(False)
    load(page, server, "first_search")
    endless(page)
    _, text = panel(page)
    queue(page)
    sync_api.expect(text).to_have_text(GOING, timeout=TIMEOUT)
    server.interrupt()
    sync_api.expect(text).to_contain_text("cancelled: the best so far and the ledger", timeout=TIMEOUT)
    said = re.search(rf"output/noise_search/([\w-]+)-{SEARCH}$", text.inner_text())
    assert said is not None
    assert ledger(folder_of(server, said[1], SEARCH))


@pytest.mark.slow
def test_a_search_that_is_cancelled_before_its_first_image_promises_none(opened: Opener, server: HostServer) -> None:
    page = opened(False)
    load(page, server, "first_search")
    set_widget(page, "steps", 10000)
    _, text = panel(page)
    queue(page)
    sync_api.expect(text).to_have_text(re.compile(r"^searching: \d{2,} "), timeout=TIMEOUT)
    server.interrupt()
    sync_api.expect(text).to_contain_text("before the first image: the ledger is in", timeout=TIMEOUT)
    said = re.search(rf"output/noise_search/([\w-]+)-{SEARCH}$", text.inner_text())
    assert said is not None
    folder = folder_of(server, said[1], SEARCH)
    assert len(ledger(folder)) == 1 and not (folder / "best.png").exists()


@pytest.mark.slow
def test_finish_now_works_inside_a_subgraph(opened: Opener, server: HostServer) -> None:
    page = opened(False)
    load(page, server, "first_search")
    endless(page)
    outer = page.evaluate(
        """(id) => {
          const made = app.rootGraph.convertToSubgraph(new Set([app.rootGraph.getNodeById(id)]));
          app.canvas.setGraph(made.subgraph);
          return String(made.node.id);
        }""",
        SEARCH,
    )
    button, text = page.locator("button.noise-search-finish"), page.locator(".noise-search-result")
    queue(page)
    sync_api.expect(text).to_have_text(re.compile(r"^searching: \d{2,} "), timeout=TIMEOUT)
    with page.expect_request("**/noise_search/finish") as asked:
        button.evaluate("(element) => element.click()")
    assert json.loads(asked.value.post_data)["node_id"].startswith(f"{outer}:")
    sync_api.expect(text).to_contain_text("stopped by finish now", timeout=TIMEOUT)
