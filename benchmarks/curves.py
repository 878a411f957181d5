"""What a curve that was measured on few candidates is worth to Search: Pruned.

    python run.py bench curves --data x0_rewards_flux_sdxl.npz [--repeats 8]

The first table: the error of a measured visibility (root mean square over measurements, and mean), from the finally
best candidate alone, the best quarter, and all (`measuring.visibility`), against the curve of 100 prompts x 200 seeds.

The second: the plan of a measurement, drawn towards the cautious curve by so many candidates (`Measured.curve`), is
carried out on prompts that it was not measured on, or, in the last four rows, on candidates whose scores are a Gaussian
Markov chain with a known curve. Gains are over best-of-N at the same NFE, in standard deviations of a prompt's scores.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..search.curves import CURVES, curve_of, measured_curve
from ..search.halving_plan import Curve, HalvingPlan, halving_plan
from ..search.measuring import Measured, visibility
from .pass_rate import RESULTS

STEPS = 20
SHARES = tuple(share for share, _ in CURVES["cautious"])
CAUTIONS = (0.0, 4.0, 8.0, 16.0, 32.0, 64.0)
SIZES = ((1, 16), (4, 16))  # prompts, candidates of each
_CAUTIOUS = tuple(seen for _, seen in CURVES["cautious"])
CHAINS = {
    "chain: cautious": _CAUTIOUS,
    "chain: its square": tuple(seen**2 for seen in _CAUTIOUS),
    "chain: a tenth of it": tuple(0.1 * seen for seen in _CAUTIOUS),
    "chain: sharp": (0.6, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995),
}
Measure = Callable[[int, int], Tensor]  # prompts, candidates -> scores [prompts, candidates, looks and end]
Value = Callable[[HalvingPlan], float]


def chain(seen: tuple[float, ...], shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Scores [*shape, looks + 1] of a Gaussian Markov chain that follows a curve."""
    now, before = torch.randn(shape, generator=generator, dtype=torch.float64), 1.0
    scores = [now]
    for value in reversed(seen):
        kept = value / before
        now = kept * now + math.sqrt(1 - kept**2) * torch.randn(shape, generator=generator, dtype=torch.float64)
        scores.insert(0, now)
        before = value
    return torch.stack(scores, dim=-1)


def played(plan: HalvingPlan, scores: Tensor, final: Tensor, column: Callable[[int], int]) -> float:
    """The mean `final` [pools, seeds] of a plan's winners; `column` finds a step in `scores` [pools, seeds, looks]."""
    alive = torch.arange(plan.first).expand(len(final), -1)
    for step, keep in plan.cuts:
        seen = scores[..., column(step)].gather(1, alive)
        alive = alive.gather(1, seen.topk(keep, dim=1).indices)
    return float(final.gather(1, alive).amax(dim=1).mean())


