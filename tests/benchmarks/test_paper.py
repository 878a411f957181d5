"""What the curves of the paper are read from."""

from typing import Any

import pytest
import torch

from pack.benchmarks.paper import (
    FEWEST,
    LARGE,
    ONE_SEED,
    RANDOM,
    RANDOM_LARGE,
    RUNS,
    SMALL,
    UNSEARCHED,
    Picked,
    Results,
    best_within,
    flops,
    jobs,
    leads,
    step_flops,
    tasks,
)
from pack.demo.scenes import CLASSES

FOUND = [[20, 0.1, 0.5, 7], [40, 0.0, 1.0, 8], [60, 0.3, 0.5, 9], [80, 0.3, 1.0, 10], [100, 0.2, 0.0, 11]]


@pytest.mark.parametrize("column", [1, 2])
def test_the_leads_are_all_that_the_best_within_any_budget_needs(column: int) -> None:
    assert leads(FOUND) == FOUND[:3]
    assert best_within(FOUND, 19, column) is None
    for nfe in range(20, 120, 10):
        assert best_within(leads(FOUND), nfe, column) == best_within(FOUND, nfe, column)


def record(again: dict[str, Any]) -> dict[str, Any]:
    return {"leads": leads(FOUND), "seconds": 0.5, "again": again}


def test_a_winner_is_judged_as_it_was_rendered_at_the_end() -> None:
    again = {"40": {"7": [0.2, 1.0], "9": [0.4, 0.0]}}
    results = Results("text", {RANDOM.key: {("a red circle", 0): record(again), ("a blue cross", 0): record({})}})
    picked = results.of(RANDOM, 40, final=40)
    assert picked.of == {("a red circle", 0): (0.2, 1.0), ("a blue cross", 0): (0.1, 0.5)}
    assert results.of(RANDOM, 60).of["a red circle", 0] == (0.3, 0.5)
    assert results.of(RANDOM, 60, column=2).of["a red circle", 0] == (0.0, 1.0)
    assert results.of(RANDOM, 10).of == {}
    assert picked.passes()[0] == 0.5
    assert results.of(RANDOM, 60).gain(picked)[0] == -0.5
    assert results.seconds(RANDOM) == 0.5


def test_a_table_compares_only_what_all_its_methods_were_run_for() -> None:
    def searches(first: int, last: int) -> dict[tuple[str, int], Any]:
        return {(str(number), 0): record({}) for number in range(first, last)}

    few = UNSEARCHED[10]
    runs = {RANDOM.key: searches(0, 30), RANDOM_LARGE.key: searches(15, 40), few.key: searches(0, FEWEST - 1)}
    both = Results("text", runs).common([RANDOM, RANDOM_LARGE, few])
    assert both.runs[RANDOM.key].keys() == both.runs[RANDOM_LARGE.key].keys() == searches(15, 30).keys()
    assert not both.runs[few.key]


def test_several_searches_for_a_class_are_one_unit_of_its_interval() -> None:
    picked = Picked({("a", 0): (1.0, 1.0), ("a", 1): (3.0, 0.0), ("b", 0): (5.0, 1.0), ("b", 1): (5.0, 1.0)})
    spread = 1.959964 * 0.25  # the standard error of 0.5 and 1
    assert picked.passes() == pytest.approx((0.75, 0.75 - spread, 0.75 + spread))
    assert picked.scores()[0] == 3.5
    assert not Picked({("a", 0): (1.0, 1.0), ("a", 1): (3.0, 0.0)})  # no interval from one prompt


def test_prompts_and_classes_come_in_turns_and_each_once() -> None:
    made = jobs(["one", "two"], repeats=2)
    assert [kind for kind, _, _ in made[:4]] == ["text", "class", "text", "class"]
    assert len(made) == len(set(made)) == 2 + 2 * len(CLASSES)
    assert len({run.key for run in RUNS}) == len(RUNS)
    assert len(set(tasks(made))) == len(made) * len(RUNS)


def test_all_searches_but_the_first_of_all_have_seeds_of_their_own() -> None:
    made = jobs([str(i) for i in range(2 * ONE_SEED)], repeats=3)
    for kind, first in (("text", ONE_SEED), ("class", len(CLASSES))):
        seeds = [seed for each, _, seed in made if each == kind]
        assert set(seeds[:first]) == {0}
        assert len(set(seeds[first:])) == len(seeds) - first > 0


def test_flops_are_two_for_each_product_and_grow_with_the_model() -> None:
    assert flops(lambda: torch.ones(3, 4) @ torch.ones(4, 5)) == 2 * 3 * 4 * 5
    # depth 3 and a width half as large again: 1.5 ** 3 = 3.4 for the blocks
    assert 3 < step_flops(LARGE) / step_flops(SMALL) < 4
