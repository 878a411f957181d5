"""The curves of Ma et al. 2025 (arXiv 2501.09732) made again in the demo world.

    python run.py bench paper [--prompts 200] [--repeats 8] [--processes 2]

- Search against more denoising steps at equal NFE.
- The three axes of compute: the number of search iterations, the steps of each of them (a cheap solver inside the
  search), and the steps of the final picture, for which the winner's noise is rendered again.
- N of zero-order search (ZO-N) and of search over paths (Paths-N).
- A small model with search against a larger one without, in FLOPs and processor seconds.

All of it text-conditional (the frozen prompts, led by CLIPScore + classifier) and class-conditional ("a red circle",
24 classes, `--repeats` seeds each, led by the classifier's logit). The exact judge is held out and decides "pass".
Every search has a seed of its own, but for the first 24 prompts and the first of each class: these were searched with
one seed for all before it was seen that some seeds are better than others on all prompts alike.

Results are appended to benchmarks/results/paper.jsonl as they come, so an interrupted run goes on where it was; the
tables are printed and written beside it as Markdown and PNG. All intervals are 95 %, over prompts or classes;
differences are paired.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from ..demo.measure import frozen_prompts
from ..demo.scenes import CLASSES
from .hacking import header, in_processes, shown
from .pass_rate import CFG, RESULTS, SEARCH_STEPS, SEED, Uncounted, judged, prompt_seed, read
from .plots import Panel, Point, save_panels
from .selection import by_prompt
from .statistics import Estimate, clustered, matched, rated

SMALL, LARGE = "flow", "flow_large"
SETS = {"text": "text-conditional: frozen prompts", "class": "class-conditional: 24 classes"}
FULL, HALF, LARGE_BUDGET = 1280, 640, 320  # NFE
MORE_STEPS = (10, 40, 80, 160, 320)  # of one picture without search
INNER = (5, 10, 20, 40)  # steps inside the search
FINAL = (20, 40, 80)  # steps of the final picture
BUDGETS = (40, 80, 160, 320, 640)
NEIGHBOURS, PATHS, PATH_BUDGETS = (2, 4, 16), (1, 2, 4), (320, 640)
AT_ONCE = 48  # jobs
ONE_SEED = 24  # so many prompts were searched first, with one seed for all of them
FEWEST = 10  # searches by a method, or it is left out
RESULT = "paper.jsonl"
#: (set, prompt, seed) that a search is for.
Job = tuple[str, str, int]
#: A finished candidate: NFE so far, the verifier's score, the exact judge's, its seed if it has a plain one.
Found = Sequence[Any]


@dataclass(frozen=True)
class Run:
    """One search: a method with its N, the steps of each candidate, and the NFE it may spend."""

    method: str
    steps: int
    budget: int
    n: int = 0  # neighbours of zero-order search, paths of search over paths
    family: str = SMALL

    @property
    def key(self) -> str:
        """The name in the results."""
        return f"{self.family} {self.method}{f'-{self.n}' if self.n else ''} {self.steps} {self.budget}"

    @property
    def settings(self) -> dict[str, object]:
        """Of the algorithm."""
        named = {"zero_order": "neighbours", "paths": "paths"}
        return {named[self.method]: self.n} if self.n else {}

    @property
    def renders_again(self) -> bool:
        """Whether the noises of its winners are rendered at FINAL steps too."""
        return self.method == "random" and self.family == SMALL and self.budget >= HALF


RANDOM = Run("random", SEARCH_STEPS, FULL)
RANDOM_LARGE = Run("random", SEARCH_STEPS, LARGE_BUDGET, family=LARGE)
CHEAP = {steps: RANDOM if steps == SEARCH_STEPS else Run("random", steps, HALF) for steps in INNER}
UNSEARCHED = {steps: Run("random", steps, steps) for steps in MORE_STEPS}
ZERO_ORDER = {n: Run("zero_order", SEARCH_STEPS, HALF, n) for n in NEIGHBOURS}
OVER_PATHS = {(n, budget): Run("paths", SEARCH_STEPS, budget, n) for n in PATHS for budget in PATH_BUDGETS}
RUNS = [
    *dict.fromkeys([RANDOM, RANDOM_LARGE, *UNSEARCHED.values(), *CHEAP.values()]),
    *ZERO_ORDER.values(),
    *OVER_PATHS.values(),
]


def jobs(prompts: Sequence[str], repeats: int) -> list[Job]:
    """What is searched for: prompts and classes in turns, so that a short run has some of both."""
    text: list[Job] = [("text", p, prompt_seed(p) if i >= ONE_SEED else SEED) for i, p in enumerate(prompts)]
    names = [f"a {name}" for name in CLASSES]
    classes: list[Job] = [("class", n, prompt_seed(n, i) if i else SEED) for i in range(repeats) for n in names]
    both = [job for pair in zip(text, classes, strict=False) for job in pair]
    return [*both, *text[len(classes) :], *classes[len(text) :]]


def tasks(wanted: Sequence[Job]) -> list[tuple[Job, Run]]:
    """Every run of every job: some jobs at once, and for these one run after the other, so that tables fill evenly."""
    parts = [wanted[start : start + AT_ONCE] for start in range(0, len(wanted), AT_ONCE)]
    return [(job, run) for part in parts for run in RUNS for job in part]


class Worker:
    """Does searches in one process."""

    def __init__(self) -> None:
        from ..load_pack import import_host

        import_host()
        torch.set_num_threads(1)
        torch.set_grad_enabled(False)
        from ..nodes.demo_world import load_demo_world
        from ..verifiers.demo_set import demo_ensemble, demo_judge

        ensemble = demo_ensemble()
        self.worlds = {family: load_demo_world(family) for family in (SMALL, LARGE)}
        self.verifiers = {"text": ensemble, "class": ensemble.members[1].verifier}
        self.judge = demo_judge()

    def work(self, tasks: Iterable[tuple[Job, Run]]) -> None:
        """Do searches and append their results."""
        for job, run in tasks:
            record = dict(zip(("set", "prompt", "seed"), job, strict=True)) | {"run": run.key, **self.search(job, run)}
            with (RESULTS / RESULT).open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")

    def search(self, job: Job, run: Run) -> dict[str, Any]:
        """What led in a search, its processor seconds for a candidate, and its winners with more steps or fewer."""
        from .. import search

        kind, prompt, seed = job
        sampler = self.worlds[run.family].sampler(prompt, run.steps, CFG)
        before = time.process_time()
        report = search.run(
            search.algorithm(run.method, **run.settings), sampler, self.verifiers[kind], search.Budget(nfe=run.budget),
            candidates=search.Candidates.of_seed(seed), prompt=prompt, seed=seed, held_out=self.judge, batch=16,
        )  # fmt: skip
        seconds = time.process_time() - before
        found = [[e.nfe, round(e.score, 5), round(judged(e.held_out), 4), e.seed] for e in report.finished]
        again = self.again(job, run, found) if run.renders_again else {}
        return {"leads": leads(found), "seconds": round(seconds / len(found), 5), "again": again}

    def again(self, job: Job, run: Run, found: Sequence[Found]) -> dict[str, dict[str, list[float]]]:
        """{steps: {seed: [score, exact judge]}} of the noises that won at any of BUDGETS."""
        from ..search.recipe import Recipe
        from ..search.types import Row

        kind, prompt, _ = job
        winners = list(dict.fromkeys(best[3] for best in (best_within(found, b) for b in BUDGETS) if best))
        rendered = {}
        for steps in FINAL:
            if steps != run.steps:
                sampler = self.worlds[run.family].sampler(prompt, steps, CFG)
                rows = [Row(Recipe.of_seed(seed), sampler.sigmas[0]) for seed in winners]
                images = torch.cat(sampler.decode(sampler.advance(rows, sampler.sigmas, Uncounted())))
                scores = [verifier.score(images, prompt).tolist() for verifier in (self.verifiers[kind], self.judge)]
                pairs = zip(*scores, strict=True)
                rendered[str(steps)] = {
                    str(seed): [round(each, 5) for each in pair] for seed, pair in zip(winners, pairs, strict=True)
                }
        return rendered


def best_within(found: Sequence[Found], nfe: float, column: int = 1) -> Found | None:
    """The best candidate by a column that was finished within an NFE; the earliest of equals."""
    within = [each for each in found if each[0] <= nfe]
    return max(within, key=lambda each: float(each[column])) if within else None


def leads(found: Sequence[Found]) -> list[Found]:
    """The candidates that were the best when they came, by the verifier or by the exact judge: all that tables need."""
    kept: list[Found] = []
    best = [float("-inf"), float("-inf")]
    for each in found:
        if each[1] > best[0] or each[2] > best[1]:
            kept.append(each)
            best = [max(best[0], each[1]), max(best[1], each[2])]
    return kept


# ---- results


@dataclass(frozen=True)
class Results:
    """The finished searches of one set: {run: {(prompt, seed): record}}."""

    kind: str
    runs: Mapping[str, Mapping[tuple[str, int], Mapping[str, Any]]]

    @classmethod
    def read(cls, kind: str) -> Results:
        """Those on disk."""
        runs: dict[str, dict[tuple[str, int], Mapping[str, Any]]] = {run.key: {} for run in RUNS}
        for record in read(RESULTS / RESULT):
            if record["set"] == kind and record["run"] in runs:
                runs[record["run"]][record["prompt"], record["seed"]] = record
        return cls(kind, runs)

    def common(self, runs: Iterable[Run]) -> Results:
        """What a table may compare: the runs with FEWEST searches, and of these what all of them were run for."""
        enough = [run.key for run in runs if len(self.runs[run.key]) >= FEWEST]
        keys = set.intersection(*(set(self.runs[key]) for key in enough)) if enough else set()
        kept = {key: {at: record for at, record in self.runs[key].items() if at in keys} for key in enough}
        return Results(self.kind, {key: kept.get(key, {}) for key in self.runs})

    @property
    def count(self) -> str:
        """How many searches each line is of."""
        return f"{max(map(len, self.runs.values()))} searches by each method."

    def of(self, run: Run, nfe: float, column: int = 1, final: int = 0) -> Picked:
        """The winner of each search within an NFE, by the verifier (column 1) or the exact judge (2)."""
        picked = {}
        for key, record in self.runs[run.key].items():
            best = best_within(record["leads"], nfe, column)
            if best is not None:
                again = record["again"].get(str(final), {}) if final else {}
                picked[key] = tuple(again[str(best[3])]) if again else (best[1], best[2])
        return Picked(picked)

    def seconds(self, run: Run) -> float:
        """Processor seconds for one candidate: the median over searches."""
        return float(median(record["seconds"] for record in self.runs[run.key].values()))


@dataclass(frozen=True)
class Picked:
    """{(prompt, seed): (verifier's score, exact judge's score)} of winners. Searches for one prompt count together."""

    of: Mapping[tuple[str, int], tuple[float, float]]

    def passes(self) -> Estimate:
        """The pass rate, with Wilson's interval where every prompt has one search."""
        passed = self.means({key: float(score == 1.0) for key, (_, score) in self.of.items()})
        return clustered(passed) if len(passed) < len(self.of) else rated([each == 1.0 for each in passed])

    def scores(self) -> Estimate:
        """The mean score of the verifier that led."""
        return clustered(self.means({key: score for key, (score, _) in self.of.items()}))

    def gain(self, other: Picked) -> Estimate:
        """The paired difference in the pass rate, where both are there."""
        both = sorted(self.of.keys() & other.of.keys())
        passed = [[of[key][1] == 1.0 for key in both] for of in (self.of, other.of)]
        if len({prompt for prompt, _ in both}) == len(both):
            return matched(*passed)
        return clustered(self.means({key: float(a) - float(b) for key, a, b in zip(both, *passed, strict=True)}))

    @staticmethod
    def means(values: Mapping[tuple[str, int], float]) -> list[float]:
        """The mean of each prompt."""
        keys = sorted(values)
        numbers = torch.tensor([values[key] for key in keys], dtype=torch.float64)
        return list(by_prompt([prompt for prompt, _ in keys], numbers).tolist())

    def __bool__(self) -> bool:
        return len({prompt for prompt, _ in self.of}) > 1


