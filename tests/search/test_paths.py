"""Search over paths: its rounds, what they cost, and that a budget that ends anywhere still gives an image."""

import pytest
import torch

from pack.search import Budget, Evaluation, SearchError, SearchReport, algorithm
from pack.search.types import Advance, Finish, Judge, Plan, Renoise
from pack.tests.search.worlds import Counting, Recorded, Scorer, columns, first, forwards, often_nan, search

KINDS = pytest.mark.parametrize("flow, order", [(f, o) for f in (True, False) for o in (1, 2)])


def shares(start: float, forward: float, backward: float, highest: float) -> list[tuple[float, float]]:
    """Top and bottom noise share of every round, worked out here on its own."""
    rounds, share = [], start
    while share > 0:
        top = min(share + forward, 0.99 * highest)
        share = max(top - backward, 0.0)
        rounds.append((top, share))
    return rounds


def part(sampler: Counting, high: float, low: float) -> list[float]:
    """The schedule between two sigmas, both included."""
    return [high, *(s for s in sampler.sigmas if low + 1e-6 < s < high - 1e-6), low] if high > low else [high]


def one_round_nfe(sampler: Counting, paths: int, width: int, leg_steps: int, **moves: float) -> int:
    """NFE of N first images and the N x M of one whole descent: the formula of the paper plus the finishing."""

    def cost(high: float, low: float) -> int:
        return forwards(part(sampler, high, low), sampler.order)

    start = sampler.sigma(moves["start"])
    nfe = paths * (cost(sampler.sigmas[0], start) + cost(start, 0.0))
    for top, bottom in shares(moves["start"], moves["forward"], moves["backward"], sampler.time(sampler.sigmas[0])):
        low = sampler.sigma(bottom)
        leg = cost(sampler.sigma(top), low)
        if leg_steps:
            leg = leg_steps if sampler.order == 1 else 2 * leg_steps - (bottom == 0)
        nfe += paths * width * (leg + (bottom > 0))  # and one forward for the x0 prediction
    return nfe


@KINDS
@pytest.mark.parametrize("paths, width, leg_steps", [(2, 5, 0), (1, 3, 0), (3, 2, 4), (4, 1, 1)])
@pytest.mark.parametrize("start, forward, backward", [(0.11, 0.78, 0.81), (0.4, 0.2, 0.35)])
def test_one_whole_descent_costs_what_the_formula_says(
    flow: bool, order: int, paths: int, width: int, leg_steps: int, start: float, forward: float, backward: float
) -> None:
    sampler = Counting(flow, order, steps=10)
    moves = {"start": start, "forward": forward, "backward": backward}
    chosen = algorithm("paths", paths=paths, width=width, leg_steps=leg_steps, **moves)
    report = search(chosen, sampler, Budget(candidates=paths + paths * width), batch=16)
    assert report.nfe == sampler.rows == one_round_nfe(sampler, paths, width, leg_steps, **moves)
    rounds = shares(start, forward, backward, sampler.time(sampler.sigmas[0]))
    assert len(report.evaluations) == paths + paths * width * len(rounds)
    assert len(report.finished) == paths + paths * width


def test_the_defaults_make_four_rounds_of_the_papers_shares() -> None:
    recorded = Recorded("paths")
    search(recorded.algorithm, Counting(steps=10), Budget(candidates=12))
    ups = [r for r in recorded.requests if isinstance(r, Renoise)]
    downs = [r for r in recorded.requests if isinstance(r, Advance)]
    assert [r.sigma for r in ups] == pytest.approx([0.89, 0.86, 0.83, 0.80])
    # to the last sigma of the schedule, where the first images fork off, and on to the first share
    assert [r.sigmas[-1] for r in downs] == pytest.approx([0.2, 0.11, 0.08, 0.05, 0.02, 0.0])
    assert [r.sigmas[0] for r in downs] == pytest.approx([1.0, 0.2, 0.89, 0.86, 0.83, 0.80])
    assert [len(r.rows) for r in recorded.requests if isinstance(r, Judge)] == [10, 10, 10]
    assert [len(r.rows) for r in recorded.requests if isinstance(r, Finish)] == [2, 10]


def test_noise_shares_of_an_eps_model_are_matched_by_signal_to_noise() -> None:
    recorded = Recorded("paths")
    search(recorded.algorithm, Counting(flow=False, steps=10), Budget(candidates=12))
    ups = [r.sigma for r in recorded.requests if isinstance(r, Renoise)]
    assert ups == pytest.approx([t / (1 - t) for t in (0.89, 0.86, 0.83, 0.80)])


@pytest.mark.parametrize("leg_steps", [1, 3, 7])
def test_leg_steps_are_evenly_spaced_in_noise_share(leg_steps: int) -> None:
    for flow in (True, False):
        recorded, sampler = Recorded("paths", leg_steps=leg_steps), Counting(flow, steps=10)
        search(recorded.algorithm, sampler, Budget(candidates=12))
        legs = [r.sigmas for r in recorded.requests if isinstance(r, Advance)][2:]
        assert len(legs) == 4
        for sigmas in legs:
            times = [sampler.time(s) for s in sigmas]
            assert len(times) == leg_steps + 1
            assert [a - b for a, b in zip(times, times[1:], strict=False)] == pytest.approx(
                [(times[0] - times[-1]) / leg_steps] * leg_steps
            )


