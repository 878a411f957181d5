// The browser side of the nodes that search (Search Sampler, Search Prompts, Measure Curve): a Finish now button, and a
// few lines on how the search went. They lie in one DOM widget at the end of the node that is saved nowhere and sent nowhere.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const SEARCH_NODES = new Set([
  "NoiseSearchSampler", "NoiseSearchSamplerAdvanced", "NoiseSearchPrompts", "NoiseSearchMeasureCurve",
]);
const HEIGHT = 150; // at least; it grows with the node
/** Readable on dark and on light themes: pulled half-way to the theme's own text colour. */
const WARNING_COLOUR = "color-mix(in srgb, #f80 50%, var(--input-text))";

/** Execution id ("5", or "3:5" in a subgraph) -> NFE made and expected, of the search nodes that run now. */
const running = new Map();
/** Execution id -> what the search that runs there has told of itself. */
const news = new Map();
/** Node -> its button, its text and what that says. */
const panels = new WeakMap();
/** How often a run has ended, to know an answer that is older than that. */
let endings = 0;

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

/** A line that stands out. */
const warning = (text) => ({ text, warns: true });

/** Write lines into a panel. */
function say(panel, lines) {
  panel.said = lines;
  const spans = lines.map((line) => {
    const span = document.createElement("span");
    span.textContent = line.text ?? line;
    if (line.warns) {
      span.className = "noise-search-warning";
      span.style.color = WARNING_COLOUR;
    }
    return span;
  });
  panel.text.replaceChildren(...spans.flatMap((span, i) => (i ? ["\n", span] : [span])));
  fade(panel.text);
}

/** Let the last line in sight fade where more lies below it: not every system shows a scroll bar. */
function fade(text) {
  const more = text.scrollHeight - text.clientHeight - text.scrollTop > 2;
  text.style.maskImage = more ? "linear-gradient(#000 calc(100% - 24px), transparent)" : "none";
}

/** How far a search is. It tells so itself, since the host's counter skips small steps of a large budget. It may not
 * know its end: then it tells no pace either. */
function progressLine(state, told) {
  const prompt = told?.part ? ` prompt ${Number(told.part)}` : ""; // of Search Prompts
  const [value, max] = told ? [told.nfe, told.expected] : [state.value, state.max];
  const made = max === null ? `${value} NFE so far` : `${value} of ${max} NFE`;
  if (!told?.images) return `searching${prompt}: ${made}`;
  const pace = told.seconds_per_nfe;
  const parts = [
    made,
    told.images === 1 ? "1 image" : `${told.images} images`,
    told.best === null ? "none can win yet" : `best ${short(told.best)}`,
  ];
  const left = pace === null || max === null ? 0 : pace * (max - value);
  return `searching${prompt}: ${parts.join(", ")}${left >= 1 ? ` (about ${spoken(left)} left)` : ""}`;
}

/** How far the winner lies above the mean by one verifier that gave it `score`. No number: it has none, or no spread. */
function gainOf(name, gain, score) {
  if (typeof gain === "number") return `${name} ${short(gain)} sd`;
  return `${name}: ${typeof score === "number" ? "all candidates score alike" : "no score"}`;
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
    const both = [gainOf("searched", searched, best?.score), gainOf(name, held_out, best?.held_out?.[name])];
    lines.push(`gain over the mean: ${both.join(", ")}${kept}`);
  }
  lines.push(...agreementLines(agreements));
  if (scouting) {
    const { scouts, rendered, correlation } = scouting;
    const agree = typeof correlation === "number" ? `, rank agreement with those: ${short(correlation)}` : "";
    lines.push(`${scouts} scouts, ${rendered} rendered in full${agree}`);
  }
  lines.push(`${candidates} candidates, ${nfe} NFE, ${short(seconds)} s`);
  lines.push(`stopped by ${Object.keys(stopped ?? {}).join(", ") || "nothing"}`);
  const loud = (warnings ?? []).map((text) => warning(`WARNING: ${text}`));
  return [...loud, ...lines, ...(notes ?? []).map((note) => `note: ${note}`)];
}