def rate(picked: Picked) -> str:
    """A pass rate as the tables show it."""
    return shown(picked.passes(), 100, 1, sign=False) if picked else "-"


def against(picked: Picked, other: Picked) -> str:
    """A paired difference of pass rates as the tables show it."""
    return shown(picked.gain(other), 100, 1) if picked and other and picked is not other else "-"


def steps_table(results: Results) -> Iterator[str]:
    """Search against more steps."""
    results = results.common([RANDOM, *UNSEARCHED.values()])
    yield f"Search against more steps at equal NFE: pass rate in %, and the verifier's mean score. {results.count}"
    yield ""
    yield from header("NFE", "one picture, that many steps", "random search", "search - steps", "its verifier's score",
                      "random search led by the exact judge")  # fmt: skip
    for nfe in sorted({SEARCH_STEPS, *MORE_STEPS, *BUDGETS, FULL}):
        one = UNSEARCHED.get(nfe, RANDOM if nfe == SEARCH_STEPS else None)
        steps = results.of(one, nfe) if one else Picked({})
        searched, led = results.of(RANDOM, nfe), results.of(RANDOM, nfe, column=2)
        score = shown(searched.scores(), sign=False) if searched else "-"
        yield f"| {nfe} | {rate(steps)} | {rate(searched)} | {against(searched, steps)} | {score} | {rate(led)} |"


