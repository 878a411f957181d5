"""Every search algorithm against best-of-N at equal NFE, in the demo world, on a score that no search saw.

    python run.py bench equal_nfe [--families flow eps] [--prompts 200] [--methods ...] [--budgets ...] [--processes 2]

Every registered algorithm with its defaults, and every SMC preset, searches at 80, 160, 320 and 640 NFE (20 euler
steps, CFG 3). CLIPScore and the classifier lead all searches (z-score ensemble, as in the other benchmarks). The exact
judge is held out: it measures the picture by other means than the two networks, so what pleases only them shows. Its
score, the share of the prompt's clauses that are met, is the held-out score; a picture that meets all of them passes.
(Of the sets there are, this one has the most to say: with CLIPScore alone in the lead, the classifier or the judge held
out vary as much between searches, and rise less or even fall with N.)

The yardstick is best-of-N with the better of two samplers, euler and euler_ancestral: 256 candidates of each for every
prompt (8 times the largest budget), and the exact mean over all choices of N of them. Efficiency is the factor by which
best-of-N's NFE must be multiplied for the same mean result; "all" is one factor for all budgets. What lies beyond the
256 candidates is not extrapolated but said: "> 8". Which sampler is better is decided anew at every N and in every
resample, in favour of the yardstick. Intervals are 95 %, from a bootstrap over prompts; methods and best-of-N share
the resampled prompts. There are none for fewer than 10 prompts.

Some seeds are better than others on all prompts alike, so every prompt has a seed of its own. The first 48 prompts were
searched with one seed for all before that was seen, which makes intervals somewhat too narrow (much so where a row has
few others); the column "own seeds" leaves them out. How lucky the seeds were shows in the rows "with the searches' own
seeds": best-of-N of those very noises.

Prompts are those of demo/prompts.txt on which nothing was tuned, then fresh ones by the demo's own generator. Diversity
is the mean distance between the finished pictures of a search (8 x 8 means of pixels; 64 pictures at most), over that
of as many plain seeds. Seconds are processor seconds of one thread, so that other programs do not count; the decoder
runs without the channels that are zero in its file, which changes no bit of a picture and makes it 4 times as fast.
Searches that are `--joined` share forwards and have their pictures' networks in channels-last order, which changes
results by rounding alone; their records have no seconds.
"rest" is the search's loop, the exact judge, and whatever else an algorithm does.

NFE leave out what looks on the way cost. "With looks charged" is the efficiency by cost instead: every picture, on the
way or finished, of the method and of best-of-N, is charged the NFE that decoding and scoring it takes on real models
(see bench look_cost), twice where its gradient is taken. Searches measured before looks were counted lend theirs.

Raw results are appended to benchmarks/results/equal_nfe_FAMILY.jsonl prompt by prompt, so an interrupted run goes on
where it was, and what is there already makes an honest table of fewer prompts. A result counts only for the settings
and the model files it was made with. `--samplers euler euler_ancestral` runs the methods with both samplers.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import json
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..demo import paths, scenes, vae
from ..demo.measure import frozen_prompts
from ..search import ALGORITHMS, GUIDED, Budget, Candidates, SearchError, Watcher, algorithm, run
from ..search.curves import LOOK_COSTS as LOOKS
from ..search.report import Evaluation
from ..search.smc import PRESETS
from .hacking import header, in_processes, shown
from .pass_rate import CFG, RESULTS, judged, prompt_seed, read
from .plots import Panel, Point, save_panels
from .sets import diversity
from .side_by_side import share, side_by_side
from .statistics import Estimate, bounds, clustered, efficiency, of_best, rated, resamples, said

FAMILIES = ("flow", "eps")
STEPS, SEED = 20, 0
BUDGETS = (80, 160, 320, 640)  # NFE
YARDSTICK, SAMPLERS = "random", ("euler", "euler_ancestral")
CANDIDATES = 256  # of the yardstick: 8 times the largest budget
#: The fastest micro-batch on one thread; results do not depend on it.
BATCH = 16
#: Prompts that are worked on at a time.
BLOCK = 20
#: Distances between pictures grow quadratically in number.
COMPARED = 64
ROUNDS = 1000
#: NFE of decoding and scoring one picture, from bench look_cost.
LOOK_COSTS = {f"{name}, TAESD": small for name, (_, small) in LOOKS.items() if name}
LOOK_COSTS |= {name: own for name, (own, _) in LOOKS.items() if name}
#: A bootstrap over fewer prompts would say too little of its own uncertainty.
FEWEST = 10
#: Prompts of demo/prompts.txt on which settings of algorithms were tuned: SMC's on the first, later ones on the others.
TUNED_ON = frozenset((*frozen_prompts()[::2][:48], *frozen_prompts()[100:120]))
FRESH_SEED = 4
#: So many prompts were searched first, with one seed for all of them.
ONE_SEED = 48


@cache
def unseen_prompts(count: int) -> list[str]:
    """Prompts on which nothing was tuned: the rest of demo/prompts.txt in its order, then fresh scenes with two groups
    (all with one are in that file)."""
    known = {scenes.parse(prompt).canonical() for prompt in frozen_prompts()}
    found = [prompt for prompt in frozen_prompts() if prompt not in TUNED_ON]
    rng = random.Random(FRESH_SEED)
    while len(found) < count:
        scene = scenes.random_scene(rng)
        if scene.canonical() not in known:
            known.add(scene.canonical())
            found.append(scenes.prompt(scene, rng))
    return found[:count]


def seed_of(prompt: str) -> int:
    """The seed of all searches for a prompt: its own, so that lucky seeds do not favour one search on every prompt."""
    return SEED if prompt in unseen_prompts(ONE_SEED) else prompt_seed(prompt)


@cache
def shared() -> list[Any]:
    """What all searches share: the model files, the steps, the guidance and the seed."""
    return [(paths.MODELS / "SHA256SUMS").read_text(encoding="utf-8"), STEPS, CFG, SEED]


@dataclass(frozen=True)
class Method:
    """A search algorithm with its settings, and the stock sampler that it moves candidates with."""

    name: str
    algorithm: str
    sampler: str = "euler"
    given: tuple[tuple[str, Any], ...] = ()

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All settings, defaults included."""
        known = list(inspect.signature(ALGORITHMS[self.algorithm]).parameters.values())[2:]
        made = {setting.name: setting.default for setting in known} | dict(self.given)
        # only glass has inner steps; results without it were recorded when the default of `inner` was 1
        return made | ({"inner": 1} if "inner" in made and made["transition"] != "glass" else {})

    @property
    def guides(self) -> bool:
        """Whether it takes the gradient of its looks."""
        return self.algorithm in GUIDED or float(self.settings.get("guidance", 0)) > 0

    @cached_property
    def made_with(self) -> str:
        """A short name of all that decides a result beside family, prompt and budget."""
        decided = [self.algorithm, self.sampler, self.settings, shared()]
        return hashlib.sha256(json.dumps(decided, sort_keys=True, default=str).encode()).hexdigest()[:10]


