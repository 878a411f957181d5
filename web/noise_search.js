// The browser side of the nodes that search (Search Sampler, Search Prompts, Measure Curve): a Finish now button, and a
// few lines on how the search went. They lie in one DOM widget at the end of the node that is saved nowhere and sent nowhere.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const SEARCH_NODES = new Set([
  "NoiseSearchSampler", "NoiseSearchSamplerAdvanced", "NoiseSearchPrompts", "NoiseSearchMeasureCurve",
]);
const HEIGHT = 118;

/** Execution id ("5", or "3:5" in a subgraph) -> NFE made and expected, of the search nodes that run now. */
const running = new Map();
/** Execution id -> what the search that runs there has told of itself. */
const news = new Map();
/** Node -> its button and its text. */
const panels = new WeakMap();

/** Every search node of the open workflow with its execution id; one in a subgraph comes once per use of it. */
function* searchNodes(graph = app.rootGraph ?? app.graph, prefix = "") {
  for (const node of graph?.nodes ?? []) {
    if (SEARCH_NODES.has(node.comfyClass)) yield [prefix + node.id, node];
    if (node.subgraph) yield* searchNodes(node.subgraph, `${prefix}${node.id}:`);
  }
}

const runningIds = (node) => [...searchNodes()].filter(([id, n]) => n === node && running.has(id)).map(([id]) => id);

const short = (number) => (typeof number === "number" ? String(Number(number.toPrecision(4))) : "none");