@pytest.mark.parametrize("verifier", [first, often_nan])
def test_the_best_paths_by_score_survive_each_round(verifier: "type[Scorer]") -> None:
    paths, width = 3, 4
    report = search(algorithm("paths", paths=paths, width=width), Counting(), Budget(candidates=30), verifier())
    first_images, rounds = report.evaluations[:paths], []
    rest = report.evaluations[paths:]
    for i in range(0, len(rest), paths * width):
        rounds.append(rest[i : i + paths * width])
    survivors = first_images
    for judged in rounds[:4]:
        # every survivor has `width` children, the best one first
        assert [e.parent for e in judged] == [s.id for s in survivors for _ in range(width)]
        best_first = sorted(judged, key=lambda e: (e.verdict != "judged", -e.score if e.verdict == "judged" else 0))
        survivors = best_first[:paths]
    assert rounds[3][0].sigma == 0 and rounds[4][0].parent is None  # then it begins again with fresh noises
    assert all(e.candidate is None for judged in rounds[:3] for e in judged)


def test_every_re_noising_has_a_seed_of_its_own_and_copies_part() -> None:
    report = search("paths", Counting(), Budget(nfe=1500))
    drawn = [e.recipe[-1]["seed"] for e in report.evaluations if e.recipe[-1]["op"] == "renoise"]
    assert len(drawn) > 30 and len(set(drawn)) == len(drawn) - _finished_twice(report.evaluations)
    scores = [e.score for e in report.evaluations if e.candidate is None]
    assert len(set(scores)) == len(scores)


def _finished_twice(evaluations: list[Evaluation]) -> int:
    """Judged rows that the end of the budget finished from where they were: one recipe, two evaluations."""
    return sum(e.parent is not None and evaluations[e.parent].recipe == e.recipe for e in evaluations)


@pytest.mark.parametrize("start", [0.89, 0.95, 0.99, 1.0, 1.5, 7.0])
@KINDS
def test_a_start_above_the_top_of_the_schedule_still_re_noises(start: float, flow: bool, order: int) -> None:
    chosen = algorithm("paths", start=start)
    report = search(chosen, Counting(flow, order, steps=8), Budget(candidates=12))
    assert len(report.finished) == 12 and report.evaluations[0].seed == 7
    scores = [e.score for e in report.evaluations]
    assert len(set(scores)) == len(scores)  # no two copies of a path stayed the same
    ups = [o for o in report.evaluations[-1].recipe if o["op"] == "renoise"]
    assert ups and all(o["from"] < o["to"] for o in ups)


@pytest.mark.parametrize("highest", [0.05, 0.3, 0.6])
def test_a_schedule_that_starts_low_as_in_image_to_image_works(highest: float) -> None:
    sampler = Counting(steps=5)
    sampler.sigmas = tuple(s * highest for s in sampler.sigmas)
    report = search("paths", sampler, Budget(candidates=12))
    assert len(report.finished) == 12 and all(e.sigma <= highest for e in report.evaluations)
    assert all(o["to"] <= highest for e in report.evaluations for o in e.recipe if o["op"] == "renoise")
    assert len({e.score for e in report.evaluations}) == len(report.evaluations)


def test_a_schedule_that_meets_a_share_makes_no_sliver_of_a_step() -> None:
    for steps in (10, 20, 25, 50, 100):
        recorded = Recorded("paths")
        search(recorded.algorithm, Counting(steps=steps), Budget(candidates=12))
        for request in recorded.requests:
            if isinstance(request, Advance):
                assert min(a - b for a, b in zip(request.sigmas, request.sigmas[1:], strict=False)) > 1e-6


@pytest.mark.parametrize("forward, backward", [(0.78, 0.78), (0.9, 0.5), (-0.1, 0.5), (float("nan"), 0.8)])
def test_a_descent_that_would_never_end_is_refused_before_any_forward(forward: float, backward: float) -> None:
    sampler = Counting()
    with pytest.raises(SearchError, match="forward < backward"):
        search(algorithm("paths", forward=forward, backward=backward), sampler, Budget(candidates=20))
    assert sampler.rows == 0


@pytest.mark.parametrize("settings", [{"paths": 0}, {"width": 0}])
def test_settings_that_ask_for_nothing_are_refused_and_do_not_hang(settings: dict[str, int]) -> None:
    with pytest.raises(SearchError, match="at least one"):
        search(algorithm("paths", **settings), Counting(), Budget(candidates=20))


@KINDS
def test_every_nfe_budget_gives_a_finished_image_within_it(flow: bool, order: int) -> None:
    sampler = Counting(flow, order, steps=5)
    cost = sampler.cost(sampler.sigmas)
    for nfe in [*range(cost, 90), *range(90, 330, 13)]:
        before = sampler.rows
        report = search("paths", sampler, Budget(nfe=nfe), batch=8)
        assert report.nfe == sampler.rows - before <= nfe
        assert report.best is not None and report.best.row.sigma == 0 and report.stopped == {"nfe": nfe}
        assert report.evaluations[0].seed == 7


