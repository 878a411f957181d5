"""Verifier hacking and mode collapse: single verifiers against ensembles as compute grows.

    python run.py bench hacking [--family flow] [--prompts 200] [--repeats 8] [--processes 2]
    python run.py bench hacking --data x0_rewards_flux_sdxl.npz

In the demo world it renders 64 candidates by random search for each frozen prompt, and `--repeats` times for each of
the 24 classes ("a red circle"), and keeps what every verifier says of every candidate (CLIPScore, the demo classifier,
the self-supervised cosine, the exact judge) and its features. All selection is after the fact, on the same candidates,
by the functions that a search itself uses. Three questions are answered:

- what best of N by one verifier is worth to the others, in standard deviations within a prompt, and where it turns;
- whether the winners still vary as true pictures do: precision and recall (Kynkaanniemi et al. 2019, arXiv
  1904.06991), coverage (Naeem et al. 2020, arXiv 2002.09797) and diversity of the winners of a class, or of 10 prompts,
  against pictures drawn by the demo's own renderer;
- what the oracle of FID, which chooses for the set (search/series.py), makes of the same candidates.

With `--data` the first question is asked of recorded rewards of FLUX.1-dev and SDXL instead (see replay.py).

Scores are appended to benchmarks/results/hacking_FAMILY.jsonl as they come, and features are kept under output/, so an
interrupted run goes on where it was. All intervals are 95 %, over prompts or classes; differences are paired.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..demo.measure import frozen_prompts
from ..demo.scenes import CLASSES
from ..search import Budget, Candidates, SearchReport, algorithm, run
from ..search.judging import Parts
from ..search.series import run_series
from ..verifiers import hps, pick_score
from ..verifiers.feature_sources import FeatureSource
from ..verifiers.fid_statistics import Statistics, square_root, statistics_of
from ..verifiers.growing_sets import FrechetSet
from ..verifiers.image_reward import ImageReward
from ..verifiers.oracle_fid import OracleVerifier
from .pass_rate import RESULTS, ROOT
from .plots import Panel, Point, save_panels
from .pools import CANDIDATES, CLASSIFIER_FEATURES, JUDGE, Pool, Task, Worker, read_pools, sources, true_features
from .replay import Played
from .selection import Known, Values, by_prompt, curves, ensembles, looked_at, picks, standardised, turn
from .sets import NEIGHBOUR, coverage, diversity, fid, jackknife, precision_recall
from .statistics import Estimate, clustered

COUNTS, SET_COUNTS, ORDERS = (1, 2, 4, 8, 16, 32, 64), (4, 16, 64), 16
REPLAY_COUNTS, REPLAY_ORDERS = (1, 2, 4, 8, 16, 32, 64, 128), 12  # and all there are
GROUP, FEWEST = 10, 4  # prompts whose winners make one set; sets, or there is no table of them
AT_ONCE = 25  # prompts between two repeats of the classes, so that a short run has some of both
TRUE_OF_CLASS, TRUE_OF_PROMPT = 100, 16  # pictures drawn
REWARDS = {"image_reward": ImageReward.scale, "hps_v2": hps.SCALE, "pick_score": pick_score.SCALE}
PASS, FID, ORACLE = "pass rate", "FID", "Oracle FID"


# ---- what selection does to the scores


@dataclass(frozen=True)
class Selected:
    """What the picks of a selector are worth: {name: [prompts, counts]}."""

    selector: Any
    curve: dict[str, Tensor]

    @property
    def name(self) -> str:
        return str(self.selector.name)

    def held_out(self) -> list[str]:
        """The verifiers that the selector does not go by."""
        return [name for name in self.curve if name not in {*looked_at(self.selector), PASS}]


def worth(parts: Sequence[Parts]) -> dict[str, list[float]]:
    """What each candidate of a prompt is worth: every verifier's score in within-prompt sd, and whether it passes."""
    columns = {name: standardised([each[name] for each in parts]) for name in parts[0]}
    return columns | ({PASS: [float(each[JUDGE] == 1.0) for each in parts]} if JUDGE in parts[0] else {})


def selected(
    selectors: Sequence[Any],
    pools: Sequence[Sequence[Parts]],
    prompts: Sequence[str],
    counts: Sequence[int],
    orders: int,
) -> list[Selected]:
    """Every selector's curves over the same orders of the same candidates; pools of one of `prompts` go together."""
    values: list[Values] = [worth(parts) for parts in pools]
    found = []
    for selector in selectors:
        each = curves(selector, pools, values, counts, orders)
        found.append(Selected(selector, {name: by_prompt(prompts, curve) for name, curve in each.items()}))
    return found