/** Seconds as a person says them. */
function spoken(seconds) {
  if (seconds < 100) return `${Math.round(seconds)} s`;
  return seconds < 6000 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`;
}

/** How far a search is. It may not know its end: then it tells no pace either. */
function progressLine({ value, max }, told) {
  const prompt = told?.part ? ` prompt ${Number(told.part)}` : ""; // of Search Prompts
  if (!told?.images) return `searching${prompt}: ${value} of ${max} NFE`;
  const pace = told.seconds_per_nfe;
  const parts = [
    `${value}${pace === null ? "" : ` of ${max}`} NFE`,
    told.images === 1 ? "1 image" : `${told.images} images`,
    told.best === null ? "none can win yet" : `best ${short(told.best)}`,
  ];
  const left = pace === null ? 0 : pace * (max - value);
  return `searching${prompt}: ${parts.join(", ")}${left >= 1 ? ` (about ${spoken(left)} left)` : ""}`;
}

/** How alike the verifiers rank the candidates, in a line; of several pairs, the two that differ most. */
function agreementLines(agreements) {
  const known = (agreements ?? []).filter(({ correlation }) => typeof correlation === "number");
  if (!known.length) return [];
  const { first, second, correlation } = known.reduce((a, b) => (b.correlation < a.correlation ? b : a));
  const lowest = known.length > 1 ? `, the lowest of ${known.length} pairs` : "";
  return [`rank agreement of ${first} and ${second}: ${short(correlation)}${lowest}`];
}

/** What a finished search has to say, line by line. */
function resultLines({ best, first, candidates, nfe, seconds, stopped, gains, agreements, scouting, warnings, notes }) {
  const own = first?.candidate === 0 ? first : null;
  const lines = [`best score ${short(best?.score)}`];
  if (own && typeof own.score === "number" && best) {
    const gain = best.score - own.score;
    lines[0] += best.id === own.id ? " (candidate 0: your own seed)" : `, +${short(gain)} over candidate 0`;
  }
  for (const [name, score] of Object.entries(best?.held_out ?? {})) {
    const before = own && best.id !== own.id ? `, candidate 0: ${short(own.held_out?.[name])}` : "";
    lines.push(`held-out ${name}: ${short(score)}${before}`);
  }
  for (const { held_out_name: name, searched, held_out, ratio } of gains ?? []) {
    const kept = typeof ratio === "number" ? `, ${Math.round(100 * ratio)} % of it` : "";
    lines.push(`gain over the mean: searched ${short(searched)} sd, ${name} ${short(held_out)} sd${kept}`);
  }
  lines.push(...agreementLines(agreements));
  if (scouting) {
    const { scouts, rendered, correlation } = scouting;
    const agree = typeof correlation === "number" ? `, rank agreement with those: ${short(correlation)}` : "";
    lines.push(`${scouts} scouts, ${rendered} rendered in full${agree}`);
  }
  lines.push(`${candidates} candidates, ${nfe} NFE, ${short(seconds)} s`);
  lines.push(`stopped by ${Object.keys(stopped ?? {}).join(", ") || "nothing"}`);
  return [...(warnings ?? []).map((warning) => `WARNING: ${warning}`), ...lines, ...(notes ?? []).map((note) => `note: ${note}`)];
}

function showOutput(node, output) {
  const result = output?.noise_search?.[0];
  const panel = panels.get(node);
  if (result && panel) panel.text.textContent = resultLines(result).join("\n");
}

/** Bring buttons and counters in line with what runs. */
function refresh() {
  const states = new Map();
  for (const [id, node] of searchNodes()) {
    const state = running.get(id);
    states.set(node, state ? { ...state, told: news.get(id) } : states.get(node));
  }
  for (const [node, state] of states) {
    const panel = panels.get(node);
    if (!panel) continue;
    if (!state) panel.asked = false;
    panel.button.disabled = !state || panel.asked;
    panel.button.style.opacity = panel.button.disabled ? 0.5 : 1;
    if (!state) continue;
    panel.text.textContent = panel.asked
      ? "finishing with the best so far, after the first candidate at the earliest"
      : progressLine(state, state.told);
  }
}

/** Ask the server to end the searches of this node with what they have found. */
async function finishNow(node) {
  const panel = panels.get(node);
  panel.asked = true;
  refresh();
  const finishing = [];
  try {
    for (const id of runningIds(node)) {
      const answer = await api.fetchApi("/noise_search/finish", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ node_id: id }),
      });
      if (answer.ok) finishing.push(...(await answer.json()).finishing);
    }
  } finally {
    if (!finishing.length) panel.asked = false; // it ended by itself in the meantime, or the server was not reached
    refresh();
  }
}

function addPanel(node) {
  const element = document.createElement("div");
  element.style.cssText = "display:flex; flex-direction:column; gap:4px; box-sizing:border-box; height:100%";
  const button = document.createElement("button");
  button.type = "button";
  button.className = "noise-search-finish";
  button.textContent = "Finish now";
  button.title = "End this search with the best image so far. The nodes after it then run as usual.";
  button.disabled = true;
  button.style.cssText =
    "flex:none; padding:3px 8px; border-radius:6px; font:inherit; font-size:12px; cursor:pointer; " +
    "border:1px solid var(--border-color); background:var(--comfy-input-bg); color:var(--input-text); opacity:0.5";
  button.addEventListener("click", () => finishNow(node));
  button.addEventListener("pointerdown", (event) => event.stopPropagation()); // a press is no drag of the node
  const text = document.createElement("div");
  text.className = "noise-search-result";
  text.setAttribute("role", "status");
  text.style.cssText =
    "flex:1; min-height:0; overflow-y:auto; white-space:pre-wrap; overflow-wrap:anywhere; user-select:text; " +
    "font-size:11px; line-height:1.35; color:var(--descrip-text)";
  element.append(button, text);
  panels.set(node, { button, text, asked: false });

  const options = { serialize: false, getMinHeight: () => HEIGHT, getMaxHeight: () => HEIGHT };
  const widget = node.addDOMWidget("noise_search_panel", "noise_search_panel", element, options);
  widget.serialize = false; // `options.serialize` keeps it out of the prompt, this one out of the saved graph

  const onExecuted = node.onExecuted;
  node.onExecuted = function (output, ...rest) {
    onExecuted?.call(this, output, ...rest);
    for (const id of runningIds(node)) running.delete(id); // the news that it has ended come after its result
    refresh();
    showOutput(node, output);
  };
}

/** Whether a search has written an image; that of several prompts writes into one folder for each. */
async function hasImage(folder, filename) {
  for (const part of ["", "/0001"]) {
    const where = new URLSearchParams({ filename, subfolder: `noise_search/${folder}${part}`, type: "output" });
    if ((await api.fetchApi(`/view?${where}`, { method: "HEAD" })).ok) return true;
  }
  return false;
}

/** Say where the files of a search lie that has ended without a result. */
async function showFiles(panel, how, folder) {
  let found = " before the first image: the ledger is";
  if (await hasImage(folder, "best.png")) found = ": the best so far and the ledger are";
  else if (await hasImage(folder, "no_winner.png")) found = ": no image could win; the nearest (no_winner.png) and the ledger are";
  panel.text.textContent = `${how}${found} in output/noise_search/${folder}`;
}

/** A run has ended without a result of its own for the nodes that were in it. */
function ended(how, detail) {
  for (const [id, node] of searchNodes()) {
    const panel = panels.get(node);
    if (!panel || !running.has(id) || !how) continue;
    panel.text.textContent = how;
    showFiles(panel, how, `${detail?.prompt_id}-${id}`.replace(/[^\w.-]/g, "_"));
  }
  running.clear();
  news.clear();
  refresh();
}

app.registerExtension({
  name: "NoiseSearch.SearchSampler",

  setup() {
    api.addEventListener("progress_state", ({ detail }) => {
      running.clear();
      for (const [id, node] of Object.entries(detail?.nodes ?? {})) if (node.state === "running") running.set(id, node);
      refresh();
    });
    api.addEventListener("noise_search.news", ({ detail }) => {
      news.set(String(detail.node_id), detail);
      refresh();
    });
    api.addEventListener("executing", ({ detail }) => {
      if (!detail) ended(); // null: nothing runs any more
    });
    api.addEventListener("execution_success", () => ended());
    api.addEventListener("execution_interrupted", ({ detail }) => ended("cancelled", detail));
    api.addEventListener("execution_error", ({ detail }) => ended("stopped by an error", detail));
  },

  nodeCreated(node) {
    if (SEARCH_NODES.has(node.comfyClass)) addPanel(node);
  },

  afterConfigureGraph() {
    refresh();
  },

  /** ComfyUI brings outputs back when the user returns to a workflow's tab. Keys are "5" or "<subgraph id>:5". */
  onNodeOutputsUpdated(outputs) {
    for (const [, node] of searchNodes()) {
      const graph = node.graph === app.rootGraph ? "" : `${node.graph.id}:`;
      showOutput(node, outputs[`${graph}${node.id}`]);
    }
  },
});
