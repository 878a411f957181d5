"""Spending: limits on seconds, the pace that they are planned by, and what ends a search."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
from torch import Tensor

from pack.search import ALGORITHMS, Budget, algorithm
from pack.search.curves import curve_of
from pack.search.halving_plan import halving_plan
from pack.search.types import Meter, Row
from pack.tests.search.worlds import Clock, Counting, Recorded, Timed, columns, search

FEW = pytest.mark.parametrize("name", ["random", "zero_order", "paths"])
EVERY = pytest.mark.parametrize("name", ALGORITHMS)


@FEW
@pytest.mark.parametrize("seconds", [1.0, 17.0, 60.0, 200.0])
@pytest.mark.parametrize("base, each, load", [(0.05, 0.1, 0.0), (0.5, 0.01, 40.0), (0.0, 1.0, 500.0)])
def test_the_seconds_budget_holds_but_for_one_micro_batch(
    name: str, seconds: float, base: float, each: float, load: float
) -> None:
    clock = Clock()
    sampler = Timed(clock, base, each, load=load)
    begin = clock.now
    report = search(name, sampler, Budget(seconds=seconds), batch=8, clock=clock.monotonic)
    wall = clock.now - begin - load
    one_row = 6 * (base + each) + 0.3
    micro_batch = sampler.longest + 0.3 * sampler.largest
    assert report.stopped == {"seconds": seconds} and report.best is not None
    assert report.load_seconds == pytest.approx(load) and report.seconds == pytest.approx(wall)
    # before anything is finished an image must be finished all the same
    assert wall <= max(seconds + micro_batch, (2 if name == "paths" else 1) * (one_row + micro_batch)) + 1e-9
    assert all(a.seconds <= b.seconds for a, b in zip(report.evaluations, report.evaluations[1:], strict=False))


@EVERY
@pytest.mark.parametrize("budget", [Budget(seconds=30), Budget(seconds=90), Budget(seconds=60, nfe=2000)], ids=str)
def test_seconds_are_spent_on_what_is_finished(name: str, budget: Budget) -> None:
    clock = Clock()
    begin = clock.now
    sampler = Timed(clock, 0.0, 0.14, steps=20)  # 3 seconds for an image
    report = search(name, sampler, budget, batch=4, clock=clock.monotonic)
    wall, last = clock.now - begin, max(evaluation.seconds for evaluation in report.finished)
    assert last > 0.8 * budget.seconds and wall <= budget.seconds + 4 * 3.1
    assert len(report.finished) >= 2


@EVERY
@pytest.mark.parametrize(
    ("slow", "seconds"),
    [({"first_look": 10.0}, 60.0), ({"warm": 20.0}, 60.0), ({"look": 1.0}, 60.0), ({"look": 4.0}, 100.0)],
    ids=str,
)
def test_what_is_slow_once_or_always_is_found_out_and_the_time_is_used(
    name: str, slow: dict[str, float], seconds: float
) -> None:
    clock = Clock()
    begin = clock.now
    sampler = Timed(clock, 0.0, 0.05, **{"look": 0.04, **slow}, steps=20)  # 1 second for an image
    report = search(name, sampler, Budget(seconds=seconds), batch=4, clock=clock.monotonic)
    wall, last = clock.now - begin, max(evaluation.seconds for evaluation in report.finished)
    assert last > 0.8 * seconds and wall <= seconds + 4 * (1 + sampler.look)
    assert len(report.finished) > 1
    looks = len(report.evaluations) - len(report.finished)
    assert looks > 10 or name not in ("smc", "beam", "rollover", "depth_first", "lidar", "two_fidelity", "guided") or (
        sampler.look > 1
    )


def test_pruned_search_plans_for_what_the_seconds_pay_for() -> None:
    clock, curve = Clock(), ((0.2, 0.8), (0.4, 0.95))
    recorded = Recorded("pruned", curve=curve)
    sampler = Timed(clock, 0.0, 0.15, steps=20)  # 3.3 seconds for an image, of which decode and score are 2 NFE
    report = search(recorded.algorithm, sampler, Budget(seconds=66.3), batch=4, clock=clock.monotonic)
    look = 0.3 * 20 / 3.3  # in steps of a candidate
    plan = halving_plan(curve_of(curve), 20, round((66.3 - 3.6) / 3.3 * 20), round(look, 2))
    begun = recorded.requests[3]  # after the user's own, looked at on its way
    assert [len(each.rows) for each in recorded.requests[:3]] == [1, 1, 1]
    assert len(begun.rows) == plan.first > 19
    assert len(report.finished) >= 1 + plan.cuts[-1][1]


def test_looks_are_weighed_where_time_ends_the_search_and_not_where_model_calls_do() -> None:
    looks = []
    for budget in (Budget(nfe=800, seconds=1e6), Budget(seconds=60)):  # 40 images in both
        clock = Clock()
        sampler = Timed(clock, 0.0, 0.05, 0.5, steps=20)  # a look takes as long as 10 model calls
        report = search(algorithm("pruned", curve="FLUX.1-dev, ImageReward"), sampler, budget, clock=clock.monotonic)
        looks.append(len(report.evaluations) - len(report.finished))
    assert looks[0] > 40 > 2 * looks[1]


class Shrinking(Timed):
    """Has smaller latents, as far as the clock goes."""

    def small_refusal(self, shrink: int) -> str | None:
        return None


@pytest.mark.parametrize("shrink", [2, 4])
@pytest.mark.parametrize("effort", [0.2, 1.0])
def test_small_scouts_are_many_where_they_save_time(shrink: int, effort: float) -> None:
    scouts = []
    for factor in (1.0, shrink):  # one whose small rows are no faster, and one whose are
        clock = Clock()
        sampler = Shrinking(clock, 0.0, 0.05, 0.02, steps=20)
        sampler.power = 2.0 if factor > 1 else 0.0
        two_fidelity = algorithm("two_fidelity", shrink=shrink, effort=effort)
        report = search(two_fidelity, sampler, Budget(seconds=60), batch=4, clock=clock.monotonic)
        assert report.seconds > 55 and len(report.finished) > 1
        scouts.append(sum(evaluation.scout for evaluation in report.evaluations))
    assert scouts[1] > 1.5 * scouts[0] and scouts[1] > 100


@pytest.mark.parametrize("name", ["lidar", "two_fidelity", "pruned"])
def test_a_limit_on_seconds_that_is_never_reached_decides_nothing_beside_one_on_candidates(name: str) -> None:
    ledgers = []
    for each in (0.05, 0.06):
        clock = Clock()
        sampler = Timed(clock, 0.0, each, 0.8 * each, steps=20)
        report = search(name, sampler, Budget(candidates=12, seconds=1000), batch=4, clock=clock.monotonic)
        assert report.stopped == {"candidates": 12} and report.nfe < 3 * 12 * 20
        ledgers.append(columns(report.evaluations))
    assert ledgers[0] == ledgers[1]


def test_a_seconds_budget_grows_its_micro_batch_and_shrinks_it_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    sampler = Timed(clock, 0.0, 1.0, load=1000.0)
    sizes = []
    original = sampler.advance

    def advance(rows: Any, sigmas: Any, meter: Meter, keep: Any) -> list[Row]:
        sizes.append(len(rows))
        return original(rows, sigmas, meter, keep)

    monkeypatch.setattr(sampler, "advance", advance)
    report = search("random", sampler, Budget(seconds=100), batch=8, clock=clock.monotonic)
    assert sizes[0] == 1 and sizes[1] == 8  # loading does not make the second micro-batch small
    assert report.seconds <= 100 + 6.3


def test_a_clock_too_coarse_to_see_a_forward_is_no_division_by_zero() -> None:
    class Coarse(Clock):
        ticks = 0

        def monotonic(self) -> float:
            self.ticks += 1
            return 1000.0 + self.ticks // 200  # several micro-batches see no time pass

    report = search("random", Counting(), Budget(seconds=3), clock=Coarse().monotonic)
    assert report.stopped == {"seconds": 3}


def test_the_limit_that_rows_on_their_way_reach_at_the_end_is_the_one_that_is_named() -> None:
    paths = algorithm("paths", paths=3, width=4, forward=0.3, backward=0.79, leg_steps=3)
    report = search(paths, Counting(steps=4, flow=False), Budget(nfe=40, target=0.5))
    assert report.nfe < 40 and report.best is not None and report.best.evaluation.score >= 0.5
    assert report.stopped == {"target": 0.5}


@pytest.mark.parametrize("name", ["random", "smc", "evolution"])
def test_nothing_holds_on_to_the_sampler_when_the_search_is_over(name: str) -> None:
    gc.collect()
    gc.disable()
    try:
        sampler = Counting()
        report, held = search(name, sampler, Budget(nfe=300)), weakref.ref(sampler)
        del sampler
        assert held() is None and report.best is not None
    finally:
        gc.enable()


class Rude:
    """Prepares its input in place."""

    name = "rude"

    def score(self, images: Tensor, prompt: str) -> Tensor:
        return images.mul_(255).round_().mean(dim=(1, 2, 3))


@pytest.mark.parametrize("batch", [1, 3])
def test_a_verifier_that_writes_into_its_images_spoils_no_picture(batch: int) -> None:
    report = search("random", Counting(), Budget(candidates=4), Rude(), batch=batch, top_k=4)
    assert max(float(kept.images.max()) for kept in report.top) <= 1