def methods(samplers: Sequence[str] = SAMPLERS[:1]) -> dict[str, Method]:
    """Every registered algorithm but best-of-N and every SMC preset, by the name in the tables."""
    made = [Method(name, name) for name in ALGORITHMS if name not in (YARDSTICK, "smc")]
    made += [Method(f"smc {preset}", "smc", given=tuple(given.items())) for preset, given in PRESETS.items()]
    both = [
        replace(method, name=method.name if sampler == SAMPLERS[0] else f"{method.name}, {sampler}", sampler=sampler)
        for sampler in samplers
        for method in made
    ]
    return {method.name: method for method in both}


def yardsticks() -> dict[str, Method]:
    """Best-of-N with both samplers."""
    return {f"best of N, {sampler}": Method(f"best of N, {sampler}", YARDSTICK, sampler) for sampler in SAMPLERS}


@dataclass(frozen=True)
class Task:
    """One search."""

    family: str
    prompt: str
    method: Method
    budget: int

    @property
    def key(self) -> tuple[Any, ...]:
        """What tells it from all others in the file of results."""
        return self.prompt, self.budget, self.method.made_with


def tasks(
    families: Sequence[str], prompts: Sequence[str], chosen: Sequence[Method], budgets: Sequence[int]
) -> list[Task]:
    """All searches, some prompts at a time so that like searches are neighbours, best-of-N first."""
    wanted = [(method, STEPS * CANDIDATES) for method in yardsticks().values()]
    wanted += [(method, budget) for method in chosen for budget in budgets]
    blocks = [prompts[start : start + BLOCK] for start in range(0, len(prompts), BLOCK)]
    return [Task(f, p, method, budget) for some in blocks for f in families for method, budget in wanted for p in some]


