"""A measured curve: scores of x0 predictions, which cost nothing, beside the final ones, and believed with caution."""

from __future__ import annotations

import json
import math
from statistics import NormalDist, correlation, fmean
from typing import Any

import pytest
import torch

from pack.search import Budget, SearchError, algorithm
from pack.search.curves import CURVES, curve_of
from pack.search.halving_plan import halving_plan
from pack.search.measuring import CAUTION, FEWEST, Look, Measured, Watching, looks_at, rising, visibility
from pack.search.recipe import Recipe
from pack.search.types import Advance, Row
from pack.tests.search.test_early import Free, Steady
from pack.tests.search.worlds import Counting, RankMean, Recorded, Scorer, Veto, first, search, second
from pack.verifiers import VerifierEnsemble

SHARES = tuple(share for share, _ in CURVES["cautious"])


def measurement(seen: Any = (0.1, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95), candidates: int = 16, **more: Any) -> Measured:
    return Measured(more.pop("verifier", "first"), more.pop("shares", SHARES), tuple(seen), candidates, **more)


def test_looks_are_after_whole_steps_and_name_the_prediction_that_the_last_of_them_made() -> None:
    sigmas = tuple(1 - i / 20 for i in range(21))
    looks = looks_at(sigmas, lambda sigma: sigma, 8)
    assert [look.share for look in looks] == pytest.approx([0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
    assert [look.time for look in looks] == pytest.approx([0.85, 0.75, 0.65, 0.55, 0.45, 0.35, 0.25, 0.15])
    assert [look.share for look in looks_at(sigmas[:5], lambda sigma: sigma, 8)] == [0.25, 0.5, 0.75]
    assert looks_at(sigmas, lambda sigma: sigma, 1) == [Look(0.2, sigmas[3])]
    for steps, count in ((3, 8), (20, 0)):
        with pytest.raises(SearchError, match="expected at least 4 steps and 1 look"):
            looks_at(sigmas[: steps + 1], lambda sigma: sigma, count)


def test_visibility_is_the_correlation_of_normal_scores() -> None:
    early, final = [0.3, -1.0, 7.0, 2.0, 2.5], [10.0, 20.0, 50.0, 30.0, 40.0]
    normal = [NormalDist().inv_cdf((rank + 0.5) / 5) for rank in range(5)]
    a = [normal[sorted(early).index(x)] for x in early]
    b = [normal[sorted(final).index(x)] for x in final]
    assert visibility(early, final) == pytest.approx(correlation(a, b))
    assert visibility([math.exp(x) for x in early], [-1 / x for x in final]) == pytest.approx(correlation(a, b))
    assert visibility(final, final) == pytest.approx(1.0)


def test_equal_early_scores_tell_nothing_and_those_that_are_no_numbers_are_the_worst() -> None:
    assert visibility([1.0] * 6, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) == 0.0
    final = [1.0, 2.0, 3.0, 4.0, 5.0]
    for none in (math.nan, -math.inf):
        assert visibility([none, none, 3.0, 4.0, 5.0], final) == visibility([0.0, 0.0, 3.0, 4.0, 5.0], final)
    # places must not tell: equal scores in any order are worth the same
    one, other = (visibility([1, 1, 0, 0], final) for final in ([4.0, 3.0, 2.0, 1.0], [3.0, 4.0, 1.0, 2.0]))
    assert one == pytest.approx(other)


def test_gaussian_scores_give_back_their_correlation() -> None:
    generator = torch.Generator().manual_seed(2)
    for expected in (0.2, 0.5, 0.9):
        seen = []
        for _ in range(200):
            final = torch.randn(64, generator=generator)
            early = expected * final + math.sqrt(1 - expected**2) * torch.randn(64, generator=generator)
            seen.append(visibility(early.tolist(), final.tolist()))
        assert fmean(seen) == pytest.approx(expected, abs=0.03)  # standard error below 0.01


def test_rising_is_the_nearest_that_rises_by_the_minimax_formula() -> None:
    generator = torch.Generator().manual_seed(3)
    for _ in range(50):
        values = torch.randn(7, generator=generator).tolist()
        expected = [max(min(fmean(values[j : k + 1]) for k in range(i, 7)) for j in range(i + 1)) for i in range(7)]
        assert rising(values) == pytest.approx(expected)
    assert rising([0.1, 0.2, 0.2, 0.9]) == [0.1, 0.2, 0.2, 0.9]


def test_few_candidates_are_believed_little_and_many_almost_wholly() -> None:
    seen = (0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.97, 0.99)
    cautious = curve_of("cautious")
    for candidates in (4, 16, 64, 4000):
        curve = measurement(seen, candidates).curve()
        believed = candidates / (candidates + CAUTION)
        for share, value in zip(SHARES, seen, strict=True):
            assert curve.at(share) == pytest.approx(believed * value + (1 - believed) * cautious.at(share))
    values = [value for _, value in measurement((0.5, 0.1, 0.9, 0.2, 0.3, 0.8, 0.7, 1.0)).curve().points]
    assert values == sorted(values)


def test_measurements_of_several_prompts_count_by_their_candidates() -> None:
    one, other = measurement((0.1,) * 8, 16), measurement((0.4,) * 8, 48, prompts=3)
    both = one.with_earlier(other)
    assert both.candidates == 64 and both.prompts == 4
    assert both.seen == pytest.approx((0.25 * 0.1 + 0.75 * 0.4,) * 8)
    for stranger in (measurement(verifier="second"), measurement((0.1, 0.2), shares=(0.2, 0.5))):
        with pytest.raises(SearchError, match="earlier: got a measurement of .* after 20 %|earlier: .* after 20%"):
            one.with_earlier(stranger)


def test_the_text_of_a_measurement_is_read_back_and_any_other_text_refused() -> None:
    made = measurement(prompts=2)
    assert Measured.from_json(made.to_json()) == made
    good = json.loads(made.to_json())
    for wrong in ("", "x" * 500, "[]", "7", "{}", json.dumps({**good, "seen": good["seen"][:3]}),
                  json.dumps({**good, "candidates": 1}), json.dumps({**good, "shares": "ab"})):  # fmt: skip
        with pytest.raises(SearchError, match="measured_curve: got .*expected the text that Measure Curve gives"):
            Measured.from_json(wrong)
    for name, values in (("seen", [7.0] * 8), ("seen", [math.nan] * 8), ("shares", [0.5] * 8)):
        with pytest.raises(SearchError, match="curve: got"):
            Measured.from_json(json.dumps({**good, name: values}))


def test_the_table_shows_what_was_seen_and_what_is_planned_with() -> None:
    made = measurement()
    head, names, *rows = made.table().splitlines()
    assert head == "first: 16 candidates, 1 prompt" and names.split() == ["steps", "done", "seen", "planned"]
    for row, share, seen in zip(rows, SHARES, made.seen, strict=True):
        assert row.split() == [f"{share:.0%}", f"{seen:.2f}", f"{made.curve().at(share):.2f}"]


def watched(verifier: Any, sampler: Counting, candidates: int = 12, count: int = 4, **more: Any) -> Any:
    watching = Watching(verifier, looks_at(sampler.sigmas, sampler.time, count))
    return watching, search("random", sampler, Budget(candidates=candidates), watching, **more)


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("flow", [True, False])
@pytest.mark.parametrize("order", [1, 2])
def test_scores_on_the_way_are_those_of_the_x0_predictions_that_pruned_would_see(
    flow: bool, order: int, batch: int
) -> None:
    sampler = Counting(flow, order, steps=10)
    verifier = first()
    watching, report = watched(verifier, sampler, batch=batch)
    plain = search("random", Counting(flow, order, steps=10), Budget(candidates=12), verifier, batch=batch)
    assert [e.score for e in report.evaluations] == [e.score for e in plain.evaluations]
    assert report.nfe == plain.nfe == sampler.rows  # looking on the way costs no forward
    table = []
    for e in report.finished:
        row = Row(Recipe(e.recipe), sampler.sigmas[0])
        scores = []
        for look in watching.looks:
            [there] = sampler.advance([row], sampler.sigmas[: round(look.share * 10) + 1], Free())
            [image] = sampler.decode([there])
            scores.append(float(verifier.score(image, "")))
        assert [e.parts[f"first after {round(100 * look.share)} %"] for look in watching.looks] == pytest.approx(scores)
        table.append([*scores, e.score])
    measured = watching.measured([e.parts for e in report.judged])
    columns = list(zip(*table, strict=True))
    assert measured.seen == pytest.approx([visibility(column, columns[-1]) for column in columns[:-1]])
    assert (measured.verifier, measured.candidates) == ("first", 12)


def test_an_ensemble_is_combined_at_every_look_as_at_the_end() -> None:
    scales = {"first": (0.0, 1.0), "second": (0.5, 2.0)}
    for verifier in (
        VerifierEnsemble([first(), second()], scales=scales),
        VerifierEnsemble([first(), second()], method="rank_mean"),
        VerifierEnsemble([first(), second()], scales=scales, vetoes={"second": 0.0}),
        RankMean(first(), second()),
    ):
        watching, report = watched(verifier, Counting(steps=10))
        plain = search("random", Counting(steps=10), Budget(candidates=12), verifier)
        assert [e.record()["score"] for e in report.evaluations] == [e.record()["score"] for e in plain.evaluations]
        judged = report.judged
        measured = watching.measured([e.parts for e in judged])
        final = verifier.combine([{name: e.parts[name] for name in ("first", "second")} for e in judged])
        for look, seen in zip(watching.looks, measured.seen, strict=True):
            after = f" after {round(100 * look.share)} %"
            early = verifier.combine([{name: e.parts[name + after] for name in ("first", "second")} for e in judged])
            assert seen == pytest.approx(visibility(early, final))


def test_what_a_verifier_cannot_judge_on_the_way_or_vetoes_is_no_obstacle() -> None:
    half_blind = Scorer("half blind", lambda clean: torch.where(clean[:, 1] > 0, clean[:, 0], float("nan")))
    watching, report = watched(half_blind, Counting(steps=10), 30)
    assert len(report.judged) < len(report.finished)
    assert all(-1 <= seen <= 1 for seen in watching.measured([e.parts for e in report.judged]).seen)
    watching, report = watched(Veto(0.0), Counting(steps=10), 30)
    assert 0 < watching.measured([e.parts for e in report.judged]).candidates < 30


def test_too_few_candidates_or_equal_scores_tell_nothing() -> None:
    watching, report = watched(first(), Counting(steps=10), 3)
    with pytest.raises(SearchError, match=f"only 3 candidates were judged; expected at least {FEWEST}"):
        watching.measured([e.parts for e in report.judged])
    watching, report = watched(Scorer("flat", lambda clean: torch.zeros(len(clean))), Counting(steps=10))
    with pytest.raises(SearchError, match="all of them score the same"):
        watching.measured([e.parts for e in report.judged])


def test_a_verifier_of_finished_images_only_is_refused() -> None:
    with pytest.raises(SearchError, match="steady judges finished images only"):
        Watching(Steady(), [Look(0.5, 0.5)])


def test_pruned_cuts_by_the_measured_curve_instead_of_the_named_one() -> None:
    sharp = measurement((0.9, 0.95, 0.97, 0.98, 0.99, 0.99, 0.99, 0.99), 10_000)
    recorded = Recorded("pruned", measured_curve=sharp.to_json())
    search(recorded.algorithm, Counting(steps=20), Budget(nfe=420), batch=16)
    plan, other = halving_plan(sharp.curve(), 20, 420), halving_plan(curve_of("cautious"), 20, 420)
    started = [len(r.rows) for r in recorded.requests if isinstance(r, Advance)]
    assert started[: len(plan.cuts)] == [plan.first, *(keep for _, keep in plan.cuts[:-1])] and plan != other
    with pytest.raises(SearchError, match="measured_curve: got"):
        search(algorithm("pruned", measured_curve="{}"), Counting(), Budget(nfe=100))
