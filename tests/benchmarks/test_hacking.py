"""The set-level part of the hacking benchmark."""

import numpy as np
import torch

from pack.benchmarks.hacking import AT_ONCE, demo_tasks, distinct, oracle_picks, order
from pack.benchmarks.pools import CANDIDATES, CLASSIFIER_FEATURES, JUDGE, Pool
from pack.demo.measure import frozen_prompts
from pack.verifiers.fid_statistics import frechet_distance, statistics_of


def pools(count: int) -> list[Pool]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for seed in range(count):
        features = {CLASSIFIER_FEATURES: torch.randn(CANDIDATES, 3, generator=generator)}
        made.append(Pool("class", "a red circle", seed, [{JUDGE: 0.0}] * CANDIDATES, features))
    return made


def test_the_oracle_takes_what_lowers_fid_most_of_the_set_so_far() -> None:
    reference = statistics_of(torch.randn(500, 3, generator=torch.Generator().manual_seed(1)))
    made, count = pools(12), 8
    found = oracle_picks(made, reference, count)
    assert all(place in order(pool)[:count] for place, pool in zip(found, made, strict=True))
    for number in range(2, len(made)):  # FID is defined for two pictures and more
        before = [pool.features[CLASSIFIER_FEATURES][i] for pool, i in zip(made[:number], found, strict=False)]
        first = order(made[number])[:count]
        candidates = made[number].features[CLASSIFIER_FEATURES][first]
        distances = [frechet_distance(statistics_of(torch.stack([*before, one])), reference) for one in candidates]
        assert found[number] == first[distances.index(min(distances))]


def test_every_class_and_prompt_is_searched_once_for_each_of_its_seeds_and_a_short_run_has_both() -> None:
    prompts = frozen_prompts()[:60]
    tasks = demo_tasks(prompts, repeats=2)
    assert len(tasks) == len(set(tasks)) == 2 * 24 + 60
    first = tasks[: 24 + AT_ONCE]
    assert [kind for kind, _, _ in first] == ["class"] * 24 + ["prompt"] * AT_ONCE


def test_a_candidate_that_is_recorded_twice_counts_once() -> None:
    rewards = np.array([[3.0, 1.0, 2.0], [1.0, 1.0, 1.0], [3.0, 1.0, 2.0], [3.0, 1.0, 0.0]])
    assert [each["pick_score"] for each in distinct(rewards)] == [2.0, 1.0, 0.0]
