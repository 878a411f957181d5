"""Axes against random search at equal NFE in the demo world, where seeds differ and where they are made to collapse.

    python run.py bench axes [--prompts 20] [--nfe 160 320]

Prompts are frozen prompts from the 101st on; every search is led by CLIPScore + classifier and judged by the exact
judge, as in pass_rate. "one noise" stands for a model whose seeds collapse altogether: all candidates have the start
noise of the user's own. Printed and written to benchmarks/results/axes.md: the mean score of the winner with its 95 %
interval, that of the difference from random search on the same prompts, and the mean of the exact judge.
"""

from __future__ import annotations

import argparse
from typing import Any

from ..demo.measure import frozen_prompts
from .pass_rate import CFG, RESULTS, SEARCH_STEPS, Worker, clustered, judged, prompt_seed

FIRST = 100
#: Searches by name; the settings are those of search.axes.
SETTINGS: dict[str, dict[str, Any] | None] = {
    "random": None,
    "axes": {},
    "axes, cfg 0.5": {"cfg": 0.5},
    "axes, refine 0.5": {"refine": 0.5},
}
WORLDS: dict[str, float | None] = {"seeds differ": None, "one noise": 1.0}


def winners(worker: Worker, settings: dict[str, Any] | None, cosine: float | None, nfe: list[int], prompt: str) -> Any:
    """(score, exact judge) of the best within each NFE of one search."""
    from .. import search
    from ..search.run import run
    from ..search.space import Candidates

    seed = prompt_seed(prompt)
    algorithm = search.algorithm("random") if settings is None else search.algorithm("axes", **settings)
    report = run(
        algorithm, worker.world.sampler(prompt, SEARCH_STEPS, CFG), worker.ensemble, search.Budget(nfe=max(nfe)),
        candidates=Candidates(Candidates.of_seed(seed).first, seed, cosine), prompt=prompt, seed=seed,
        held_out=worker.judge, batch=16,
    )  # fmt: skip
    rows = [(e.nfe, e.score, judged(e.held_out)) for e in report.finished]
    return [max((row for row in rows if row[0] <= limit), key=lambda row: row[1])[1:] for limit in nfe]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="run.py bench axes", description=__doc__)
    parser.add_argument("--family", default="flow")
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--nfe", type=int, nargs="+", default=[160, 320])
    parser.add_argument("--only", nargs="+", default=list(SETTINGS))
    options = parser.parse_args()
    worker, prompts = Worker(options.family), frozen_prompts()[FIRST : FIRST + options.prompts]
    lines = [
        f"{options.family}; {SEARCH_STEPS} euler steps, cfg {CFG:g}; {len(prompts)} prompts; winner's score [95 %].",
        "",
        f"| seeds | search | {' | '.join(f'{n} NFE | less random | exact judge' for n in options.nfe)} |",
        f"|---|---|{'---|---|---|' * len(options.nfe)}",
    ]  # fmt: skip
    for world, cosine in WORLDS.items():
        plain: list[Any] = []
        for name in options.only:
            found = [winners(worker, SETTINGS[name], cosine, options.nfe, prompt) for prompt in prompts]
            plain = plain or found
            cells = []
            for i in range(len(options.nfe)):
                score = clustered([each[i][0] for each in found])
                less = clustered([a[i][0] - b[i][0] for a, b in zip(found, plain, strict=True)])
                judge = sum(each[i][1] for each in found) / len(found)
                cells += ["{:.3f} [{:.3f}, {:.3f}]".format(*e) for e in (score, less)] + [f"{judge:.3f}"]
            lines.append(f"| {world} | {name} | {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "axes.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