def shown(estimate: Estimate, scale: float = 1.0, digits: int = 2, sign: bool = True) -> str:
    """An estimate with its interval."""
    middle, low, high = (f"{scale * number:{'+' if sign else ''}.{digits}f}" for number in estimate)
    return f"{middle} [{low}, {high}]"


def header(*cells: object) -> list[str]:
    """The first two lines of a Markdown table."""
    return [f"| {' | '.join(map(str, cells))} |", "|---" * len(cells) + "|"]


def gains_table(found: Sequence[Selected], counts: Sequence[int]) -> Iterator[str]:
    """What the best of the largest N is worth to every verifier."""
    names = [name for name in found[0].curve if name != PASS]
    yield f"Best of {counts[-1]}: what every verifier says of the pick, in sd within a prompt from the mean of all its"
    yield "candidates; bold where the selection went by it."
    yield ""
    yield from header("selected by", *names)
    for each in found:
        cells = {name: shown(clustered(each.curve[name][:, -1].tolist())) for name in names}
        held_out = each.held_out()
        marked = [cell if name in held_out else f"**{cell}**" for name, cell in cells.items()]
        yield f"| {each.name} | {' | '.join(marked)} |"


def turns_table(found: Sequence[Selected], counts: Sequence[int]) -> Iterator[str]:
    """Where every held-out score is highest, and how far it falls after that."""
    yield "Where the held-out score turns: the N with its highest mean, in sd within a prompt, and how far the largest"
    yield "N lies below it (that place chosen on the other half of the prompts): it turns if that interval is above 0."
    yield ""
    yield from header("selected by", "held out", "highest at N", "there", f"at N = {counts[-1]}", "fall", "turns")
    for each in found:
        for name in each.held_out():
            curve = each.curve[name]
            turned = turn(curve)
            there, end = (clustered(curve[:, i].tolist()) for i in (turned.at, -1))
            said = "yes" if turned.turned else "no"
            cells = (counts[turned.at], shown(there), shown(end), shown(turned.fall), said)
            yield f"| {each.name} | {name} | {' | '.join(map(str, cells))} |"


def ensembles_table(found: Sequence[Selected], counts: Sequence[int]) -> Iterator[str]:
    """How far an ensemble's pick lies above that of each member alone, for the verifiers that neither looked at."""
    alone = {each.name: each for each in found if len(looked_at(each.selector)) == 1}
    yield f"Ensembles against each member alone at N = {counts[-1]}: difference of the held-out score, in sd (paired)."
    yield ""
    yield from header("ensemble", "held out", "minus that of", "difference")
    for each in found:
        members = sorted(looked_at(each.selector) & alone.keys()) if each.name not in alone else []
        for name in each.held_out():
            for member in members:
                difference = (each.curve[name] - alone[member].curve[name])[:, -1]
                yield f"| {each.name} | {name} | {member} | {shown(clustered(difference.tolist()))} |"


def pass_table(found: Sequence[Selected], counts: Sequence[int], base: str) -> Iterator[str]:
    """The exact judge's pass rate as N grows, and against one selector at the largest N."""
    [other] = [each for each in found if each.name == base]
    yield f"Pass rate by the exact judge in %, and how far it lies from that of {base} at N = {counts[-1]} (paired)."
    yield ""
    yield from header("selected by", *(f"N = {count}" for count in counts), "difference")
    for each in found:
        cells = [shown(clustered(column.tolist()), 100, 1, sign=False) for column in each.curve[PASS].T]
        difference = clustered((each.curve[PASS] - other.curve[PASS])[:, -1].tolist())
        cells.append("-" if each is other else shown(difference, 100, 1))
        yield f"| {each.name} | {' | '.join(cells)} |"


def scores(found: Sequence[Selected], counts: Sequence[int]) -> list[str]:
    """The three tables of what selection does to the scores."""
    return [*gains_table(found, counts), "", *turns_table(found, counts), "", *ensembles_table(found, counts), ""]


def score_panels(found: Sequence[Selected], counts: Sequence[int]) -> list[Panel]:
    """One small plot for each selector: all verifiers' scores of its picks."""
    panels = []
    for each in found:
        lines = {
            name: [(count, clustered(column.tolist())) for count, column in zip(counts, curve.T, strict=True)]
            for name, curve in each.curve.items()
            if name != PASS
        }
        panels.append(Panel(f"by {each.name}".replace(" of ", " of\n", 1), "sd within a prompt", lines))
    return panels