def axes_table(results: Results) -> Iterator[str]:
    """The three axes: search NFE, steps inside the search, steps of the final picture."""
    results = results.common(CHEAP.values())
    both = f"{SEARCH_STEPS} and {SEARCH_STEPS} steps"
    yield "The three axes: pass rate in % by the NFE of the search (columns), the steps of each candidate in it, and"
    yield "the steps with which the winner's noise is rendered at the end. It costs the NFE of the search, and the"
    yield f"final steps where they differ. Below: the paired difference to {both} at the same NFE in all."
    yield results.count
    yield ""
    yield from header("steps in the search", "final steps", *(f"{budget} NFE" for budget in BUDGETS))
    for steps, run in CHEAP.items():
        for final in FINAL:
            again = 0 if final == steps else final
            picked = {budget: results.of(run, budget, final=again) for budget in BUDGETS}
            cells = [rate(each) for each in picked.values()]
            if (steps, final) != (SEARCH_STEPS, SEARCH_STEPS):
                base = [results.of(RANDOM, budget + again) for budget in BUDGETS]
                pairs = zip(cells, picked.values(), base, strict=True)
                cells = [f"{cell}<br>{against(each, other)}" for cell, each, other in pairs]
            yield f"| {steps} | {final} | {' | '.join(cells)} |"