def on_record(rewards: Tensor, generator: torch.Generator, orders: int = 150) -> tuple[Measure, Value, Curve]:
    """Measurements on half of recorded rewards [prompts, seeds, steps], and what plans are worth on the others."""
    order = torch.randperm(len(rewards), generator=torch.Generator().manual_seed(1))
    train, test = rewards[order[: len(order) // 2]], rewards[order[len(order) // 2 :]]
    columns = [round(share * STEPS) - 1 for share in (*SHARES, 1.0)]
    end = test[..., -1]
    end = (end - end.mean(dim=1, keepdim=True)) / end.std(dim=1, keepdim=True)

    def measure(prompts: int, candidates: int) -> Tensor:
        chosen = train[torch.randperm(len(train), generator=generator)[:prompts]]
        seeds = torch.randperm(chosen.shape[1], generator=generator)[:candidates]
        return chosen[:, seeds][..., columns]

    @cache
    def value(plan: HalvingPlan) -> float:
        shuffle, found = torch.Generator().manual_seed(5), []
        for _ in range(orders):
            seeds = torch.randperm(test.shape[1], generator=shuffle)
            found.append(played(plan, test[:, seeds], end[:, seeds], lambda step: step - 1))
        return statistics.fmean(found)

    return measure, value, Curve(measured_curve(train))


def on_chain(seen: tuple[float, ...], generator: torch.Generator, pools: int = 4000) -> tuple[Measure, Value, Curve]:
    """The same for Gaussian candidates that follow a curve exactly."""
    curve = Curve(tuple(zip(SHARES, seen, strict=True)))
    steps = range(1, STEPS)
    scores = chain(tuple(curve.at(step / STEPS) for step in steps), (pools, 40), torch.Generator().manual_seed(6))
    value = cache(lambda plan: played(plan, scores, scores[..., -1], lambda step: step - 1))
    return lambda prompts, candidates: chain(seen, (prompts, candidates), generator), value, curve


def measured(scores: Tensor) -> Measured:
    """What Measure Curve makes of scores [prompts, candidates, looks + 1], prompt by prompt."""
    found = []
    for prompt in scores:
        *looks, final = prompt.T.tolist()
        found.append(Measured("recorded", SHARES, tuple(visibility(look, final) for look in looks), len(final)))
    together = found[0]
    for one in found[1:]:
        together = together.with_earlier(one)
    return together


def of_best(scores: Tensor, best: float) -> list[float]:
    """Visibility by the best share of the candidates, as `curves.measured_curve` has it."""
    return [seen for _, seen in measured_curve(scores, best)[:-1]]


def errors(rewards: dict[str, Tensor], repeats: int) -> list[str]:
    """The first table."""
    lines = [
        f"| measured on | by | {' | '.join(f'{share:.0%}' for share in SHARES)} |", f"|---|---|{'---|' * len(SHARES)}"
    ]  # fmt: skip
    estimators: dict[str, Callable[[Tensor], list[float]]] = {
        "the best alone": lambda scores: of_best(scores, 0.05),
        "the best quarter": lambda scores: of_best(scores, 0.25),
        "all": lambda scores: list(measured(scores).seen),
    }
    for prompts, candidates in SIZES:
        for name, estimate in estimators.items():
            generator = torch.Generator().manual_seed(1)
            off = []
            for table in rewards.values():
                truth = Curve(measured_curve(table))
                measure, _, _ = on_record(table, generator)
                for _ in range(10 * repeats):
                    seen = estimate(measure(prompts, candidates))
                    off.append([x - truth.at(share) for x, share in zip(seen, SHARES, strict=True)])
            found = np.array(off)
            cells = zip(np.sqrt((found**2).mean(axis=0)), found.mean(axis=0), strict=True)
            text = " | ".join(f"{error:.2f} ({bias:+.2f})" for error, bias in cells)
            lines.append(f"| {prompts} x {candidates} | {name} | {text} |")
            print(lines[-1], flush=True)
    return lines


def gains(rewards: dict[str, Tensor], repeats: int, nfe: int, prompts: int, candidates: int) -> list[str]:
    """The second table, for one size of measurements."""
    head = [f"caution {caution:g}" for caution in CAUTIONS]
    lines = [f"| {prompts} x {candidates} | {' | '.join(head)} | `cautious` alone | true curve |",
             f"|---|{'---|' * (len(head) + 2)}"]  # fmt: skip
    columns: list[list[float]] = [[] for _ in range(len(head) + 2)]
    least = [math.inf] * len(columns)
    for name in (*rewards, *CHAINS):
        generator = torch.Generator().manual_seed(2)
        world = on_record(rewards[name], generator) if name in rewards else on_chain(CHAINS[name], generator)
        measure, value, truth = world
        plain = value(HalvingPlan(nfe // STEPS))
        found = []
        for _ in range(repeats):
            one = measured(measure(prompts, candidates))
            found.append([value(halving_plan(one.curve(caution), STEPS, nfe)) - plain for caution in CAUTIONS])
        fixed = [value(halving_plan(curve, STEPS, nfe)) - plain for curve in (curve_of("cautious"), truth)]
        means = [statistics.fmean(column) for column in zip(*found, strict=True)] + fixed
        lowest = [min(column) for column in zip(*found, strict=True)] + fixed
        for i, (mean, low) in enumerate(zip(means, lowest, strict=True)):
            columns[i].append(mean)
            least[i] = min(least[i], low)
        lines.append(f"| {name.replace('_', ' ')} | {' | '.join(f'{mean:+.3f}' for mean in means)} |")
        print(lines[-1], flush=True)
    lines.append(f"| **mean** | {' | '.join(f'**{statistics.fmean(column):+.3f}**' for column in columns)} |")
    lines.append(f"| the worst of all | {' | '.join(f'{low:+.3f}' for low in least)} |")
    return lines


def main() -> None:
    """Print the tables and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the .npz file with the recorded rewards")
    parser.add_argument("--repeats", type=int, default=8, help="measurements of every row")
    parser.add_argument("--nfe", type=int, default=200)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with np.load(options.data) as file:
        rewards = {name: torch.from_numpy(file[name]).double() for name in file.files}
    lines = ["Error of a measured visibility after a share of the steps, root mean square (mean):", ""]
    lines += [*errors(rewards, options.repeats), ""]
    for prompts, candidates in SIZES:
        lines += [f"Gain of pruned best-of-N over best-of-{options.nfe // STEPS} at {options.nfe} NFE, planned from "
                  f"{options.repeats} measurements of prompts x candidates:", ""]  # fmt: skip
        lines += [*gains(rewards, options.repeats, options.nfe, prompts, candidates), ""]
    text = "\n".join(lines)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "curves.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