# ---- recorded rewards


def replay_selectors() -> list[Any]:
    """Each reward alone, each pair of them (with the third held out) and all three."""
    known = [Known(name, scale) for name, scale in REWARDS.items()]
    pairs = [each for pair in combinations(known, 2) for each in ensembles(pair)]
    return [*known, *pairs, *ensembles(known)]


def distinct(rewards: np.ndarray) -> list[Parts]:
    """The candidates of one prompt [seeds, rewards], those that are recorded more than once only once."""
    _, first = np.unique(rewards, axis=0, return_index=True)
    return [dict(zip(REWARDS, row, strict=True)) for row in rewards[np.sort(first)].tolist()]


def replay(data: Path) -> str:
    """The tables of recorded rewards; writes a plot for each model."""
    lines = ["# Hacking on recorded rewards: best of N, random orders of the candidates", ""]
    with np.load(data) as file:
        for model in ("flux", "sdxl"):
            final = np.stack([file[f"{model}_{name}"][:, :, -1] for name in REWARDS], axis=-1).astype(float)
            pools = [distinct(prompt) for prompt in final]
            size = min(map(len, pools))
            counts = (*(count for count in REPLAY_COUNTS if count < size), size)
            prompts = [str(number) for number in range(len(pools))]
            found = selected(replay_selectors(), [pool[:size] for pool in pools], prompts, counts, REPLAY_ORDERS)
            lines += [f"## {model}: {len(pools)} prompts, {size} distinct candidates of {final.shape[1]} each", ""]
            lines += scores(found, counts)
            drawn = [each for each in found if len(looked_at(each.selector)) != 2]
            save_panels(RESULTS / f"hacking_replay_{model}.png", score_panels(drawn, counts), "N")
    return "\n".join(lines)


# ---- what selection does to sets


@dataclass(frozen=True)
class Groups:
    """Searches whose winners make a set each, and the features of true pictures of each set by source."""

    name: str
    pools: list[list[Pool]]
    true: list[dict[str, Tensor]]

    def reference(self, source: str) -> Statistics:
        """Statistics of all true pictures."""
        return statistics_of(torch.cat([each[source] for each in self.true]))


def class_groups(pools: Mapping[Task, Pool]) -> Groups:
    """One set for each class: the winners of as many searches as all classes have."""
    of = [[pools[task] for task in sorted(pools) if task[:2] == ("class", f"a {name}")] for name in CLASSES]
    repeats = min(map(len, of))
    true = [true_features([f"a {name}"], TRUE_OF_CLASS, seed) for seed, name in enumerate(CLASSES)]
    return Groups(f"24 classes, {repeats} winners each", [group[:repeats] for group in of], true)


def prompt_groups(pools: Mapping[Task, Pool]) -> Groups:
    """One set for every GROUP frozen prompts that are all there: one winner each."""
    there = [pools[task] for task in (("prompt", prompt, 0) for prompt in frozen_prompts()) if task in pools]
    of = [there[start : start + GROUP] for start in range(0, len(there) - GROUP + 1, GROUP)]
    true = [true_features([p.prompt for p in group], TRUE_OF_PROMPT, seed) for seed, group in enumerate(of)]
    return Groups(f"{len(of)} sets of {GROUP} prompts, one winner each", of, true)


def order(pool: Pool) -> list[int]:
    """In which order the candidates of a search come: one of its own, since all prompts have the same seeds, and their
    winners without search would all have grown from one noise."""
    return random.Random(f"{pool.prompt} {pool.seed}").sample(range(len(pool.parts)), len(pool.parts))


def oracle_picks(pools: Sequence[Pool], reference: Statistics, count: int) -> list[int]:
    """Which of its first `count` candidates each search gives to the set, by the oracle of FID, one after the other.

    The driver and the oracle run as ever; only pictures are played back, as the number of the candidate.
    """
    showing: list[Tensor] = []
    source = FeatureSource("played back", nn.Identity(), lambda pixels: showing[-1][pixels[:, 0, 0, 0].long()])
    root = square_root(reference.sigma)
    oracle = OracleVerifier(ORACLE, source, source.features, lambda: FrechetSet(reference, root), -1.0)

    def search_one(_: int, pool: Pool) -> SearchReport:
        showing.append(pool.features[CLASSIFIER_FEATURES][order(pool)])
        played, budget = Played(1, range(len(pool.parts))), Budget(candidates=count)
        return run(algorithm("random"), played, oracle, budget, candidates=Candidates.of_seed(0), batch=count)

    found = []
    for pool, report in zip(pools, run_series(pools, search_one, [oracle]), strict=True):
        assert report.best is not None and report.best.evaluation.candidate is not None
        found.append(order(pool)[report.best.evaluation.candidate])
    return found


