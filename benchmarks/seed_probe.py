"""What Seed Probe says in the demo world, where seeds differ and where they are made to collapse.

    python run.py bench seed_probe [--prompts 20] [--candidates 4 8]

Three kinds of searches on the same frozen prompts, from the 101st on: fresh seeds; start noises at a cosine of 0.99 to
the user's own; image to image of the user's own picture with denoise 0.2. Written to benchmarks/results/seed_probe.md:
quantiles over prompts of the two numbers that the verdict goes by, and how often it is "collapse".
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from typing import Any

from ..demo.measure import frozen_prompts
from .axes import FIRST
from .pass_rate import CFG, RESULTS, SEARCH_STEPS, Worker, prompt_seed

DENOISE = 0.2


def reports(worker: Worker, prompt: str, candidates: int) -> Iterator[tuple[str, Any]]:
    """(world, report) of random search in every world."""
    import comfy.samplers

    from .. import search
    from ..nodes.guided_sampler import GuidedSampler
    from ..search.run import run
    from ..search.space import Candidates

    seed = prompt_seed(prompt)

    def report(sampler: Any, cosine: float | None) -> Any:
        return run(
            search.algorithm("random"), sampler, worker.ensemble, search.Budget(candidates=candidates), prompt=prompt,
            candidates=Candidates(Candidates.of_seed(seed).first, seed, cosine), batch=8, top_k=candidates,
        )  # fmt: skip

    whole = worker.world.sampler(prompt, SEARCH_STEPS, CFG)
    fresh = report(whole, None)
    yield "fresh seeds", fresh
    yield "cosine 0.99", report(whole, 0.99)
    own = next(kept for kept in fresh.top if kept.evaluation.candidate == 0)
    model = worker.world.model
    stock = comfy.samplers.KSampler(
        model, SEARCH_STEPS, model.load_device, "euler", "simple", DENOISE, model.model_options
    )
    again = GuidedSampler(whole.guider, whole.sampler, stock.sigmas, {"samples": own.row.x}, worker.world.vae)
    yield f"denoise {DENOISE:g}", report(again, None)


def spread(values: list[float]) -> str:
    """Least, median and largest."""
    return f"{min(values):.2f}, {statistics.median(values):.2f}, {max(values):.2f}"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="run.py bench seed_probe", description=__doc__)
    parser.add_argument("--family", default="flow")
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--candidates", type=int, nargs="+", default=[4, 8])
    options = parser.parse_args()
    worker = Worker(options.family)
    from ..search.probe import Probe, probe

    found: dict[tuple[str, int], list[Probe]] = {}
    for prompt in frozen_prompts()[FIRST : FIRST + options.prompts]:
        for count in options.candidates:
            for world, report in reports(worker, prompt, count):
                found.setdefault((world, count), []).append(probe(report))
    lines = [
        f"{options.family}; {SEARCH_STEPS} euler steps, cfg {CFG:g}; {options.prompts} prompts. Least, median, most.",
        "",
        "| seeds | candidates | score deviation / verifier's scale | picture difference | verdict collapse |",
        "|---|---|---|---|---|",
    ]
    for (world, count), probes in sorted(found.items(), key=lambda item: item[0][1]):
        shares, apart = [p.share or 0.0 for p in probes], [p.apart or 0.0 for p in probes]
        collapsed = sum(p.collapsed for p in probes)
        lines.append(f"| {world} | {count} | {spread(shares)} | {spread(apart)} | {collapsed} of {len(probes)} |")
    text = "\n".join(lines)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "seed_probe.md").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