@pytest.mark.parametrize("nfe", [20, 60, 90, 130, 200])
def test_a_budget_that_ends_mid_way_leaves_less_nfe_than_one_more_image_takes(nfe: int) -> None:
    sampler = Counting(steps=5)
    report = search("paths", sampler, Budget(nfe=nfe), batch=8)
    assert nfe - report.nfe < 5


def test_a_budget_that_ends_after_a_judged_round_finishes_its_best_paths_first() -> None:
    sampler = Counting(steps=10)
    moves = {"start": 0.11, "forward": 0.78, "backward": 0.81}
    whole_first_round = 2 * 11 + 10 * (9 + 1)  # N first images, N x M legs of nine steps and their x0 predictions
    assert one_round_nfe(sampler, 2, 5, 0, **moves) > whole_first_round
    report = search("paths", sampler, Budget(nfe=whole_first_round + 6), batch=8)
    judged = [e for e in report.evaluations if e.candidate is None]
    assert len(judged) == 10
    best_first = sorted(judged, key=lambda e: -e.score)[:2]
    assert [e.parent for e in report.finished[2:4]] == [e.id for e in best_first]
    assert report.nfe <= whole_first_round + 6


def test_images_that_cost_no_more_forwards_are_not_lost_when_nfe_is_spent() -> None:
    sampler = Counting(steps=10)
    moves = {"start": 0.11, "forward": 0.78, "backward": 0.81}
    exactly = one_round_nfe(sampler, 2, 5, 0, **moves)
    report = search("paths", sampler, Budget(nfe=exactly), batch=4)
    assert report.nfe == exactly and len(report.finished) == 12


def test_a_limit_of_candidates_holds_when_nfe_ends_the_search() -> None:
    for nfe in range(20, 240, 7):
        report = search("paths", Counting(steps=5), Budget(nfe=nfe, candidates=4), batch=8)
        assert len([e for e in report.finished if not e.after_stop]) <= 4


def test_the_plan_gives_back_the_users_schedule_untouched() -> None:
    sigmas = (1.0, 1.0, 0.5, 0.5, 0.25, 0.0)
    plan = Plan(sigmas, lambda s: s, lambda t: t, lambda s: (1 - s, s), 5)
    assert plan.down(1.0, 0.0) == sigmas
    assert plan.down(0.75, 0.3) == (0.75, 0.5, 0.5, 0.3)
    assert plan.down(0.5 + 1e-9, 0.25 - 1e-9) == (0.5 + 1e-9, 0.25 - 1e-9)
    assert plan.down(0.3, 0.3) == plan.down(0.3, 0.4) == (0.3,)


def same(one: SearchReport, two: SearchReport) -> bool:
    return columns(one.evaluations) == columns(two.evaluations)


def test_it_gains_over_its_first_images_on_a_landscape_that_it_can_climb() -> None:
    gains = []
    for seed in range(10):
        sampler = Counting(steps=6, means=torch.zeros(1, 12), spread=1.0)
        report = search("paths", sampler, Budget(candidates=12), first_seed=seed, seed=seed)
        assert same(report, search("paths", sampler, Budget(candidates=12), first_seed=seed, seed=seed))
        gains.append(max(e.score for e in report.finished[2:]) - max(e.score for e in report.finished[:2]))
    assert sum(gains) / 10 > 0.5


@pytest.mark.parametrize("nfe", [212, 222, 390, 392, 400, 402])
@pytest.mark.parametrize("shares", [{}, {"start": 0.4, "forward": 0.2, "backward": 0.25}], ids=str)
def test_no_model_call_is_spent_on_paths_that_are_never_finished(nfe: int, shares: dict[str, float]) -> None:
    report = search(algorithm("paths", **shares), Counting(steps=20), Budget(nfe=nfe))
    assert report.nfe - max(evaluation.nfe for evaluation in report.finished) < 20  # less than one image
    assert nfe - report.nfe < 20


@pytest.mark.parametrize("flow", [True, False])
@pytest.mark.parametrize("leg_steps", [0, 4])
@pytest.mark.parametrize("left_out", [1, 3])
def test_no_path_leaves_a_schedule_that_ends_above_zero(flow: bool, leg_steps: int, left_out: int) -> None:
    sampler = Counting(flow, steps=10)
    sampler.sigmas = sampler.sigmas[:-left_out]
    recorded = Recorded("paths", leg_steps=leg_steps)
    report = search(recorded.algorithm, sampler, Budget(nfe=400))
    last = sampler.sigmas[-1]
    assert all(e.sigma == last for e in report.finished) and min(e.sigma for e in report.evaluations) == last
    moves = [request.sigmas for request in recorded.requests if isinstance(request, Advance)]
    assert all(list(sigmas) == sorted(sigmas, reverse=True) and sigmas[-1] >= last for sigmas in moves)
    assert any(o["op"] == "renoise" for e in report.finished for o in e.recipe)
    assert len({str(e.recipe) for e in report.finished}) == len(report.finished)