def all_winners(groups: Groups, selectors: Sequence[Any]) -> dict[tuple[str, int], list[list[int]]]:
    """The candidate that each selector takes in every search of every group, by (selector, N)."""
    found = {("", 1): [[order(pool)[0] for pool in group] for group in groups.pools]}
    for selector in selectors:
        taken = [[picks(selector, pool.parts, SET_COUNTS, order(pool)) for pool in group] for group in groups.pools]
        for i, count in enumerate(SET_COUNTS):
            found[selector.name, count] = [[each[i] for each in group] for group in taken]
    flat = [pool for group in groups.pools for pool in group]
    reference = groups.reference(CLASSIFIER_FEATURES)
    for count in SET_COUNTS:
        each = iter(oracle_picks(flat, reference, count))
        found[ORACLE, count] = [[next(each) for _ in group] for group in groups.pools]
    return found


@dataclass(frozen=True)
class SetMeasures:
    """What one choice of winners is worth as sets: a number for each group, and FID of any of the groups together."""

    by_group: dict[str, list[float]]
    made: list[Tensor]
    reference: Statistics

    def fid(self, groups: Sequence[int]) -> float:
        """FID of the winners of some groups together."""
        return fid([self.made[i] for i in groups], self.reference)


def measured(groups: Groups, winners: list[list[int]], source: str, reference: Statistics) -> SetMeasures:
    """Measures of winners in the features of a source."""
    made = [
        torch.stack([pool.features[source][i] for pool, i in zip(group, chosen, strict=True)])
        for group, chosen in zip(groups.pools, winners, strict=True)
    ]
    both = [precision_recall(one, true[source]) for one, true in zip(made, groups.true, strict=True)]
    by_group = {
        "precision": [p for p, _ in both],
        "recall": [r for _, r in both],
        "coverage": [coverage(one, true[source]) for one, true in zip(made, groups.true, strict=True)],
        "diversity": [diversity(one) for one in made],
        PASS: [
            sum(pool.parts[i][JUDGE] == 1.0 for pool, i in zip(group, chosen, strict=True)) / len(group)
            for group, chosen in zip(groups.pools, winners, strict=True)
        ],
    }
    return SetMeasures(by_group, made, reference)


def sets_table(groups: Groups, found: Mapping[tuple[str, int], SetMeasures], source: str) -> Iterator[str]:
    """Measures without search, and what search changes about them."""
    base = found["", 1]
    true = diversity_of_true(groups, source)
    yield f"### {groups.name}: features of {source}"
    yield ""
    yield "The first row is the value without search; all others are paired differences to it. Pass rate in %. True"
    yield f"pictures have a diversity of {true:.3f}. FID is of all sets together, at equal numbers (jackknife)."
    yield ""
    names = list(base.by_group)
    yield from header("selected by", "N", *names, FID)
    for (selector, count), each in found.items():
        against = None if each is base else base
        cells = [as_cell(compared(each, against, name), name, sign=each is not base) for name in (*names, FID)]
        yield f"| {selector or 'no search'} | {count} | {' | '.join(cells)} |"


def diversity_of_true(groups: Groups, source: str) -> float:
    """The mean diversity of the true pictures of a group."""
    return sum(diversity(each[source]) for each in groups.true) / len(groups.true)


def set_panels(found: Mapping[tuple[str, int], SetMeasures], source: str) -> list[Panel]:
    """Precision, recall, diversity and FID against N."""
    base = found["", 1]
    panels = []
    for name in ("precision", "recall", "coverage", "diversity", FID, PASS):
        lines: dict[str, list[Point]] = {}
        for (selector, count), each in found.items():
            if each is not base:
                line = lines.setdefault(selector, [(1, compared(base, None, name))])
                line.append((count, compared(each, None, name)))
        panels.append(Panel(f"{name} ({source})", name, lines))
    return panels


def compared(measures: SetMeasures, base: SetMeasures | None, name: str) -> Estimate:
    """One measure with its interval, or its paired difference to that of a base."""
    if name == FID:
        return jackknife(lambda some: measures.fid(some) - (base.fid(some) if base else 0.0), len(measures.made))
    less = base.by_group[name] if base else [0.0] * len(measures.made)
    return clustered([a - b for a, b in zip(measures.by_group[name], less, strict=True)])