def methods_table(results: Results) -> Iterator[str]:
    """N in ZO-N and Paths-N."""
    results = results.common([RANDOM, *ZERO_ORDER.values(), *OVER_PATHS.values()])
    budgets = [budget for budget in BUDGETS if budget >= 160]
    base = {budget: results.of(RANDOM, budget) for budget in budgets}
    yield "N in ZO-N and Paths-N: pass rate in %, and below it the paired difference to random search at equal NFE."
    yield results.count
    yield ""
    yield from header("method", *(f"{budget} NFE" for budget in budgets))
    yield f"| random | {' | '.join(rate(each) for each in base.values())} |"
    for name, line in methods(results, budgets).items():
        cells = [f"{rate(each)}<br>{against(each, base[b])}" if each else "-" for b, each in line.items()]
        yield f"| {name} | {' | '.join(cells)} |"


def methods(results: Results, budgets: Sequence[int]) -> dict[str, dict[int, Picked]]:
    """Winners of every N within every budget."""
    found = {f"ZO-{n}": {b: results.of(run, b) for b in budgets} for n, run in ZERO_ORDER.items()}
    for n in PATHS:  # its smaller run is no beginning of a larger one: each budget has a run of its own
        found[f"Paths-{n}"] = {
            b: results.of(OVER_PATHS[n, b], b) if (n, b) in OVER_PATHS else Picked({}) for b in budgets
        }
    return found


