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


def endless(page: Any) -> None:
    """Let the search of the open first template run until it is ended."""
    page.evaluate(
        """(id) => {
          const widget = app.rootGraph.getNodeById(id).widgets.find((w) => w.name === "max_candidates");
          widget.value = 100000;
        }""",
        SEARCH,
    )


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

    own = {"node_id": SEARCH, "images": 6, "best": 1.23456, "seconds_per_nfe": 0.2}
    assert told({"node_id": SEARCH}) == "searching: 120 of 320 NFE"
    assert told(own) == "searching: 120 of 320 NFE, 6 images, best 1.235 (about 40 s left)"
    other = {**own, "node_id": "99", "images": 9}
    assert told(other, nfe=(220, 320)) == "searching: 220 of 320 NFE, 6 images, best 1.235 (about 20 s left)"
    assert told({**own, "images": 1, "seconds_per_nfe": 3}).endswith("1 image, best 1.235 (about 10 min left)")
    assert told({**own, "best": None}, nfe=(320, 320)) == "searching: 320 of 320 NFE, 6 images, none can win yet"
    assert told({**own, "seconds_per_nfe": None}, nfe=(120, 121)) == "searching: 120 NFE, 6 images, best 1.235"
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
    page.evaluate(
        "(id) => { app.rootGraph.getNodeById(id).widgets.find((w) => w.name === 'max_candidates').value = 3; }", SEARCH
    )
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
    sync_api.expect(text).to_have_text(re.compile(r"^searching: \d{2,} "), timeout=TIMEOUT)
    server.interrupt()
    sync_api.expect(text).to_contain_text("cancelled: the best so far and the ledger", timeout=TIMEOUT)
    said = re.search(rf"output/noise_search/([\w-]+)-{SEARCH}$", text.inner_text())
    assert said is not None
    assert ledger(folder_of(server, said[1], SEARCH))


@pytest.mark.slow
def test_a_search_that_is_cancelled_before_its_first_image_promises_none(opened: Opener, server: HostServer) -> None:
    page = opened(False)
    load(page, server, "first_search")
    page.evaluate(
        "(id) => { app.rootGraph.getNodeById(id).widgets.find((w) => w.name === 'steps').value = 10000; }", SEARCH
    )
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
