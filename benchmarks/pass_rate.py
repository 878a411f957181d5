"""Pass rate in the demo world: more candidates against more steps, at equal NFE.

    python run.py bench pass_rate [--family flow] [--prompts 200] [--processes 2]

For each frozen prompt (demo/prompts.txt) it renders 64 candidates by random search, spends the NFE of 32 on zero-order
search, runs search over paths once for each budget, and renders the first seeds at 8 to 128 steps without search. A
smaller run of random and zero-order search is the beginning of a larger one; of search over paths it is not. The
search is led by CLIPScore + classifier (z-score ensemble); the exact judge is held out and decides "pass" (all clauses
met). Random search is the exact mean over all choices of N of the 64; "judge-led" selects by the exact judge itself:
what a perfect verifier would make of the same candidates.

All prompts have the same seeds here, and some seeds are better than others on all prompts alike. Zero-order search and
search over paths begin with the first of them, so they are to be compared with "the same seeds": random search of
those. Its seeds happen to be poor ones.

Results are appended to benchmarks/results/pass_rate_FAMILY.jsonl as they come, so an interrupted run goes on where it
was; the table is printed and written beside it as Markdown.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..demo.measure import frozen_prompts
from .statistics import Estimate, clustered, of_best, rated

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
COUNTS = (1, 2, 4, 8, 16, 32, 64)
STEPS = (8, 16, 32, 64, 128)
SEARCH_STEPS, CFG, SEED, STEP_SEEDS = 20, 3.0, 0, 2
METHODS = ("random", "steps", "zero_order", "paths")
BUDGETS = {"random": (64,), "steps": (0,), "zero_order": (32,), "paths": (2, 4, 8, 16, 32)}  # in whole candidates


def results_file(family: str) -> Path:
    """Where the raw results of a model are."""
    return RESULTS / f"pass_rate_{family}.jsonl"


def prompt_seed(prompt: str, number: int = 0) -> int:
    """A seed of the prompt's own: some seeds are good for all prompts alike, and would favour a search on them all.

    `number` tells several searches for a prompt apart.
    """
    from ..search.seeds import child_seed

    return child_seed(SEED, prompt, number)


def read(path: Path) -> list[dict[str, Any]]:
    """The finished tasks."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


class Worker:
    """Does the tasks of one process."""

    def __init__(self, family: str) -> None:
        import torch

        from ..load_pack import import_host

        import_host()
        torch.set_num_threads(1)
        torch.set_grad_enabled(False)
        from ..nodes.demo_world import load_demo_world
        from ..verifiers.demo_set import demo_ensemble, demo_judge

        self.world, self.ensemble, self.judge = load_demo_world(family), demo_ensemble(), demo_judge()

    def search(self, method: str, budget: int, prompt: str) -> list[list[float]]:
        """[nfe, verifier score, exact judge] of every finished candidate, in order."""
        from .. import search
        from ..search.run import run
        from ..search.space import Candidates

        sampler = self.world.sampler(prompt, SEARCH_STEPS, CFG)
        report = run(
            search.algorithm(method), sampler, self.ensemble, search.Budget(nfe=SEARCH_STEPS * budget),
            candidates=Candidates.of_seed(SEED), prompt=prompt, seed=SEED, held_out=self.judge, batch=16,
        )  # fmt: skip
        return [[e.nfe, round(e.score, 5), round(judged(e.held_out), 4)] for e in report.finished]

    def more_steps(self, prompt: str) -> dict[str, list[float]]:
        """Steps -> exact judge of the first seeds, without search."""
        import torch

        from ..search.space import Candidates
        from ..search.types import Row

        found = {}
        for steps in STEPS:
            sampler = self.world.sampler(prompt, steps, CFG)
            recipes = [Candidates.of_seed(SEED).recipe(i) for i in range(STEP_SEEDS)]
            rows = [Row(recipe, sampler.sigmas[0]) for recipe in recipes]
            images = torch.cat(sampler.decode(sampler.advance(rows, sampler.sigmas, Uncounted())))
            found[str(steps)] = self.judge.score(images, prompt).tolist()
        return found

    def work(self, tasks: Iterable[tuple[str, int, str]], path: Path) -> None:
        """Do tasks and append their results."""
        for method, budget, prompt in tasks:
            result = self.more_steps(prompt) if method == "steps" else self.search(method, budget, prompt)
            record = {"method": method, "budget": budget, "prompt": prompt, "result": result}
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")


