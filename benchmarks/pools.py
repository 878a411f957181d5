"""Pools of candidates of the demo world: what every verifier says of each, and its features, kept on disk."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from ..demo import scenes
from ..demo.paths import CLASSIFIER, CLIP
from ..search import Budget, Candidates, Evaluation, Watcher, algorithm, run
from ..search.judging import Parts
from ..verifiers.feature_sources import load_features
from .pass_rate import CFG, RESULTS, ROOT, SEARCH_STEPS, read

CANDIDATES = 64
JUDGE = "Exact Judge"
CLASSIFIER_FEATURES, CLIP_FEATURES, PIXELS = "classifier", "CLIP", "pixels"
#: (kind, prompt, seed) of one search.
Task = tuple[str, str, int]


@dataclass(frozen=True)
class Pool:
    """The candidates of one finished search: what every verifier says of each, and their features [64, D] by source."""

    kind: str
    prompt: str
    seed: int
    parts: list[Parts]
    features: dict[str, Tensor]


def results_file(family: str) -> Path:
    """Where the raw scores of a model are."""
    return RESULTS / f"hacking_{family}.jsonl"


def features_file(family: str, task: Task) -> Path:
    """Where the features of one search's candidates are; too many for a repository, and quickly made again."""
    kind, prompt, seed = task
    return ROOT / "output" / "benchmarks" / f"hacking_{family}" / f"{kind} {prompt} {seed}.safetensors"


def read_pools(family: str) -> dict[Task, Pool]:
    """All searches whose scores and features are there."""
    from safetensors.torch import load_file

    found = {}
    for record in read(results_file(family)):
        task = (record["kind"], record["prompt"], record["seed"])
        path = features_file(family, task)
        if path.exists():
            names, rows = list(record["parts"]), zip(*record["parts"].values(), strict=True)
            parts = [dict(zip(names, row, strict=True)) for row in rows]
            found[task] = Pool(*task, parts, {name: each.float() for name, each in load_file(path).items()})
    return found


@cache
def sources() -> dict[str, Callable[[Tensor], Tensor]]:
    """What turns pixels [B, 3, 64, 64] in 0..1 into features [B, D]: two networks, and means of 8 x 8 pixels, which no
    verifier looks at."""
    clip = load_features(str(CLIP / "model.safetensors")).features
    return {
        CLASSIFIER_FEATURES: load_features(str(CLASSIFIER)).features,
        CLIP_FEATURES: lambda pixels: nn.functional.normalize(clip(pixels), dim=1),
        PIXELS: lambda pixels: nn.functional.avg_pool2d(pixels, 8).flatten(1),
    }


def features_of(images: Tensor) -> dict[str, Tensor]:
    """Features [B, D] of images [B, 64, 64, 3] by every source."""
    parts = images.movedim(-1, 1).float().split(64)
    with torch.no_grad():
        return {name: torch.cat([source(part) for part in parts]) for name, source in sources().items()}


def true_features(prompts: Sequence[str], each: int, seed: int) -> dict[str, Tensor]:
    """Features of `each` true pictures of every prompt, drawn as the training pictures were."""
    rng = random.Random(seed)
    drawn = [scenes.layout(scenes.parse(prompt), rng) for prompt in prompts for _ in range(each)]
    return features_of(scenes.render(drawn))


class _Seen(Watcher):
    """Keeps the images of every candidate, in order."""

    def __init__(self) -> None:
        self.images: list[Tensor] = []

    def evaluated(self, evaluation: Evaluation, images: Tensor, best: bool) -> None:
        """See search.Watcher."""
        self.images.append(images)


class Worker:
    """Renders pools in one process. The search is led by CLIPScore + classifier, which changes no candidate of it."""

    def __init__(self, family: str) -> None:
        from ..load_pack import import_host

        import_host()
        torch.set_num_threads(1)
        torch.set_grad_enabled(False)
        from ..nodes.demo_world import load_demo_world
        from ..verifiers.demo_set import demo_ensemble, demo_judge
        from ..verifiers.ensemble import VerifierEnsemble
        from ..verifiers.self_supervised import load_self_supervised

        members = [member.verifier for member in demo_ensemble().members]
        cosine = load_self_supervised(str(CLIP / "model.safetensors"))
        self.family, self.world, self.judge = family, load_demo_world(family), demo_judge()
        self.verifier = VerifierEnsemble([*members, cosine], weights=[*(1.0 for _ in members), 0.0])

    def work(self, tasks: Iterable[Task]) -> None:
        """Do searches; keep their features, then append their scores."""
        from safetensors.torch import save_file

        for kind, prompt, seed in tasks:
            seen = _Seen()
            report = run(
                algorithm("random"), self.world.sampler(prompt, SEARCH_STEPS, CFG), self.verifier,
                Budget(candidates=CANDIDATES), candidates=Candidates.of_seed(seed), prompt=prompt, seed=seed,
                held_out=self.judge, batch=16, watcher=seen,
            )  # fmt: skip
            path = features_file(self.family, (kind, prompt, seed))
            path.parent.mkdir(parents=True, exist_ok=True)
            halves = {name: rows.half() for name, rows in features_of(torch.cat(seen.images)).items()}
            save_file(halves, path)
            rows = [{**e.parts, **e.held_out} for e in report.finished]
            parts = {name: [round(row[name], 5) for row in rows] for name in rows[0]}
            record = {"kind": kind, "prompt": prompt, "seed": seed, "parts": parts}
            with results_file(self.family).open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