@dataclass(frozen=True)
class Cost:
    """What one candidate of a model costs."""

    denoiser: float  # FLOPs
    rest: float  # FLOPs of the decoder and the verifiers
    seconds: float  # of the processor


def cost(results: Results, run: Run) -> Cost:
    """FLOPs of one candidate, the exact judge apart, and its processor seconds."""
    return Cost(run.steps * step_flops(run.family), rest_flops(results.kind), results.seconds(run))


def step_flops(family: str) -> float:
    """FLOPs of one step of one candidate, with guidance (two rows in the model)."""
    from ..demo import mmdit, paths

    model = mmdit.load(paths.DIFFUSION_FILES[family])
    latent, text = torch.zeros(2, mmdit.CHANNELS, 8, 8), torch.zeros(2, 16, mmdit.TEXT_WIDTH)
    return flops(lambda: model(latent, torch.ones(2), text, text[:, 0]))


def rest_flops(kind: str) -> float:
    """FLOPs of decoding one picture and of scoring it by what leads a set. Texts are read once, and left out."""
    from ..demo import paths, vae
    from ..verifiers.demo_set import demo_ensemble

    decoder, picture, latent = vae.load(paths.VAE), torch.zeros(1, 64, 64, 3), torch.zeros(1, 16, 8, 8)
    verifiers = [member.verifier for member in demo_ensemble().members][0 if kind == "text" else 1 :]
    for verifier in verifiers:
        verifier.score(picture, "a red circle")  # from now on the text is known
    scored = sum(flops(lambda v=v: v.score(picture, "a red circle")) for v in verifiers)
    return scored + flops(lambda: decoder.decode(latent))