class Uncounted:
    """A meter for forwards that no budget limits."""

    def forward(self, rows: int) -> None:
        """Not counted: every row makes exactly `steps` forwards."""

    def model_rows(self, rows: int) -> None:
        """Not counted."""


def judged(held_out: dict[str, float]) -> float:
    """The one held-out score."""
    [score] = held_out.values()
    return score


def best_judged(rows: Sequence[Sequence[float]], nfe: float) -> float | None:
    """The exact judge's score of the best row within `nfe`; None when nothing is finished by then."""
    within = [row for row in rows if row[0] <= nfe]
    return max(within, key=lambda row: row[1])[2] if within else None


def cell(estimate: Estimate | None) -> str:
    """An estimate as the table shows it, in percent."""
    return "-" if estimate is None else f"{100 * estimate[0]:.1f} [{100 * estimate[1]:.1f}, {100 * estimate[2]:.1f}]"


def table(records: list[dict[str, Any]], family: str) -> str:
    """The results as Markdown."""
    by: dict[tuple[str, int], dict[str, Any]] = {(m, b): {} for m in METHODS for b in BUDGETS[m]}
    for record in records:
        by[record["method"], record["budget"]][record["prompt"]] = record["result"]

    # [candidate, (verifier's score, exact judge's)] of every prompt
    pools = np.array([[row[1:] for row in rows] for rows in by["random", COUNTS[-1]].values()])
    passing = (pools[:, :, 1] == 1.0).astype(float) if len(pools) else None
    led_by = [] if passing is None else [of_best(pools[:, :, column], passing) for column in (0, 1)]

    def exact(n: int, leader: int) -> Estimate | None:
        return clustered(led_by[leader][n - 1].tolist()) if led_by else None

    def rate(method: str, n: int) -> Estimate | None:
        budget = min((b for b in BUDGETS[method] if b >= n), default=0)
        if budget == 0 or (method == "paths" and budget != n):
            return None
        found = [best_judged(rows, n * SEARCH_STEPS) for rows in by[method, budget].values()]
        return None if not found or None in found else rated([score == 1.0 for score in found])

    prompts = {m: len(by[m, BUDGETS[m][-1]]) for m in METHODS}
    lines = [
        f"{family}; {SEARCH_STEPS} euler steps, cfg {CFG:g}; pass rate in %, 95 % intervals; prompts: {prompts}.",
        "",
        "| NFE | N | random, judge-led | random | the same seeds | zero-order | paths |",
        "|---|---|---|---|---|---|---|",
    ]
    for n in COUNTS:
        cells = [cell(exact(n, 1)), cell(exact(n, 0)), *(cell(rate(m, n)) for m in ("random", "zero_order", "paths"))]
        lines.append(f"| {n * SEARCH_STEPS} | {n} | " + " | ".join(cells) + " |")
    lines += ["", "| NFE | steps, no search | pass rate |", "|---|---|---|"]
    for steps in STEPS if by["steps", 0] else ():
        shares = [sum(s == 1.0 for s in result[str(steps)]) / STEP_SEEDS for result in by["steps", 0].values()]
        lines.append(f"| {steps} | {steps} | {cell(clustered(shares))} |")
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="run.py bench pass_rate", description=__doc__)
    parser.add_argument("--family", default="flow")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--worker", default="", help="I/P: do every P-th task from I (used by the program itself)")
    arguments = parser.parse_args()
    path = results_file(arguments.family)
    RESULTS.mkdir(exist_ok=True)
    done = {(r["method"], r["budget"], r["prompt"]) for r in read(path)}
    wanted = [(m, b, p) for m in arguments.methods for b in BUDGETS[m] for p in frozen_prompts()[: arguments.prompts]]
    tasks = [task for task in wanted if task not in done]
    if arguments.worker:
        index, total = map(int, arguments.worker.split("/"))
        Worker(arguments.family).work(tasks[index::total], path)
        return
    if tasks:
        print(f"{len(tasks)} tasks in {arguments.processes} processes", flush=True)
        command = [sys.executable, str(ROOT / "load_pack.py"), "pack.benchmarks.pass_rate", *sys.argv[1:]]
        workers = [
            subprocess.Popen([*command, "--worker", f"{i}/{arguments.processes}"]) for i in range(arguments.processes)
        ]
        failed = [worker.returncode for worker in workers if worker.wait()]
        if failed:
            raise SystemExit(f"{len(failed)} of {len(workers)} processes failed; run again to go on")
    text = table(read(path), arguments.family)
    (RESULTS / f"pass_rate_{arguments.family}.md").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
