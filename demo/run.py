"""`python run.py demo`: one search in the demo world, from nothing to pictures, on any machine.

Writes the best image, the contact sheet, the score-versus-NFE plot and the report under output/demo.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from ..load_pack import import_host
from ..search.budget import Budget
from ..search.errors import SearchError
from ..search.report import SearchReport
from ..search.space import Candidates

OUTPUT = Path(__file__).resolve().parents[1] / "output" / "demo"
PROMPT = "two red circles left of a blue square"


def find(prompt: str, candidates: int, seed: int, algorithm: str) -> SearchReport:
    """Search the demo world with the demo's CLIPScore and classifier; the exact judge is held out."""
    from .. import search
    from ..nodes.demo_world import load_demo_world
    from ..search.run import run
    from ..verifiers.demo_set import demo_ensemble, demo_judge

    world = load_demo_world()
    sampler = world.sampler(prompt)
    nfe = candidates * (sampler.cost(sampler.sigmas) or 1)
    return run(
        search.algorithm(algorithm), sampler, demo_ensemble(), Budget(nfe=nfe), prompt=prompt, seed=seed,
        candidates=Candidates.of_seed(seed), held_out=demo_judge(), top_k=8, folder=OUTPUT,
    )  # fmt: skip


def write(report: SearchReport, folder: Path) -> list[Path]:
    """Write the pictures and the report into `folder` and return their paths."""
    from ..nodes.live import save_picture, to_picture
    from ..nodes.report_nodes import save_report
    from ..nodes.report_pictures import contact_sheet, score_plot

    assert report.best is not None
    pictures = {
        "best.png": report.best.images[0],
        "contact_sheet.png": contact_sheet(report, columns=4, cell=192)[0],
        "score_vs_nfe.png": score_plot(report, 960, 540)[0],
    }
    for name, image in pictures.items():
        save_picture(to_picture(image), folder / name, {"noise_search": report.best.evaluation.record()})
    return [*(folder / name for name in pictures), *save_report(report, folder, "report")]


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="run.py demo", description=__doc__)
    parser.add_argument("--prompt", default=PROMPT, help="coloured shapes in plain English (default: %(default)s)")
    parser.add_argument("--candidates", type=int, default=32, help="how many images' worth of model calls to spend")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--algorithm", default="random", help="random, zero_order or paths")
    arguments = parser.parse_args()
    import_host()
    torch.set_grad_enabled(False)
    print(
        f"Searching for {arguments.prompt!r}: {arguments.candidates} candidates' worth of model calls ...", flush=True
    )
    try:
        report = find(arguments.prompt, arguments.candidates, arguments.seed, arguments.algorithm)
        paths = write(report, OUTPUT)
    except (SearchError, ValueError) as error:
        print(f"The demo stopped: {error}", file=sys.stderr)
        return 1
    first, best = report.finished[0], report.top[0].evaluation
    print(f"{len(report.finished)} images, {report.nfe} NFE, {report.seconds:.1f} s")
    print(f"your seed ({arguments.seed}): score {first.score:.3f}, exact judge {held_out(first):.2f}")
    print(f"the winner (seed {best.seed}): score {best.score:.3f}, exact judge {held_out(best):.2f}")
    for path in [*paths, OUTPUT / "ledger.jsonl"]:
        print(path)
    return 0


def held_out(evaluation: object) -> float:
    """The one held-out score of an evaluation."""
    [score] = evaluation.held_out.values()  # type: ignore[attr-defined]
    return float(score)


if __name__ == "__main__":
    raise SystemExit(main())
