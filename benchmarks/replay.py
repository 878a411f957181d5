"""Pruned best-of-N on real rewards: recorded scores of x0 predictions of FLUX.1-dev and SDXL, played back.

    python run.py bench replay --data x0_rewards_flux_sdxl.npz [--tables free charged real ...] [--orders 8]

The file holds arrays {flux,sdxl}_{image_reward,hps_v2,pick_score} [prompts, seeds, steps]: the score of the x0
prediction after step s, which s + 1 model calls made; the last is the finished image. (Of SDXL's 200 seeds per prompt
56 are distinct: the others repeat them, for best-of-N as for the search.) A sampler and a verifier play it
back, so that the real driver and the real algorithm run: seeds of a prompt come in random orders, as fresh candidates.

For every split the curve is measured on one half of the prompts and the search runs on the other. Effective compute is
the NFE that best-of-N needs for the same mean score, over the NFE that were spent; best-of-N is exact (the expected
maximum over all subsets of the recorded seeds), and the luck of the orders is taken out of what the search found as far
as the best of the seeds that it began tells it (a control variate). Held out are the two other rewards of the pick, in
within-prompt standard deviations, less those of best-of-N's pick.

Tables, each in a file of its own, benchmarks/results/replay_TABLE.md:

free              looks on the way cost nothing
charged           every score of an x0 prediction is charged with 0.25 NFE for decoder and verifier, out of the budget
real              with what that takes through the model's own VAE, by bench look_cost
cautious          free, by the curve that `auto` uses on models that it does not know: the least that was seen of any of
                  these arrays, so it is no test of that curve, but of what caution costs
clock             by that curve, where seconds are the limit, as `auto` has it: an NFE takes one second, and decoding
                  and scoring an image, a finished one too and best-of-N's, what `auto` takes for it on a model that it
                  does not know. The seconds are those that best-of-N takes for so many NFE. What takes too long is
                  charged.

A table takes twenty minutes of one core.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from ..search import Algorithm, Budget, Candidates, Watcher, algorithm, run
from ..search.curves import CURVES, LOOK_COSTS, curve_of, measured_curve
from ..search.halving_plan import HalvingPlan, halving_plan
from ..search.report import Evaluation
from ..search.types import Meter, Row
from .pass_rate import RESULTS
from .statistics import best_of_n, of_best

BUDGETS = (100, 200, 400, 800)
REWARDS = ("image_reward", "hps_v2", "pick_score")
#: Curves start here: before it nothing was seen of any reward.
FIRST = 0.2
#: A curve: (share of the steps done, visibility).
Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Kind:
    """What a table charges for a look, by model, and the curve that is known, if it is not measured."""

    title: str
    costs: Mapping[str, float]
    known: Points | None = None
    by_clock: bool = False


_REAL = {"flux": LOOK_COSTS["FLUX.1-dev"][0], "sdxl": LOOK_COSTS["SDXL"][0]}
_UNKNOWN = LOOK_COSTS[""][0]
TABLES = {
    "free": Kind("looks free", {"flux": 0.0, "sdxl": 0.0}),
    "charged": Kind("every look charged 0.25 NFE", {"flux": 0.25, "sdxl": 0.25}),
    "real": Kind(f"every look charged {_REAL['flux']:g} NFE (FLUX) or {_REAL['sdxl']:g} (SDXL)", _REAL),
    "cautious": Kind("looks free, by the cautious curve", {"flux": 0.0, "sdxl": 0.0}, CURVES["cautious"]),
    "clock": Kind(
        f"by the clock, every look and ending {_UNKNOWN:g} s, by the cautious curve",
        {"flux": _UNKNOWN, "sdxl": _UNKNOWN}, CURVES["cautious"], by_clock=True,
    ),
}  # fmt: skip


class Played:
    """The candidates of one prompt: candidate i is the i-th seed of `order`, at a step of its recorded way.

    A state is [place in the order, steps done]; an image shows the same two numbers to the verifier.
    """

    rows_per_candidate = 1
    exact_pauses = True
    family = ""
    look_cost = 0.0
    axes: Mapping[str, float] = MappingProxyType({})

    def __init__(self, steps: int, order: Sequence[int]) -> None:
        self.sigmas = tuple(1 - i / steps for i in range(steps + 1))
        self.order = list(order)
        self.place: dict[int, int] = {}  # of a seed in the order in which they came

    def column(self, seed: int) -> int:
        return self.order[self.place.setdefault(seed, len(self.place))]

    def advance(
        self, rows: Sequence[Row], sigmas: Sequence[float], meter: Meter, keep: Sequence[float] = ()
    ) -> list[Row]:
        steps = len(self.sigmas) - 1
        for _ in sigmas[1:]:
            meter.forward(len(rows))
            meter.model_rows(len(rows))
        done = round((1 - sigmas[-1]) * steps)
        states = [torch.tensor([[float(self.column(row.recipe.step_seed)), float(done)]]) for row in rows]
        return [replace(row, sigma=sigmas[-1], x=x, x0=x) for row, x in zip(rows, states, strict=True)]

    def decode(self, rows: Sequence[Row]) -> list[Tensor]:
        shown = [row.x for row in rows]
        return [torch.cat([x, torch.zeros(1, 1)], dim=1).reshape(1, 1, 1, 3) for x in shown if x is not None]

    def cost(self, sigmas: Sequence[float]) -> int:
        return len(sigmas) - 1

    def time(self, sigma: float) -> float:
        return sigma

    def sigma(self, time: float) -> float:
        return time

    def coefficients(self, sigma: float) -> tuple[float, float]:
        return 1 - sigma, sigma

    def micro_batch(self) -> int:
        return 256

    def is_out_of_memory(self, error: BaseException) -> bool:
        return isinstance(error, MemoryError)

    def free_memory(self) -> None: ...

    def small_refusal(self, shrink: int) -> str:
        return "recorded ways have one resolution"

    def predict(self, rows: Sequence[Row], meter: Meter) -> list[Row]:
        raise NotImplementedError("only the recorded predictions can be played")

    def renoise(self, row: Row, sigma: float, seed: int) -> Row:
        raise NotImplementedError("only the recorded ways can be played")


class Recorded:
    """A verifier that looks its scores up: [seeds, steps] of one prompt."""

    def __init__(self, name: str, scores: Tensor) -> None:
        self.name, self.scores = name, scores

    def score(self, images: Tensor, prompt: str) -> Tensor:
        column, done = images[:, 0, 0, 0].long(), images[:, 0, 0, 1].long()
        return self.scores[column, done - 1]


class Charge(Watcher):
    """What a search spends: its NFE, and `cost` for every look, of finished images too where `endings` count. Ends it
    at a `limit`; 0 = none.
    """

    def __init__(self, cost: float, limit: float, endings: bool = False) -> None:
        self.cost, self.limit, self.endings = cost, limit, endings
        self.nfe = self.looks = 0

    @property
    def spent(self) -> float:
        """In NFE."""
        return self.nfe + self.cost * self.looks

    def progress(self, nfe: int, expected: int | None) -> None:
        """See search.Watcher."""
        self.nfe = nfe

    def evaluated(self, evaluation: Evaluation, images: Tensor, best: bool) -> None:
        """See search.Watcher."""
        self.looks += self.endings or evaluation.candidate is None

    def finish_now(self) -> bool:
        """See search.Watcher."""
        return 0 < self.limit <= self.spent


@dataclass(frozen=True)
class Found:
    """The seed that a search returns, how many it began, and what it spent in NFE."""

    seed: int
    begun: int
    spent: float


class Replay:
    """The recorded rewards of one model, and searches on them."""

    def __init__(self, data: dict[str, np.ndarray], model: str, orders: int) -> None:
        self.rewards = {name: data[f"{model}_{name}"].astype(np.float64) for name in REWARDS}
        self.prompts, self.seeds, self.steps = self.rewards[REWARDS[0]].shape
        most = orders * BUDGETS[-1] // BUDGETS[0]
        self.orders = [np.random.default_rng([7, p]).permuted([range(self.seeds)] * most, axis=1)
                       for p in range(self.prompts)]  # fmt: skip
        self.count = {budget: orders * BUDGETS[-1] // budget for budget in BUDGETS}
        self.curves: dict[tuple[HalvingPlan, float], Points] = {}  # by plan and the cost of a look
        self.pick = cache(self._pick)
        self.best_of = cache(lambda reward: best_of_n(self.rewards[reward][:, :, -1]))

    def _pick(
        self, reward: str, budget: int, plan: HalvingPlan, cost: float, by_clock: bool, prompt: int, order: int
    ) -> Found:
        """What pruned search finds. Curves that lead to one plan at one cost lead to one search."""
        sampler = Played(self.steps, self.orders[prompt][order])
        verifier = Recorded(reward, torch.from_numpy(self.rewards[reward][prompt]))
        charged = 0.0 if by_clock else cost  # the clock tells
        made: Algorithm = algorithm("pruned", curve=self.curves[plan, cost], judge_cost=charged)
        charge = Charge(cost, 0 if by_clock else budget, by_clock)
        limit = Budget(seconds=self.paid(budget, cost, by_clock)) if by_clock else Budget(nfe=budget)
        report = run(
            made, sampler, verifier, limit,
            candidates=Candidates.of_seed(1), seed=prompt, watcher=charge, clock=lambda: charge.spent,
        )  # fmt: skip
        assert report.best is not None
        return Found(sampler.column(report.best.evaluation.recipe[0]["seed"]), len(sampler.place), charge.spent)

    def paid(self, nfe: float, cost: float, by_clock: bool) -> float:
        """What so many NFE of best-of-N take: seconds, with its endings, where the clock is the limit."""
        return nfe * (1 + cost / self.steps) if by_clock else nfe

    def curve(self, reward: str, train: Sequence[int]) -> Points:
        """What the training prompts say of how early the best can be seen."""
        measured = measured_curve(torch.from_numpy(self.rewards[reward][list(train)]))
        return tuple((round(share, 4), round(seen, 2)) for share, seen in measured if share >= FIRST)

    def measure(
        self, reward: str, budget: int, seen: Points, cost: float, by_clock: bool, test: Sequence[int]
    ) -> tuple[float, float, dict[str, float]]:
        """Effective compute on the test prompts by a curve, its standard error from the orders alone, and how the other
        rewards of the pick differ from best-of-N's."""
        plan = halving_plan(curve_of(seen), self.steps, budget, cost)
        self.curves.setdefault((plan, cost), seen)
        done = {p: [self.pick(reward, budget, plan, cost, by_clock, p, o) for o in range(self.count[budget])]
                for p in test}  # fmt: skip
        picks = {p: [each.seed for each in found] for p, found in done.items()}
        spent = statistics.fmean(each.spent for found in done.values() for each in found)
        spent = max(self.paid(budget, cost, by_clock), spent)
        table = self.rewards[reward]
        found = np.array([table[p, picks[p], -1] for p in test])
        # an order is lucky when the best that was begun in it is; how lucky on the mean is known
        luck = np.array(
            [
                [
                    table[p, self.orders[p][o][: each.begun], -1].max() - self.best_of(reward)[each.begun - 1, p]
                    for o, each in enumerate(done[p])
                ]
                for p in test
            ]
        )
        found -= slope(luck, found) * luck
        error = math.sqrt(found.var(axis=1, ddof=1).mean() / found.size)
        curve, image = self.best_of(reward)[:, test].mean(axis=1), self.paid(self.steps, cost, by_clock)
        low, effective, high = (
            float(np.interp(found.mean() + shift, curve, np.arange(1, self.seeds + 1))) * image / spent
            for shift in (-error, 0.0, error)
        )
        differences = {}
        for other in (name for name in REWARDS if name != reward):
            final = self.rewards[other][:, :, -1]
            scale = final.std(axis=1)
            expected = of_best(table[:, :, -1], final)[budget // self.steps - 1]
            differences[other] = statistics.fmean(
                (final[p, seed] - expected[p]) / scale[p] for p in test for seed in picks[p]
            )
        return effective, (high - low) / 2, differences


def slope(luck: np.ndarray, found: np.ndarray) -> float:
    """How much what is found goes with luck, within prompts: both [prompts, orders] (a control variate's factor)."""
    x, y = (each - each.mean(axis=1, keepdims=True) for each in (luck, found))
    return float((x * y).sum() / max((x * x).sum(), 1e-12))


def halves(prompts: int, splits: int) -> list[tuple[list[int], list[int]]]:
    """Fixed halves of the prompts: to measure curves on, and to search on."""
    made = []
    for split in range(splits):
        order = np.random.default_rng(1000 + split).permutation(prompts).tolist()
        made.append((order[: prompts // 2], order[prompts // 2 :]))
    return made


def row(replay: Replay, model: str, reward: str, splits: int, kind: Kind) -> tuple[str, float]:
    """One line of a table: effective compute at every budget, and the largest held-out difference. By a known curve,
    or else by that of the other half of the prompts. With it the largest standard error from the orders.
    """
    cells, held_out, errors = [], [], []
    for budget in BUDGETS:
        found = [
            replay.measure(
                reward, budget, kind.known or replay.curve(reward, train), kind.costs[model], kind.by_clock, test
            )
            for train, test in halves(replay.prompts, splits)
        ]
        effective = [each for each, _, _ in found]
        errors += [error for _, error, _ in found]
        cells.append(f"{statistics.fmean(effective):.2f} ± {statistics.stdev(effective):.2f}")
        for other in found[0][2]:
            held_out.append((statistics.fmean(differences[other] for _, _, differences in found), other, budget))
    worst, name, at = min(held_out)
    return f"| {model} | {reward} | {' | '.join(cells)} | {worst:+.2f} ({name}, {at} NFE) |", max(errors)


def table(name: str, replays: Mapping[str, Replay], splits: int, orders: int) -> str:
    """One table as Markdown. `orders` are those at the largest budget."""
    kind, errors = TABLES[name], []
    lines = [
        f"Pruned best-of-N, effective compute over best-of-N, {kind.title} (mean ± sd of {splits} splits):", "",
        f"| model | verifier | {' | '.join(f'{b} NFE' for b in BUDGETS)} | least held-out difference, sd |",
        f"|---|---|{'---|' * len(BUDGETS)}---|",
    ]  # fmt: skip
    for model, replay in replays.items():
        for reward in REWARDS:
            line, error = row(replay, model, reward, splits, kind)
            lines.append(line)
            errors.append(error)
            print(line, flush=True)
    played = f"Every prompt's seeds were played in {orders} orders at {BUDGETS[-1]} NFE, and in as many more as they "
    played += f"take fewer NFE; the standard error that is left of it within a split is at most {max(errors):.2f}."
    return "\n".join([*lines, "", played, ""])


def main() -> None:
    """Print the tables and write each as it is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the .npz file with the recorded rewards")
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--orders", type=int, default=8, help="random orders of every prompt's seeds at most NFE")
    parser.add_argument("--tables", nargs="+", default=list(TABLES), choices=list(TABLES))
    options = parser.parse_args()
    torch.set_num_threads(1)
    with np.load(options.data) as file:
        data = {name: file[name] for name in file.files}
    replays = {model: Replay(data, model, options.orders) for model in ("flux", "sdxl")}
    RESULTS.mkdir(exist_ok=True)
    for name in options.tables:
        text = table(name, replays, options.splits, options.orders)
        (RESULTS / f"replay_{name}.md").write_text(text, encoding="utf-8")
        print(text)


if __name__ == "__main__":
    main()
