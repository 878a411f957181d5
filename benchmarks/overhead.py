"""What the search costs besides the model: its loop against the bare stock loop, in one run.

    python run.py bench overhead [--candidates 64] [--steps 20]

Renders the same seeds of the demo world (a) with stock `guider.sample`, one seed at a time, (b) with the search's
sampler at micro-batches of 1, 8 and 32, and prints seconds and ratios. Decoding and scoring are left out of both.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any


def seconds(work: Callable[[], Any], rounds: int) -> float:
    """Median wall seconds of a call, after one call to warm up."""
    work()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    """The command line."""
    import torch

    from ..load_pack import import_host

    parser = argparse.ArgumentParser(prog="run.py bench overhead", description=__doc__)
    parser.add_argument("--candidates", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    import_host()
    torch.set_num_threads(1)
    import comfy.sample

    from ..nodes.demo_world import load_demo_world
    from ..search.recipe import Recipe
    from ..search.seeds import candidate_seed
    from ..search.types import Row
    from .pass_rate import Uncounted

    with torch.inference_mode():
        port = load_demo_world().sampler("a red circle", arguments.steps)
        seeds = [candidate_seed(0, i) for i in range(arguments.candidates)]
        samples, sampler = port.latent["samples"], port.sampler

        def stock() -> None:
            for seed in seeds:
                noise = comfy.sample.prepare_noise(samples, seed)
                port.guider.sample(noise, samples, sampler, port.schedule.clone(), disable_pbar=True, seed=seed)

        def ours(batch: int) -> Callable[[], None]:
            rows = [Row(Recipe.of_seed(seed), port.sigmas[0]) for seed in seeds]

            def render() -> None:
                for start in range(0, len(rows), batch):
                    port.advance(rows[start : start + batch], port.sigmas, Uncounted())

            return render

        bare = seconds(stock, arguments.rounds)
        print(f"{arguments.candidates} candidates x {arguments.steps} euler steps, one thread")
        print(f"stock loop, one seed at a time: {bare:.2f} s")
        for batch in (1, 8, 32):
            taken = seconds(ours(batch), arguments.rounds)
            print(f"search, micro-batch {batch}: {taken:.2f} s = {taken / bare:.2f} x stock")


if __name__ == "__main__":
    main()