def results_file(family: str) -> Path:
    """Where the raw results of a model are."""
    return RESULTS / f"equal_nfe_{family}.jsonl"


def record_key(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """The key of the task that a record is of."""
    return record["prompt"], record["budget"], record["made_with"]


# ---- searches, with clocks


class Clock:
    """Processor seconds of this process by what they were spent on."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def timing(self, part: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """`work`, with what it takes added to a part."""

        def timed(*args: Any, **more: Any) -> Any:
            start = time.process_time()
            done = work(*args, **more)
            self.seconds[part] = self.seconds.get(part, 0.0) + time.process_time() - start
            return done

        return timed


class Timed:
    """An object some of whose methods are timed."""

    def __init__(self, inner: Any, clock: Clock, parts: Mapping[str, str]) -> None:
        self._inner, self._clock, self._parts = inner, clock, parts

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        return self._clock.timing(self._parts[name], found) if name in self._parts else found


PARTS = ("sampling", "decode", "verifier", "rest")
_OF_SAMPLER = {"advance": "sampling", "predict": "sampling", "pull_back": "sampling", "decode": "decode"}


class Finished(Watcher):
    """Keeps a few numbers of the first finished pictures: the means of 8 x 8 pixels."""

    def __init__(self) -> None:
        self.rows: list[Tensor] = []

    def evaluated(self, evaluation: Evaluation, images: Tensor, best: bool) -> None:
        """See search.Watcher."""
        if evaluation.candidate is not None and len(self.rows) < COMPARED:
            pixels = images.movedim(-1, 1).float()
            self.rows.append(torch.nn.functional.avg_pool2d(pixels, pixels.shape[-1] // 8).flatten())

    @property
    def diversity(self) -> float | None:
        """Mean distance of two of them; None of one alone."""
        return float(diversity(torch.stack(self.rows))) if len(self.rows) > 1 else None


class Worker:
    """Does tasks, one after the other.

    `joined`: beside other workers of the process (see `side_by_side`), whose clocks would run in one another.
    """

    def __init__(self, joined: bool = False) -> None:
        from ..load_pack import import_host

        import_host()
        torch.set_num_threads(1)
        torch.set_grad_enabled(False)
        from ..nodes.demo_world import DemoWorld, load_demo_world
        from ..verifiers.demo_set import demo_ensemble, demo_judge
        from ..verifiers.ensemble import VerifierEnsemble

        self.clock, self.joined = Clock(), joined
        clip, classifier = (each.verifier for each in demo_ensemble().members)
        if joined:
            share(clip.module, "clip", "embed_images")
            share(classifier.module.to(memory_format=torch.channels_last), "classifier")
        members = [Timed(each, self.clock, {"score": "verifier"}) for each in (clip, classifier)]
        self.ensemble, self.judge = VerifierEnsemble(members), demo_judge()
        self.load: Callable[[str], DemoWorld] = load_demo_world
        self.thin = vae.narrow(vae.load(paths.VAE)).taesd_decoder
        if joined:
            share(self.thin.to(memory_format=torch.channels_last), "decoder")
        self.worlds: dict[str, DemoWorld] = {}

    def world(self, family: str) -> Any:
        """A model, with the decoder that leaves out what is zero."""
        if family not in self.worlds:
            self.worlds[family] = self.load(family)
            self.worlds[family].vae.first_stage_model.taesd_decoder = self.thin
            if self.joined:
                share(self.worlds[family].model.model.diffusion_model, family)
        return self.worlds[family]

    def search(self, task: Task) -> dict[str, Any]:
        """The record of one search."""
        self.clock.seconds = {}
        plain = self.world(task.family).sampler(task.prompt, STEPS, CFG, task.method.sampler)
        sampler: Any = Timed(plain, self.clock, _OF_SAMPLER)
        seen, seed, start = Finished(), seed_of(task.prompt), time.process_time()
        report = run(
            algorithm(task.method.algorithm, **dict(task.method.given)), sampler, self.ensemble,
            Budget(nfe=task.budget), candidates=Candidates.of_seed(seed), prompt=task.prompt, seed=seed,
            held_out=self.judge, batch=BATCH, watcher=seen,
        )  # fmt: skip
        assert report.best is not None
        whole, best = time.process_time() - start, report.best.evaluation
        spent = [self.clock.seconds.get(part, 0.0) for part in PARTS[:-1]]
        record = {
            "prompt": task.prompt, "method": task.method.name, "budget": task.budget, "nfe": report.nfe,
            "seed": seed, "score": round(best.score, 4), "held_out": round(judged(best.held_out), 4),
            "candidates": len(report.judged), "looks": len(report.evaluations) - len(report.finished),
            "diversity": seen.diversity and round(seen.diversity, 3),
            "made_with": task.method.made_with,
        }  # fmt: skip
        if not self.joined:
            record["seconds"] = [round(each, 3) for each in (*spent, whole - sum(spent))]
        if task.method.algorithm == YARDSTICK:
            rows = [(round(e.score, 3), round(judged(e.held_out), 3)) for e in report.finished]
            record["pool"] = list(zip(*rows, strict=True))  # scores, held-out scores
        return record

    def work(self, wanted: Iterable[Task], refused: set[tuple[str, str]]) -> None:
        """Do tasks and append their results. A method that refuses a budget or a sampler says why once."""
        for task in wanted:
            try:
                record = self.search(task)
            except SearchError as error:
                if (task.method.name, str(error)) not in refused:
                    refused.add((task.method.name, str(error)))
                    print(f"{task.method.name} at {task.budget} NFE refused: {error}", flush=True)
                continue
            with results_file(task.family).open("a", encoding="utf-8") as file:
                file.write(json.dumps(record, separators=(",", ":")) + "\n")


# ---- what they say


class Found:
    """The results of one model, compared with best-of-N on the prompts that both have."""

    def __init__(self, records: Iterable[Mapping[str, Any]], chosen: Sequence[Method]) -> None:
        self.records: dict[tuple[Any, ...], dict[str, Mapping[str, Any]]] = {}
        for record in records:
            prompt, budget, made_with = record_key(record)
            self.records.setdefault((budget, made_with), {})[prompt] = record
        pools = {name: self.of(method, STEPS * CANDIDATES) for name, method in yardsticks().items()}
        self.prompts = [prompt for prompt in next(iter(pools.values())) if all(prompt in of for of in pools.values())]
        self.place = {prompt: i for i, prompt in enumerate(self.prompts)}
        tables = [np.array([of[p]["pool"] for p in self.prompts]).reshape(-1, 2, CANDIDATES) for of in pools.values()]
        #: Of "score", "held_out" and "passes": [N, prompts] for each sampler.
        self.curves = {
            "score": [of_best(t[:, 0], t[:, 0]) for t in tables],
            "held_out": [of_best(t[:, 0], t[:, 1]) for t in tables],
            "passes": [of_best(t[:, 0], (t[:, 1] == 1.0).astype(float)) for t in tables],
        }
        self.pools, self.tables = pools, tables
        self.estimate = cache(self._estimate)  # its bootstrap takes long, and every price of a look asks for it
        self.plain_diversity = np.array([next(iter(pools.values()))[p]["diversity"] for p in self.prompts])
        self.methods = [method for method in chosen if any(self.at(method, budget) for budget in BUDGETS)]

    def of(self, method: Method, budget: int) -> dict[str, Mapping[str, Any]]:
        """The records of a method at a budget, by prompt."""
        return self.records.get((budget, method.made_with), {})

    def at(self, method: Method, budget: int) -> dict[int, Mapping[str, Any]]:
        """The same by the place of their prompts, where best-of-N is there too."""
        return {self.place[prompt]: r for prompt, r in self.of(method, budget).items() if prompt in self.place}

    def efficiency(
        self, method: Method, outcome: str, budgets: Sequence[int], dearer: float = 1.0, own: bool = False
    ) -> str:
        """The factor of NFE that best-of-N needs at `budgets` for the same mean outcome; "-" where results lack.

        Less where the method's NFE are `dearer` than best-of-N's. `own`: on prompts that have a seed of their own.
        """
        estimate = self.estimate(method, outcome, tuple(budgets), own)
        if estimate is None:
            return "-"
        least, most = bounds(CANDIDATES, [budget // STEPS for budget in budgets])
        middle, low, high = estimate
        return said((middle / dearer, low / dearer, high / dearer), least / dearer, most / dearer)

    def _estimate(self, method: Method, outcome: str, budgets: tuple[int, ...], own: bool) -> Estimate | None:
        """That factor as a number; None where results lack, or those of prompts with `own` seeds are too few."""
        found = [self.at(method, budget) for budget in budgets]
        shared = set(unseen_prompts(ONE_SEED)) if own else set()
        places = [i for i, p in enumerate(self.prompts) if p not in shared and all(i in each for each in found)]
        if len(places) < (FEWEST if own else 1):
            return None
        values = np.array([[each[i][outcome] for i in places] for each in found], dtype=float)
        return self._factor(values, self.curves[outcome], places, budgets)

    def count(self, method: Method) -> int:
        """Prompts that have results of a method at every budget."""
        return len(set.intersection(*(set(self.at(method, budget)) for budget in BUDGETS)))

    def pictures(self, method: Method) -> float | None:
        """Pictures that are decoded and scored for one NFE, those with a gradient twice; None where nobody counted."""
        total = 0.0
        for budget in BUDGETS:
            counted = [r for r in self.at(method, budget).values() if "looks" in r]
            if not counted:
                return None
            total += float(np.mean([r["candidates"] + (1 + method.guides) * r["looks"] for r in counted]))
        return total / sum(BUDGETS)

    def charged(self, method: Method, outcome: str, cost: float) -> str:
        """Efficiency over all budgets when a picture costs that many NFE."""
        pictures = self.pictures(method)
        if pictures is None:
            return "-"
        return self.efficiency(method, outcome, BUDGETS, (1 + cost * pictures) / (1 + cost / STEPS))

    def of_sampler(self, number: int, outcome: str, budgets: Sequence[int], lucky: bool = False) -> str:
        """The same of best-of-N with one of the samplers; `lucky`: with the seeds that all searches begin with."""
        found = self.lucky if lucky else self.exact
        values = np.array([found(number, outcome, budget // STEPS) for budget in budgets])
        estimate = self._factor(values, self.curves[outcome], range(len(self.prompts)), budgets)
        return said(estimate, *bounds(CANDIDATES, [budget // STEPS for budget in budgets]))

    def exact(self, number: int, outcome: str, count: int) -> np.ndarray:
        """The mean of the best of `count` candidates of a sampler over all choices of them, [prompts]."""
        row: np.ndarray = self.curves[outcome][number][count - 1]
        return row

    def lucky(self, number: int, outcome: str, count: int) -> np.ndarray:
        """The best of the first `count` candidates of a sampler, [prompts]."""
        scores, held_out = self.tables[number][:, 0, :count], self.tables[number][:, 1, :count]
        best = scores.argmax(axis=1)[:, None]
        return np.take_along_axis(scores if outcome == "score" else held_out, best, axis=1)[:, 0]

    @staticmethod
    def _factor(
        values: np.ndarray, curves: list[np.ndarray], places: Sequence[int], budgets: Sequence[int]
    ) -> Estimate:
        counts = [budget // STEPS for budget in budgets]
        weights = resamples(len(places), ROUNDS if len(places) >= FEWEST else 0)
        of_prompts = [curve[:, list(places)] for curve in curves]
        return efficiency(values, of_prompts, counts, weights)

    def yardstick(self, outcome: str, budget: int, places: Sequence[int]) -> np.ndarray:
        """What best-of-N with the better sampler finds at a budget, [places]."""
        rows = [curve[budget // STEPS - 1, list(places)] for curve in self.curves[outcome]]
        return max(rows, key=lambda row: float(row.mean()))

    def less_best_of_n(self, method: Method, outcome: str, budget: int) -> Estimate:
        """The mean difference from best-of-N at equal NFE, paired over prompts."""
        found = self.at(method, budget)
        values = np.array([each[outcome] for each in found.values()], dtype=float)
        return clustered((values - self.yardstick(outcome, budget, list(found))).tolist())

    def diversity(self, method: Method, budget: int) -> Estimate | None:
        """How varied the finished pictures of a search are: 1 = as plain seeds."""
        shares = [
            each["diversity"] / self.plain_diversity[i]
            for i, each in self.at(method, budget).items()
            if each["diversity"] is not None
        ]
        return clustered(shares) if shares else None

    def seconds(self, records: Iterable[Mapping[str, Any]]) -> list[float]:
        """Mean processor seconds per 100 NFE of every part."""
        spent = [[100 * each / r["nfe"] for each in r["seconds"]] for r in records if "seconds" in r]
        return np.mean(spent, axis=0).tolist() if spent else [math.nan] * len(PARTS)


def efficiencies(found: Found, outcome: str, title: str) -> Iterator[str]:
    """The table of efficiency by one outcome."""
    yield from (f"**{title}**: NFE that best-of-N needs for the same mean, over the budget.", "")
    yield from header("method", "prompts", *(f"{budget} NFE" for budget in BUDGETS), "all", "all, own seeds")
    groups = [*([budget] for budget in BUDGETS), list(BUDGETS)]
    for number, name in enumerate(yardsticks()):
        for lucky, which in ((False, name), (True, f"{name}, with the searches' own seeds")):
            cells = [found.of_sampler(number, outcome, budgets, lucky) for budgets in groups]
            yield f"| {which} | {len(found.prompts)} | {' | '.join(cells)} | |"
    for method in found.methods:
        cells = [found.efficiency(method, outcome, budgets) for budgets in groups]
        cells.append(found.efficiency(method, outcome, BUDGETS, own=True))
        yield f"| {method.name} | {found.count(method)} | {' | '.join(cells)} |"
    yield ""


def charges(found: Found, outcome: str, title: str) -> Iterator[str]:
    """The table of efficiency by one outcome with looks charged as on real models."""
    yield from (f"**With looks charged, {title}**: one factor for all budgets, by what a picture costs in NFE.", "")
    yield from header("method", "pictures for 100 NFE", *(f"{name}: {cost:g}" for name, cost in LOOK_COSTS.items()))
    for method in found.methods:
        pictures = found.pictures(method)
        if pictures is not None:
            cells = [found.charged(method, outcome, cost) for cost in LOOK_COSTS.values()]
            yield f"| {method.name} | {100 * pictures:.0f} | {' | '.join(cells)} |"
    yield ""


def details(found: Found, budget: int) -> Iterator[str]:
    """All that was measured at one budget."""
    yield from (f"**{budget} NFE** (differences are from best-of-N with the better sampler, paired):", "")
    yield from header(
        "method", "prompts", "searched score", "difference", "held-out score", "difference", "passes, %", "diversity",
        "pictures", "NFE", *(f"{part}, s" for part in PARTS),
    )  # fmt: skip
    for number, name in enumerate(yardsticks()):
        rows = {outcome: curves[number][budget // STEPS - 1].tolist() for outcome, curves in found.curves.items()}
        seconds = [each * budget / 100 for each in found.seconds(found.pools[name].values())]
        cells = [
            name, len(found.prompts), shown(clustered(rows["score"])), "",
            shown(clustered(rows["held_out"]), sign=False), "", shown(clustered(rows["passes"]), 100, 1, sign=False),
            f"{np.mean([r['diversity'] for r in found.pools[name].values()]) / found.plain_diversity.mean():.2f}",
            budget // STEPS, budget, *(f"{each:.2f}" for each in seconds),
        ]  # fmt: skip
        yield f"| {' | '.join(map(str, cells))} |"
    for method in found.methods:
        records = list(found.at(method, budget).values())
        if records:
            spread = found.diversity(method, budget)
            seconds = [each * budget / 100 for each in found.seconds(records)]
            cells = [
                method.name, len(records), shown(clustered([r["score"] for r in records])),
                shown(found.less_best_of_n(method, "score", budget)),
                shown(clustered([r["held_out"] for r in records]), sign=False),
                shown(found.less_best_of_n(method, "held_out", budget)),
                shown(rated([r["held_out"] == 1.0 for r in records]), 100, 1, sign=False),
                "-" if spread is None else shown(spread, sign=False),
                f"{np.mean([r['candidates'] for r in records]):.1f}",
                f"{np.mean([r['nfe'] for r in records]):.0f}", *(f"{each:.2f}" for each in seconds),
            ]  # fmt: skip
            yield f"| {' | '.join(map(str, cells))} |"
    yield ""


def text_of(family: str, found: Found) -> str:
    """The tables of one model as Markdown."""
    lines = [
        f"{family}: {len(found.prompts)} prompts, or as many as a row says; {STEPS} steps, CFG {CFG:g}, euler unless "
        "said otherwise; searched score = CLIPScore + classifier, held-out score = exact judge (share of clauses met); "
        "95 % intervals.",
        "",
        *efficiencies(found, "held_out", "Efficiency by the held-out score"),
        *efficiencies(found, "score", "Efficiency by the searched score"),
        *charges(found, "held_out", "held-out score"),
        *charges(found, "score", "searched score"),
        *(line for budget in BUDGETS for line in details(found, budget)),
    ]
    return "\n".join(lines)


def panels(found: Found, outcome: str, y: str) -> list[Panel]:
    """One small plot per method beside best-of-N; the band is that of the paired difference."""
    made = []
    everywhere = list(range(len(found.prompts)))
    for method in found.methods:
        plain: list[Point] = []
        line: list[Point] = []
        for budget in BUDGETS:
            middle = float(found.yardstick(outcome, budget, everywhere).mean())
            plain.append((budget, (middle, middle, middle)))
            if found.at(method, budget):
                less = found.less_best_of_n(method, outcome, budget)
                line.append((budget, (middle + less[0], middle + less[1], middle + less[2])))
        made.append(Panel(method.name, y, {"best of N, better sampler": plain, "method": line}))
    return made


def write(family: str, chosen: Sequence[Method]) -> None:
    """Print and write the tables and plots of what is there for one model."""
    found = Found(read(results_file(family)), chosen)
    if not found.prompts:
        print(f"{family}: no prompt is finished yet")
        return
    text = text_of(family, found)
    (RESULTS / f"equal_nfe_{family}.md").write_text(text, encoding="utf-8")
    print(text, flush=True)
    if found.methods:
        for outcome, y in (("score", "searched score"), ("held_out", "held-out score")):
            save_panels(RESULTS / f"equal_nfe_{family}_{outcome}.png", panels(found, outcome, y), "NFE", columns=5)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="run.py bench equal_nfe", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    every = methods(SAMPLERS)
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=FAMILIES)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--methods", nargs="+", default=[], choices=list(every), help="default: all")
    parser.add_argument("--budgets", nargs="+", type=int, default=list(BUDGETS), choices=BUDGETS)
    parser.add_argument("--samplers", nargs="+", default=list(SAMPLERS[:1]), choices=SAMPLERS)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument(
        "--joined", type=int, default=1, help="searches side by side in a process; above 1: faster, without seconds"
    )
    parser.add_argument("--report", action="store_true", help="write tables and plots of what is there already")
    parser.add_argument("--worker", default="", help="I/P: do every P-th task from I (used by the program itself)")
    options = parser.parse_args()
    chosen = [every[name] for name in options.methods or methods(options.samplers)]
    RESULTS.mkdir(exist_ok=True)
    done = {(family, record_key(r)) for family in options.families for r in read(results_file(family))}
    wanted = tasks(options.families, unseen_prompts(options.prompts), chosen, options.budgets)
    left = [task for task in wanted if (task.family, task.key) not in done]
    if options.worker:
        index, total = map(int, options.worker.split("/"))
        mine, refused = iter(left[index::total]), set[tuple[str, str]]()
        workers = [Worker(joined=options.joined > 1) for _ in range(options.joined)]
        side_by_side([partial(worker.work, mine, refused) for worker in workers])
        return
    if left and not options.report:
        in_processes(options.processes, "equal_nfe", len(left))
    for family in options.families:
        write(family, list(every.values()))


if __name__ == "__main__":
    main()