def as_cell(estimate: Estimate, name: str, sign: bool) -> str:
    """A measure as the table shows it."""
    return shown(estimate, 100, 1, sign) if name == PASS else shown(estimate, 1, 3, sign)


# ---- the demo world


def demo_selectors() -> list[Any]:
    """Every verifier alone, the ensembles of CLIPScore and the classifier, and the exact judge."""
    from ..verifiers.demo_set import demo_ensemble

    members = [Known(member.name, member.scale) for member in demo_ensemble().members]
    return [*members, Known("Self-Supervised CLIP"), *ensembles(members), Known(JUDGE)]


def demo_tasks(prompts: Sequence[str], repeats: int) -> list[Task]:
    """All searches, prompts and classes in turns."""
    rounds: list[Task] = []
    for number in range(max(repeats, -(-len(prompts) // AT_ONCE))):
        if number < repeats:
            rounds += [("class", f"a {name}", number) for name in CLASSES]
        rounds += [("prompt", prompt, 0) for prompt in prompts[number * AT_ONCE : (number + 1) * AT_ONCE]]
    return rounds


def demo(family: str) -> str:
    """The tables of the demo world; writes its plots."""
    pools, selectors = read_pools(family), demo_selectors()
    lines = [f"# Hacking and mode collapse in the demo world, {family}, random search of up to {CANDIDATES}", ""]
    for kind, title in (("prompt", "frozen prompts"), ("class", "searches for one of the 24 classes")):
        some = [pool for pool in pools.values() if pool.kind == kind]
        found = selected(selectors, [pool.parts for pool in some], [pool.prompt for pool in some], COUNTS, ORDERS)
        lines += [f"## {len(some)} {title}", "", *pass_table(found, COUNTS, selectors[3].name), ""]
        lines += scores(found, COUNTS)
        save_panels(RESULTS / f"hacking_{family}_{kind}.png", score_panels(found, COUNTS), "N")
    lines += ["## Sets of winners", ""]
    for groups, name in ((class_groups(pools), "class"), (prompt_groups(pools), "prompt")):
        if len(groups.pools) < FEWEST or min(map(len, groups.pools)) <= NEIGHBOUR:
            lines += [f"{groups.name}: too few; run on.", ""]
            continue
        winners = all_winners(groups, selectors)
        for source in sources():
            reference = groups.reference(source)
            measures = {key: measured(groups, each, source, reference) for key, each in winners.items()}
            lines += [*sets_table(groups, measures, source), ""]
            if source == CLASSIFIER_FEATURES:
                panels = set_panels(measures, source)
                save_panels(RESULTS / f"hacking_{family}_{name}_sets.png", panels, "N", band=False)
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="run.py bench hacking", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="an .npz file with recorded rewards: of these instead")
    parser.add_argument("--family", default="flow")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=8, help="searches for each of the 24 classes")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--tables", action="store_true", help="only the tables of what is there")
    parser.add_argument("--worker", default="", help="I/P: do every P-th task from I (used by the program itself)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    RESULTS.mkdir(exist_ok=True)
    if arguments.data:
        text, name = replay(arguments.data), "hacking_replay"
    else:
        done = read_pools(arguments.family)
        wanted = demo_tasks(frozen_prompts()[: arguments.prompts], arguments.repeats)
        if arguments.worker:
            index, total = map(int, arguments.worker.split("/"))
            Worker(arguments.family).work(task for task in wanted[index::total] if task not in done)
            return
        tasks = [task for task in wanted if task not in done]
        if tasks and not arguments.tables:
            in_processes(arguments.processes, "hacking", len(tasks))
        text, name = demo(arguments.family), f"hacking_{arguments.family}"
    (RESULTS / f"{name}.md").write_text(text + "\n", encoding="utf-8")
    print(text)


def in_processes(count: int, name: str, tasks: int) -> None:
    """Start this command `count` times with its part of the tasks each; SystemExit when one fails."""
    print(f"{tasks} tasks in {count} processes", flush=True)
    command = [sys.executable, str(ROOT / "load_pack.py"), f"pack.benchmarks.{name}", *sys.argv[1:]]
    workers = [subprocess.Popen([*command, "--worker", f"{i}/{count}"]) for i in range(count)]
    failed = [worker.returncode for worker in workers if worker.wait()]
    if failed:
        raise SystemExit(f"{len(failed)} of {len(workers)} processes failed; run again to go on")


if __name__ == "__main__":
    main()