def flops(work: Callable[[], object]) -> float:
    """What torch counts while something is computed: 2 for each multiplication with its addition."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def sizes(results: Results) -> dict[str, list[tuple[int, Cost, Picked]]]:
    """(N, cost of one candidate, winners) of both models."""
    results, lines = results.common([RANDOM, RANDOM_LARGE]), {}
    for run in (RANDOM, RANDOM_LARGE):
        if results.runs[run.key]:
            each = cost(results, run)
            counts = [2**i for i in range((run.budget // run.steps).bit_length())]
            lines[run.family] = [(n, each, results.of(run, n * run.steps)) for n in counts]
    return lines


def sizes_table(results: Results) -> Iterator[str]:
    """The small model with search against the large one."""
    lines = sizes(results)
    if len(lines) < 2:
        return
    large = lines[LARGE][0]
    yield f"The small model with search against the large one ({LARGE}) without: random search, pass rate in %. Costs"
    yield "are those of all N candidates, and relative to one of the large model: FLOPs of the denoiser alone, FLOPs"
    yield "with decoder and verifiers (most of it here, where the denoiser is tiny), and processor seconds."
    yield f"{len(large[2].of)} searches by each model."
    yield ""
    yield from header("model", "N", "denoiser GFLOPs", "all GFLOPs", "processor seconds", "pass rate",
                      "minus the large model's")  # fmt: skip
    for family, line in lines.items():
        for n, each, picked in line:
            pairs = [(of(each) * n, of(large[1])) for of in COSTS.values()]
            cells = [f"{mine:.3g} ({mine / theirs:.2f} x)" for mine, theirs in pairs]
            yield f"| {family} | {n} | {' | '.join(cells)} | {rate(picked)} | {against(picked, large[2])} |"


#: What a candidate costs, by unit.
COSTS: dict[str, Callable[[Cost], float]] = {
    "denoiser GFLOPs": lambda each: each.denoiser / 1e9,
    "all GFLOPs": lambda each: (each.denoiser + each.rest) / 1e9,
    "processor seconds": lambda each: each.seconds,
}


def panels(results: Results) -> list[Panel]:
    """All curves of one set."""

    def line(of: Mapping[float, Picked], scores: bool = False) -> list[Point]:
        return [(x, each.scores() if scores else each.passes()) for x, each in of.items() if each]

    everything = results
    counts, results = [SEARCH_STEPS * 2**i for i in range(7)], everything.common([RANDOM, *UNSEARCHED.values()])
    steps = {n: results.of(UNSEARCHED.get(n, RANDOM), n) for n in sorted({SEARCH_STEPS, *MORE_STEPS})}
    searched = {n: results.of(RANDOM, n) for n in counts}
    led = {n: results.of(RANDOM, n, column=2) for n in counts}
    results = everything.common(CHEAP.values())
    inner = {f"{s} steps inside, {SEARCH_STEPS} at the end": line(
        {b: results.of(run, b, final=0 if s == SEARCH_STEPS else SEARCH_STEPS) for b in BUDGETS})
        for s, run in CHEAP.items()}  # fmt: skip
    final = {f"{SEARCH_STEPS} steps inside, {f} at the end": line(
        {b: results.of(RANDOM, b, final=0 if f == SEARCH_STEPS else f) for b in BUDGETS}) for f in FINAL}  # fmt: skip
    results = everything.common([RANDOM, *ZERO_ORDER.values(), *OVER_PATHS.values()])
    budgets = [budget for budget in BUDGETS if budget >= 160]
    by_n = {name: line(each) for name, each in methods(results, budgets).items()}
    random_line = line({b: results.of(RANDOM, b) for b in budgets})
    return [
        Panel("search or more steps", "pass rate",
              {"more steps": line(steps), "random": line(searched), "random, judge-led": line(led)}),
        Panel("what the verifier says", "mean score",
              {"more steps": line(steps, scores=True), "random": line(searched, scores=True)}),
        Panel("steps inside the search", "pass rate", inner),
        Panel("steps of the final picture", "pass rate", final),
        Panel("ZO-N", "pass rate", {"random": random_line} | {k: v for k, v in by_n.items() if k.startswith("ZO")}),
        Panel("Paths-N", "pass rate", {"random": random_line} | {k: v for k, v in by_n.items() if k.startswith("P")}),
    ]  # fmt: skip


def size_panels(results: Results) -> list[Panel]:
    """The two models over what they cost."""
    lines = sizes(results)
    made = []
    for unit, of in COSTS.items():
        drawn = {
            family: [(n * of(each), picked.passes()) for n, each, picked in line if picked]
            for family, line in lines.items()
        }
        made.append(Panel(f"{results.kind}-conditional (x: {unit})", "pass rate", drawn))
    return made


def report() -> str:
    """All tables; writes the plots."""
    lines = [f"# Curves of arXiv 2501.09732 in the demo world: {SEARCH_STEPS} euler steps, cfg {CFG:g}", ""]
    costs: list[Panel] = []
    for kind, title in SETS.items():
        results = Results.read(kind)
        lines += [f"## {title}", ""]
        if len(results.runs[RANDOM.key]) >= FEWEST:
            for table in (steps_table, axes_table, methods_table, sizes_table):
                lines += [*table(results), ""]
            save_panels(RESULTS / f"paper_{kind}.png", panels(results), "NFE")
            costs += size_panels(results)
    if costs:
        save_panels(RESULTS / "paper_sizes.png", costs, "cost of all candidates")
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="run.py bench paper", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=8, help="searches for each of the 24 classes")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--tables", action="store_true", help="only the tables of what is there")
    parser.add_argument("--worker", default="", help="I/P: do every P-th task from I (used by the program itself)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    RESULTS.mkdir(exist_ok=True)
    done = {(r["set"], r["prompt"], r["seed"], r["run"]) for r in read(RESULTS / RESULT)}
    wanted = tasks(jobs(frozen_prompts()[: arguments.prompts], arguments.repeats))
    if arguments.worker:
        index, total = map(int, arguments.worker.split("/"))
        Worker().work((job, run) for job, run in wanted[index::total] if (*job, run.key) not in done)
        return
    left = sum((*job, run.key) not in done for job, run in wanted)
    if left and not arguments.tables:
        in_processes(arguments.processes, "paper", left)
    text = report()
    (RESULTS / "paper.md").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
