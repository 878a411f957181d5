"""The driver: budgets, memory, cancel, errors, and what is kept of a search that ends badly."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pack.search import Budget, SearchError, Watcher, algorithm, driver
from pack.search.report import Ledger
from pack.search.types import Algorithm, Row, finish
from pack.tests.search.worlds import (
    Counting,
    Pairs,
    RankMean,
    Recorded,
    Scorer,
    Seen,
    Veto,
    Videos,
    columns,
    first,
    lines,
    search,
    second,
)

NAMES = pytest.mark.parametrize("name", ["random", "zero_order", "paths"])
CLOCKED = {"seconds"}


class Cancelled(BaseException):
    """Like ComfyUI's InterruptProcessingException."""


def no_memory() -> BaseException:
    return torch.OutOfMemoryError("CUDA out of memory")


# what ends a search


@NAMES
@pytest.mark.parametrize("batch", [3, 8])
def test_rows_behind_the_stop_are_kept_and_marked_and_cannot_win(name: str, batch: int) -> None:
    runs = [(seed, search(name, Counting(), Budget(candidates=32), first_seed=seed, batch=1)) for seed in range(3)]
    seen_behind = 0
    for seed, target, finished in [(s, score, r.finished) for s, r in runs for _, score in r.curve()]:
        budget = Budget(candidates=32, target=target)
        report = search(name, Counting(), budget, first_seed=seed, batch=batch, top_k=50)
        behind = [e for e in report.evaluations if e.after_stop]
        seen_behind += len(behind)
        hit = next(e for e in finished if e.score >= target)
        assert report.stopped["target"] == target
        assert report.best is not None and report.best.evaluation.recipe == hit.recipe
        assert [e.id for e in behind] == list(range(hit.id + 1, hit.id + 1 + len(behind))) and len(behind) < batch
        assert all(not e.can_win and e.verdict == "judged" for e in behind)
        assert not {k.evaluation.id for k in report.top} & {e.id for e in behind}
        assert all(score <= report.best.evaluation.score for _, score in report.curve())
    assert seen_behind > 0


def test_a_better_image_behind_the_stop_does_not_win() -> None:
    report = search("random", Counting(), Budget(target=-5.0, nfe=600), batch=8)
    behind = [e for e in report.evaluations if e.after_stop]
    assert report.stopped == {"target": -5.0} and report.best is not None
    assert len(behind) == 7 and max(e.score for e in behind) > report.best.evaluation.score


@pytest.mark.parametrize("name", ["random", "zero_order"])
def test_a_target_that_the_users_own_candidate_reaches_costs_that_candidate_alone(name: str) -> None:
    report = search(name, Counting(batch=16), Budget(candidates=16, target=-5.0))
    assert report.stopped == {"target": -5.0} and report.nfe == 6
    assert [e.seed for e in report.evaluations] == [7]


@NAMES
@pytest.mark.parametrize("batch", [0, 8])
def test_patience_renders_nothing_that_cannot_matter(name: str, batch: int) -> None:
    for patience in (1, 2, 5):
        expected = search(name, Counting(), Budget(candidates=64, patience=patience), batch=1)
        report = search(name, Counting(batch=16), Budget(candidates=64, patience=patience), batch=batch)
        assert report.stopped == expected.stopped == {"patience": patience}
        assert columns(report.evaluations) == columns(expected.evaluations) and report.nfe == expected.nfe


def test_an_automatic_target_search_ends_at_the_image_that_reaches_it() -> None:
    scores = [e.score for e in search("random", Counting(), Budget(candidates=32), batch=1).finished]
    target = max(scores)
    report = search("random", Counting(batch=16), Budget(candidates=32, target=target))
    assert report.stopped == {"target": target} and report.nfe == 6 * (scores.index(target) + 1)