function showOutput(node, output) {
  const result = output?.noise_search?.[0];
  const panel = panels.get(node);
  if (!result || !panel) return;
  say(panel, resultLines(result));
  panel.text.scrollTop = 0;
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
    const asked = "finishing with the best so far, after the first candidate at the earliest";
    say(panel, [panel.asked ? asked : progressLine(state, state.told)]);
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
  // the Vue renderer goes by the element's own height; the classic one takes its margins off
  element.style.cssText =
    `display:flex; flex-direction:column; gap:4px; box-sizing:border-box; height:100%; min-height:${HEIGHT - 12}px`;
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
    "flex:1 1 0; min-height:0; overflow-y:auto; scrollbar-width:thin; white-space:pre-wrap; overflow-wrap:anywhere; " +
    "user-select:text; font-size:11px; line-height:1.35; color:var(--descrip-text)";
  text.tabIndex = 0; // so that keys scroll it
  text.dataset.captureWheel = "true"; // in the Vue renderer the wheel scrolls what has the focus, else it zooms
  text.addEventListener("pointerdown", (event) => event.stopPropagation());
  text.addEventListener("scroll", () => fade(text));
  new ResizeObserver(() => fade(text)).observe(text);
  element.append(button, text);
  panels.set(node, { button, text, said: [], asked: false });

  const options = { serialize: false, getMinHeight: () => HEIGHT };
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

/** Whether a search has written a file; that of several prompts writes into one folder for each. */
async function hasFile(folder, filename) {
  for (const part of ["", "/0001"]) {
    const where = new URLSearchParams({ filename, subfolder: `noise_search/${folder}${part}`, type: "output" });
    if ((await api.fetchApi(`/view?${where}`, { method: "HEAD" })).ok) return true;
  }
  return false;
}

/** Say what files are there of a search that has ended without a result, and where. */
async function showFiles(panel, folder, failed) {
  const { said } = panel;
  if (!(await hasFile(folder, "ledger.jsonl"))) return; // it ended before it began
  let found = "the ledger is";
  let early = true;
  if (await hasFile(folder, "best.png")) [found, early] = ["the best so far and the ledger are", false];
  else if (await hasFile(folder, "no_winner.png"))
    [found, early] = ["no image could win; the nearest (no_winner.png) and the ledger are", false];
  if (panel.said !== said) return; // the panel has something newer to say
  const where = `${found} in output/noise_search/${folder}`;
  say(panel, failed ? [...said, where] : [`${said[0]}${early ? " before the first image" : ""}: ${where}`]);
}

/** A run has ended without a result of its own for the nodes that were in it. */
function ended(how, detail) {
  endings += 1;
  const error = detail?.exception_message?.trim();
  for (const [id, node] of searchNodes()) {
    const panel = panels.get(node);
    const failed = Boolean(error) && id === String(detail.node_id);
    if (!panel || !how || !(failed || running.has(id))) continue;
    say(panel, [failed ? warning(error) : how]);
    showFiles(panel, `${detail?.prompt_id}-${id}`.replace(/[^\w.-]/g, "_"), failed);
  }
  running.clear();
  news.clear();
  refresh();
}

/** Ask the server which searches run: a page that was loaded again has missed what they told. */
async function catchUp() {
  const before = endings;
  const client = api.clientId ?? api.initialClientId ?? ""; // other pages' searches tell this one nothing
  const answer = await api.fetchApi(`/noise_search/running?${new URLSearchParams({ client_id: client })}`);
  if (!answer.ok) return;
  const { running: told } = await answer.json();
  if (endings !== before) return;
  for (const each of told) {
    if (!running.has(each.node_id)) running.set(each.node_id, { value: each.nfe, max: each.expected });
    if (!news.has(each.node_id)) news.set(each.node_id, each);
  }
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
    api.addEventListener("execution_error", ({ detail }) => ended("stopped by an error in another node", detail));
    api.addEventListener("reconnected", catchUp);
    catchUp(); // nothing waits for it
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