def test_the_first_image_comes_before_a_second_one_is_begun() -> None:
    sampler, spent = Counting(batch=16), []

    class Looking(Watcher):
        def evaluated(self, evaluation: Any, images: Tensor, best: bool) -> None:
            spent.append(sampler.rows)

    search("random", sampler, Budget(candidates=12), watcher=Looking())
    assert spent[0] == 6 and sampler.largest == 11
    spent.clear()
    sampler.rows = 0
    search("random", sampler, Budget(candidates=12), watcher=Looking(), batch=4)
    assert spent[0] == 24  # a batch size of the user's own is kept


@NAMES
def test_patience_counts_finished_images_without_a_new_best(name: str) -> None:
    flat = Scorer("flat", lambda clean: torch.zeros(len(clean)))
    report = search(name, Counting(), Budget(patience=6), flat, batch=4)
    assert len([e for e in report.finished if not e.after_stop]) == 7
    assert report.best is not None and report.best.evaluation.candidate == 0


@NAMES
def test_images_that_cannot_be_judged_use_up_patience(name: str) -> None:
    blind = Scorer("blind", lambda clean: torch.full((len(clean),), float("nan")))
    sampler = Counting()
    with pytest.raises(SearchError, match="no candidate can win: of 6.*blind could not judge 6"):
        search(name, sampler, Budget(patience=6), blind, batch=1)


@NAMES
def test_all_nan_says_so_and_keeps_the_ledger(name: str, tmp_path: Path) -> None:
    blind = Scorer("blind", lambda clean: torch.full((len(clean),), float("nan")))
    with pytest.raises(SearchError, match=r"no candidate can win: of 6, verifier blind could not judge 6 \(NaN\)"):
        search(name, Counting(), Budget(candidates=6), blind, folder=tmp_path)
    assert sum(line["candidate"] is not None for line in lines(tmp_path)[1:]) == 6


@NAMES
def test_all_vetoed_says_so(name: str) -> None:
    with pytest.raises(SearchError, match="veto could not judge 0 .NaN. and vetoed 6; change .*veto threshold"):
        search(name, Counting(), Budget(candidates=6), Veto(float("inf")))


@NAMES
def test_a_vetoed_candidate_never_wins_however_high_its_other_score(name: str) -> None:
    plain = search(name, Counting(), Budget(nfe=400), held_out=second())
    middle = sorted(e.held_out["second"] for e in plain.finished)[len(plain.finished) // 2]
    report = search(name, Counting(), Budget(nfe=400), Veto(middle), top_k=3)
    free = [e for e in report.finished if e.parts["second"] >= middle]
    assert 0 < len(free) < len(report.finished) and report.best is not None
    assert report.best.evaluation.score == max(e.parts["first"] for e in free)


def test_an_algorithm_that_ends_by_itself_is_a_normal_end() -> None:
    def three(space: Any, plan: Any) -> Any:
        yield from finish(space.fresh(3))

    report = search(Algorithm("three", three), Counting(), Budget(nfe=500))
    assert report.stopped == {"algorithm finished": 1} and len(report.finished) == 3


def test_an_algorithm_that_asks_for_nothing_is_refused_instead_of_hanging() -> None:
    def nothing(space: Any, plan: Any) -> Any:
        while True:
            yield from finish([])

    with pytest.raises(SearchError, match="no rows"):
        search(Algorithm("nothing", nothing), Counting(), Budget(candidates=3))


def test_an_algorithm_cannot_swallow_the_stop() -> None:
    def sloppy(space: Any, plan: Any) -> Any:
        while True:
            try:
                yield from finish(space.fresh(4))
            except Exception:
                continue

    sampler = Counting()
    report = search(Algorithm("sloppy", sloppy), sampler, Budget(nfe=100))
    assert report.stopped == {"nfe": 100} and sampler.rows == 96


def test_a_finished_row_asked_for_again_costs_nothing() -> None:
    replies = []

    def twice(space: Any, plan: Any) -> Any:
        one = yield from finish(space.fresh(2))
        two = yield from finish([one[1], *space.fresh(1), one[0]])
        replies.extend([one, two])

    sampler = Counting()
    report = search(Algorithm("twice", twice), sampler, Budget(nfe=500))
    one, two = replies
    assert sampler.rows == 18 and len(report.evaluations) == 3
    assert [row.id for row in two] == [1, 2, 0] and two[0] == one[1] and two[2] == one[0]


@pytest.mark.parametrize("settings", [{"top_k": 0}, {"batch": -1}])
def test_settings_out_of_range_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(SearchError, match="expected top_k >= 1 and batch_size 0"):
        search("random", Counting(), Budget(candidates=3), **settings)


def test_an_unknown_cost_is_measured_and_the_nfe_budget_holds() -> None:
    class Secret(Counting):
        def cost(self, sigmas: Any) -> None:  # type: ignore[override]
            return None

    for name in ("random", "zero_order", "paths"):
        for nfe in (40, 100, 333) if name == "paths" else (11, 40, 100, 333):
            sampler = Secret(order=2)
            report = search(name, sampler, Budget(nfe=nfe), batch=4)
            assert report.nfe == sampler.rows <= nfe and report.best is not None
        if name != "paths":
            known = search(name, Counting(order=2), Budget(nfe=333), batch=4)
            assert columns(report.finished) == columns(known.finished)
    with pytest.raises(SearchError, match="before one candidate was finished; raise that limit"):
        search("random", Secret(order=2), Budget(nfe=10))


# the pool


def test_a_pooled_score_is_the_one_within_the_final_pool() -> None:
    ensemble = RankMean(first(), second())
    report = search("random", Counting(), Budget(candidates=25), ensemble, top_k=5, batch=4)
    scores = ensemble.combine([e.parts for e in report.finished])
    assert [e.score for e in report.finished] == scores
    order = sorted(range(25), key=lambda i: (-scores[i], i))
    assert [kept.evaluation.id for kept in report.top] == order[:5]
    assert [kept.evaluation.score for kept in report.top] == [scores[i] for i in order[:5]]
    for kept in report.top:
        [again] = Counting().decode([kept.row])
        assert torch.equal(again, kept.images)


def test_a_pooled_score_that_needs_company_does_not_shut_out_the_first_candidates() -> None:
    class Standard(RankMean):
        def combine(self, pool: Any) -> list[float]:  # the standard deviation of one is not a number
            values = torch.tensor([[parts[m.name] for m in self.members] for parts in pool])
            spread = values.std(0) if len(pool) > 1 else float("nan")
            return list(((values - values.mean(0)) / spread).mean(1).tolist())

    ensemble = Standard(first())
    first_won = 0
    for seed in range(12):
        alone = search("random", Counting(), Budget(candidates=4), first_seed=seed)
        report = search("random", Counting(), Budget(candidates=4), ensemble, first_seed=seed)
        assert alone.best is not None and report.best is not None and report.best.evaluation.verdict == "judged"
        assert report.best.evaluation.id == alone.best.evaluation.id
        first_won += report.best.evaluation.id == 0
    assert first_won >= 1


@NAMES
def test_a_held_out_verifier_sees_what_is_finished_and_changes_nothing(name: str) -> None:
    held = second()
    plain = search(name, Counting(), Budget(nfe=300), top_k=3)
    report = search(name, Counting(), Budget(nfe=300), held_out=held, top_k=3)
    assert columns(report.evaluations, drop=["held_out"]) == columns(plain.evaluations, drop=["held_out"])
    assert [k.evaluation.id for k in report.top] == [k.evaluation.id for k in plain.top]
    assert held.images == len(report.finished)
    assert all(math.isfinite(e.held_out["second"]) for e in report.finished)
    assert all(e.held_out == {} for e in report.evaluations if e.candidate is None)
    assert all(e.held_out == {} and "second" not in e.parts for e in plain.evaluations)
    [kept] = [k for k in report.top if k is report.best]
    assert kept.evaluation.held_out["second"] == pytest.approx(float(second().score(kept.images, "")[0]), abs=1e-12)


def test_a_held_out_ensemble_gives_its_parts_and_a_failing_one_is_named() -> None:
    report = search("random", Counting(), Budget(candidates=3), held_out=RankMean(first("a"), second("b")))
    assert all(sorted(e.held_out) == ["a", "b"] for e in report.evaluations)
    held = second("held")
    held.break_at = {1: ValueError("broken"), 2: ValueError("broken")}
    with pytest.raises(SearchError, match="verifier held failed: ValueError: broken"):
        search("random", Counting(), Budget(candidates=3), held_out=held)


# memory


@pytest.mark.parametrize("phase, label", [("denoise", "model"), ("decode", "VAE"), ("verifier", "verifier")])
def test_three_failures_on_one_row_give_one_clear_error(phase: str, label: str, tmp_path: Path) -> None:
    sampler, verifier = Counting(), first()
    where = verifier.break_at if phase == "verifier" else sampler.break_at[phase]
    # two good micro-batches of four first; of the first one an image is decoded by itself, to see what it is
    start = {"denoise": 13, "decode": 4, "verifier": 3}[phase]
    where.update({i: no_memory() for i in range(start, start + 50)})
    with pytest.raises(SearchError, match=f"the {label} ran out of memory on a single candidate, three") as failed:
        search("random", sampler, Budget(candidates=40), verifier, batch=4, folder=tmp_path)
    assert "\n" not in str(failed.value) and "smaller" in str(failed.value)
    assert len(where) == 50 - 5  # 4, 2, 1, 1, 1
    assert len(lines(tmp_path)) == 1 + 8


def test_memory_that_runs_out_halves_the_batch_and_the_note_says_so() -> None:
    sampler = Counting()
    sampler.break_at["denoise"] = {8: no_memory()}
    report = search("random", sampler, Budget(candidates=24), batch=8)
    assert report.notes == ["model: out of memory at NFE 48, batch 8 -> 4"]
    assert report.lost_nfe == 16 and report.nfe == 24 * 6 == sampler.rows - 16 and sampler.freed == 1
    assert report.model_rows == 24 * 6


def test_phases_are_halved_apart() -> None:
    sampler, verifier = Counting(), first()
    verifier.break_at = {1: no_memory(), 2: no_memory()}
    report = search("random", sampler, Budget(candidates=16), verifier, batch=8)
    assert sampler.largest == 8 and [n.split(":")[0] for n in report.notes] == ["verifier", "verifier"]
    assert verifier.calls == 2 + 8 and report.lost_nfe == 0


def test_a_passing_shortage_on_one_row_is_tried_again() -> None:
    sampler = Counting()
    sampler.break_at["denoise"] = {3: no_memory(), 6: MemoryError()}
    report = search("random", sampler, Budget(candidates=3), batch=1)
    assert len(report.finished) == 3 and report.lost_nfe == 3 + 3
    assert any("one candidate" in note for note in report.notes)


def test_an_error_that_is_not_about_memory_is_not_swallowed(tmp_path: Path) -> None:
    sampler = Counting()
    sampler.break_at["denoise"] = {20: RuntimeError("mat1 and mat2 shapes cannot be multiplied")}
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        search("random", sampler, Budget(candidates=30), batch=4, folder=tmp_path)
    assert len(lines(tmp_path)) == 1 + 12 and sampler.freed == 0


# cancel, errors, finish now


def checked_after_the_end(folder: Path, seen: Seen) -> None:
    """The ledger has every evaluation that was recorded, and the watcher was given the best image of them."""
    kept = lines(folder)[1:]
    assert [line["id"] for line in kept] == list(range(len(kept)))
    assert [{k: v for k, v in e.record().items() if k not in CLOCKED} for e in seen.evaluations] == [
        {k: v for k, v in line.items() if k not in CLOCKED} for line in kept[: len(seen.evaluations)]
    ]
    assert len(kept) - len(seen.evaluations) <= 1  # the watcher itself may have raised on the last
    winners = [e for e in seen.evaluations if e.can_win]
    if winners:
        assert seen.best is not None and seen.best[0].score == max(e.score for e in winners)
        assert seen.best[1].shape == (1, 1, 4, 3)


@NAMES
@pytest.mark.parametrize(
    "where, at",
    [
        *(("denoise", at) for at in (1, 2, 5, 6, 7, 13, 30, 44)),
        *(("decode", at) for at in (1, 2, 3, 5)),
        *(("verifier", at) for at in (1, 2, 3, 5)),
        *(("watcher", at) for at in (1, 2, 9, 17)),
    ],
)
@pytest.mark.parametrize("batch", [1, 4])
def test_a_cancel_passes_through_unchanged_and_nothing_found_is_lost(
    name: str, where: str, at: int, batch: int, tmp_path: Path
) -> None:
    cancel = Cancelled("by the user")

    class Interrupting(Seen):
        def evaluated(self, *args: Any) -> None:
            if where == "watcher" and len(self.evaluations) + 1 == at:
                raise cancel
            super().evaluated(*args)

    sampler, verifier, seen, recorded = Counting(), first(), Interrupting(), Recorded(name)
    if where in sampler.break_at:
        sampler.break_at[where][at] = cancel
    if where == "verifier":
        verifier.break_at[at] = cancel
    with pytest.raises(Cancelled) as raised:
        search(recorded.algorithm, sampler, Budget(nfe=600), verifier, batch=batch, folder=tmp_path, watcher=seen)
    assert raised.value is cancel and raised.value.__cause__ is None
    assert recorded.closed
    checked_after_the_end(tmp_path, seen)
    expected = search(name, Counting(), Budget(nfe=600), batch=batch)
    assert [{k: v for k, v in line.items() if k not in CLOCKED} for line in lines(tmp_path)[1:]] == columns(
        expected.evaluations
    )[: len(lines(tmp_path)) - 1]


@NAMES
@pytest.mark.parametrize("after", [1, 2, 7])
def test_finish_now_ends_the_search_with_a_normal_report(name: str, after: int, tmp_path: Path) -> None:
    class Impatient(Seen):
        def finish_now(self) -> bool:
            return len(self.evaluations) >= after

    seen, recorded = Impatient(), Recorded(name)
    report = search(recorded.algorithm, Counting(), Budget(nfe=5000), batch=2, watcher=seen, folder=tmp_path)
    assert report.stopped == {"finish now": 1} and report.best is not None and recorded.closed
    assert after <= len(report.evaluations) <= after + 2
    assert report.nfe <= 6 * (after + 12)
    checked_after_the_end(tmp_path, seen)


def test_finish_now_before_anything_is_finished_waits_for_the_first_image() -> None:
    class AtOnce(Watcher):
        def finish_now(self) -> bool:
            return True

    for name in ("random", "zero_order", "paths"):
        report = search(name, Counting(), Budget(nfe=5000), watcher=AtOnce(), batch=4)
        assert report.stopped == {"finish now": 1} and report.best is not None
        assert report.evaluations[0].seed == 7


@NAMES
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_a_verifier_that_fails_on_one_image_is_named_with_its_candidate(name: str, batch: int, tmp_path: Path) -> None:
    reference = search(name, Counting(), Budget(nfe=300), batch=1)
    bad = reference.evaluations[4]

    def score(clean: Tensor) -> Tensor:
        if bool((clean[:, 0] == bad.score).any()):
            raise RuntimeError("cannot read this image")
        return clean[:, 0]

    seen = Seen()
    with pytest.raises(SearchError, match="verifier picky failed: RuntimeError: cannot read this image") as failed:
        search(name, Counting(), Budget(nfe=300), Scorer("picky", score), batch=batch, folder=tmp_path, watcher=seen)
    if bad.candidate is not None:
        assert f"candidate {bad.candidate}, seed {bad.recipe[0]['seed']}" in str(failed.value)
    assert isinstance(failed.value.__cause__, RuntimeError) and "\n" not in str(failed.value)
    assert [line["score"] for line in lines(tmp_path)[1:]] == [e.score for e in reference.evaluations[:4]]
    checked_after_the_end(tmp_path, seen)


def test_a_verifier_that_fails_on_many_images_and_on_none_alone_keeps_them_all(tmp_path: Path) -> None:
    def score(clean: Tensor) -> Tensor:
        if len(clean) > 1:
            raise RuntimeError("one at a time, please")
        return clean[:, 0]

    with pytest.raises(SearchError, match="one at a time, please .on 4 candidates at once, on none alone"):
        search("random", Counting(), Budget(candidates=12), Scorer("single", score), batch=4, folder=tmp_path)
    assert len(lines(tmp_path)) == 1 + 4


# what is told and kept


@NAMES
def test_progress_never_falls_and_expects_the_limit_that_is_nearest(name: str) -> None:
    seen = Seen()
    report = search(name, Counting(), Budget(nfe=100), watcher=seen)
    assert seen.nfe == sorted(seen.nfe) and seen.nfe[-1] == report.nfe and set(seen.expected) == {100}
    seen = Seen()
    search("random", Counting(), Budget(candidates=5, nfe=1000), watcher=seen)
    assert set(seen.expected) == {30}
    seen = Seen()
    search("random", Counting(), Budget(patience=2), watcher=seen)
    assert set(seen.expected) == {None}


@NAMES
def test_nfe_of_each_evaluation_rises_and_ends_at_the_total(name: str) -> None:
    report = search(name, Counting(), Budget(nfe=500), batch=4)
    spent = [e.nfe for e in report.evaluations]
    assert spent == sorted(spent) and spent[-1] <= report.nfe and [e.model_rows for e in report.evaluations] == spent
    if name != "paths":
        assert spent == [6 * (i + 1) for i in range(len(spent))]


def test_only_the_images_of_the_top_are_kept() -> None:
    watcher = Seen()
    held: list[int] = []
    original = driver.Driver.record

    def record(self: Any, *args: Any) -> Row:
        row: Row = original(self, *args)
        held.append(len(self.podium.kept))
        return row

    driver.Driver.record = record  # type: ignore[method-assign]
    try:
        search("random", Counting(), Budget(candidates=40), top_k=3, watcher=watcher)
    finally:
        driver.Driver.record = original  # type: ignore[method-assign]
    assert max(held) == 3


class Looking:
    """Sees finished images and four x0 predictions, one after the other."""

    name = "looking"

    def __init__(self) -> None:
        self.members = [first(), *(EarlyLook(time) for time in (0.9, 0.7, 0.5, 0.3))]

    def score(self, images: Tensor, prompt: str) -> Tensor:
        raise AssertionError("the driver asks the members")

    def combine(self, pool: Any) -> list[float]:
        return [parts["first"] for parts in pool]


class EarlyLook:
    def __init__(self, time: float) -> None:
        self.early, self.name = (time,), f"first at {time}"

    def score(self, images: Tensor, prompt: str, early: Any = None) -> Tensor:
        return first().score(images if early is None else early[0], prompt)


@pytest.mark.parametrize("batch", [0, 1, 4])
def test_videos_are_decoded_and_judged_one_row_and_one_look_at_a_time(batch: int) -> None:
    sampler = Videos(batch=4)
    report = search("random", sampler, Budget(candidates=12), Looking(), batch=batch, top_k=4)
    assert sampler.most <= 4  # the best one, the last row's, this row's and one look of it
    assert len(sampler.made) == 12 * 5
    expected = search("random", Videos(), Budget(candidates=12), Looking(), batch=1, top_k=4)
    assert columns(report.evaluations) == columns(expected.evaluations)
    assert len(report.evaluations[0].parts) == 5


@pytest.mark.parametrize("verifier", [first(), RankMean(first(), second())], ids=["plain", "pooled"])
@pytest.mark.parametrize("distinct", [1.0, 0.999])
def test_of_videos_the_best_is_kept_whole_and_of_the_others_the_middle_frame(verifier: Any, distinct: float) -> None:
    sampler = Videos()
    report = search("random", sampler, Budget(candidates=12), verifier, batch=4, top_k=4, distinct=distinct)
    assert len(report.top) > 1
    for place, kept in enumerate(report.top):
        [video] = sampler.decode([kept.row])
        assert torch.equal(kept.images, video if place == 0 else video[:, 2:3])
        assert torch.equal(kept.picture, video[0, 2]) and kept.whole == (place == 0)
        assert place == 0 or kept.images.untyped_storage().nbytes() == video[:, 2:3].numel() * 4


def test_a_batch_of_latents_is_one_candidate_and_out_of_memory_counts_its_rows() -> None:
    sampler = Pairs()
    sampler.break_at["denoise"] = {2: no_memory()}
    report = search("random", sampler, Budget(candidates=8), batch=4)
    assert len(report.finished) == 8 and report.nfe == 8 * 6 * 2
    assert report.lost_nfe == 2 * 4 * 2 and sampler.largest == 8
    assert [e.nfe for e in report.finished] == [12 * (i + 1) for i in range(8)]


def test_a_judged_row_that_moves_on_is_the_parent_of_its_next_evaluation() -> None:
    from pack.search.types import advance, judge

    def staged(space: Any, plan: Any) -> Any:
        rows = yield from advance(space.fresh(2), plan.sigmas[:3])
        rows = yield from judge(rows)
        rows = yield from advance(rows, plan.sigmas[2:5])
        rows = yield from judge(rows)
        yield from finish(rows)

    report = search(Algorithm("staged", staged, acts_midway=True), Counting(), Budget(nfe=500))
    assert [e.parent for e in report.evaluations] == [None, None, 0, 1, 2, 3]
    assert report.nfe == 2 * (6 + 2)


def test_a_finished_image_is_the_same_whether_its_row_paused_or_not() -> None:
    from pack.search.types import advance, judge

    def paused(space: Any, plan: Any) -> Any:
        rows = yield from advance(space.fresh(2), plan.sigmas[:4])
        yield from finish((yield from judge(rows)))

    one = search(Algorithm("paused", paused, acts_midway=True), Counting(), Budget(nfe=500), top_k=2)
    two = search("random", Counting(), Budget(candidates=2), top_k=2)
    for a, b in zip(one.top, two.top, strict=True):
        assert torch.equal(a.images, b.images) and a.evaluation.score == b.evaluation.score


def test_an_error_of_a_budget_too_small_reads_as_one_sentence() -> None:
    with pytest.raises(SearchError) as failed:
        search(algorithm("paths"), Counting(), Budget(nfe=3))
    expected = r"budget: got max_nfe=3; one candidate takes 6: raise max_nfe or lower the steps"
    assert re.fullmatch(expected, str(failed.value))


def test_a_ledger_that_cannot_be_written_is_noted_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError("No space left on device")

    whole = search("random", Counting(), Budget(candidates=6))
    monkeypatch.setattr(Ledger, "append", full)
    report = search("random", Counting(), Budget(candidates=6), folder=tmp_path)
    assert columns(report.evaluations) == columns(whole.evaluations)
    assert report.notes == ["the ledger could not be written: No space left on device"]


def test_a_folder_that_cannot_be_made_is_noted_and_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file", encoding="utf-8")
    report = search("random", Counting(), Budget(candidates=3), folder=tmp_path / "taken" / "search")
    assert len(report.finished) == 3
    assert [note for note in report.notes if note.startswith("the ledger could not be written: ")] == report.notes
    assert report.notes


def test_finish_now_ends_a_search_that_has_half_made_images_with_one_of_them() -> None:
    class Soon(Seen):
        def finish_now(self) -> bool:
            return bool(self.evaluations)

    seen = Soon()
    report = search("pruned", Counting(steps=20), Budget(nfe=1000), watcher=seen)
    begun = seen.evaluations[0]
    assert begun.candidate is None and report.stopped == {"finish now": 1}
    assert len(report.finished) == 1 and report.nfe <= begun.nfe + 20  # no more than one image takes


def test_a_verifier_that_leads_is_no_held_out_one() -> None:
    leading, other = first(), second()
    report = search("random", Counting(), Budget(candidates=2), leading, held_out=leading)
    assert [note.split(",")[0] for note in report.notes] == ["held out: first leads the search too"]
    report = search("random", Counting(), Budget(candidates=2), RankMean(leading, other), held_out=other)
    assert [note.split(",")[0] for note in report.notes] == ["held out: second leads the search too"]
    assert search("random", Counting(), Budget(candidates=2), leading, held_out=other).notes == []
