"""Rank correlations, gains, and the warning when a search pleases its own verifier only."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from pack.search import Budget, Evaluation, Recipe
from pack.search.agreement import ENOUGH, agreements, gains, rank_correlation, warnings
from pack.search.report import Kept, SearchReport
from pack.search.types import Row
from pack.tests.search.worlds import Counting, Scorer, first, search, second
from pack.verifiers import VerifierEnsemble

NAN = math.nan


def candidates(scores: list[float], **held_out: list[float]) -> list[Evaluation]:
    """Finished candidates with a searched score and what held-out verifiers said."""
    return [
        Evaluation(
            i, i, None, 0.0, score, {"a": score}, {name: values[i] for name, values in held_out.items()},
            i, i, 0.0, i, Recipe.of_seed(i).operations,
        )
        for i, score in enumerate(scores)
    ]  # fmt: skip


def leads(judged: list[Evaluation]) -> list[Evaluation]:
    return SearchReport({}, judged).leads()


def test_rank_correlations_are_those_of_scipy_ties_included() -> None:
    spearman = pytest.importorskip("scipy.stats").spearmanr
    table = torch.randint(0, 9, (40, 2), generator=torch.Generator().manual_seed(4)).double()
    expected = spearman(table.numpy()).statistic
    assert rank_correlation(*table.T.tolist()) == pytest.approx(expected, abs=1e-12)


def test_the_same_order_is_one_the_opposite_minus_one_and_no_order_is_nan() -> None:
    assert rank_correlation([1, 2, 3], [10, 400, 401]) == 1.0
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == -1.0
    assert math.isnan(rank_correlation([1, 2, 3], [5, 5, 5]))
    assert math.isnan(rank_correlation([1, NAN], [5, 6]))
    assert rank_correlation([1, NAN, 2, 3], [1, 0, 2, math.inf]) == 1.0


def test_members_are_compared_with_each_other_and_with_what_is_held_out() -> None:
    opposite = Scorer("opposite", lambda clean: -clean[:, 0])
    both = VerifierEnsemble([first(), second()], scales={"first": (0, 1), "second": (0, 1)})
    report = search("random", Counting(), Budget(candidates=9), both, held_out=opposite)
    found = {(a.first, a.second): a.correlation for a in report.agreements}
    assert set(found) == {("first", "second"), ("first", "opposite (held out)"), ("second", "opposite (held out)")}
    assert found["first", "opposite (held out)"] == -1.0
    assert found["second", "opposite (held out)"] == pytest.approx(-found["first", "second"])


def test_a_gain_is_the_winners_distance_from_the_mean_in_standard_deviations() -> None:
    judged = candidates([0.0, 1.0, 2.0, 5.0], h=[0.0, 0.0, 4.0, 2.0])
    (gain,) = gains(judged[3], judged)
    assert gain.held_out_name == "h"
    assert gain.searched == pytest.approx(3 / math.sqrt(14 / 3))  # mean 2, variance (4 + 1 + 0 + 9) / 3
    assert gain.held_out == pytest.approx(0.5 / math.sqrt(11 / 3))  # mean 1.5
    assert gain.ratio == pytest.approx(gain.held_out / gain.searched)


def test_a_held_out_verifier_that_agrees_keeps_the_whole_gain() -> None:
    report = search("random", Counting(), Budget(candidates=12), held_out=Scorer("twice", lambda c: 2 * c[:, 0] + 1))
    assert [g.ratio for g in report.gains] == pytest.approx([1.0]) and report.warnings == []


def test_where_nothing_can_be_said_the_gain_is_nan_and_nothing_is_warned_of() -> None:
    same = candidates([1.0, 1.0, 1.0], h=[1.0, 2.0, 3.0])
    assert math.isnan(gains(same[0], same)[0].searched) and math.isnan(gains(same[0], same)[0].ratio)
    unjudged = candidates([float(i) for i in range(9)], h=[NAN] * 9)
    assert math.isnan(gains(unjudged[8], unjudged)[0].held_out) and warnings(leads(unjudged), unjudged) == []
    assert gains(same[0], same[:2]) == [] and agreements(same[:2]) == []


def test_the_user_is_warned_when_the_searched_score_rises_and_the_held_out_one_falls() -> None:
    scores = [float(i) for i in range(ENOUGH)]
    falling = candidates(scores, h=[10.0 - i for i in range(ENOUGH)], steady=[1.0] * ENOUGH)
    (said,) = warnings(leads(falling), falling)
    assert "rose from 0 to 7" in said and "held-out h fell from 10 to 3" in said
    rising = candidates(scores, h=scores)
    assert warnings(leads(rising), rising) == []


def test_a_single_step_or_few_candidates_are_no_reason_to_warn() -> None:
    few = candidates([float(i) for i in range(ENOUGH - 1)], h=[-float(i) for i in range(ENOUGH - 1)])
    assert warnings(leads(few), few) == []
    never = candidates([9.0] * ENOUGH, h=[-float(i) for i in range(ENOUGH)])  # candidate 0 leads from the start
    assert warnings(leads(never), never) == []
    # lower than at the start, but above the median of all: luck
    lucky = candidates([float(i) for i in range(ENOUGH)], h=[10.0, *[0.0] * (ENOUGH - 2), 9.0])
    assert warnings(leads(lucky), lucky) == []


def test_all_of_it_is_in_the_json() -> None:
    judged = candidates([float(i) for i in range(9)], h=[-float(i) for i in range(9)])
    report = SearchReport({}, judged, [Kept(judged[8], Row(Recipe.of_seed(8), 0.0), torch.zeros(1, 1, 1, 3))])
    told: dict[str, Any] = report.to_dict()
    assert told["agreements"] == [{"first": "a", "second": "h (held out)", "correlation": -1.0}]
    assert told["gains"][0]["ratio"] == pytest.approx(-1.0) and told["warnings"] == report.warnings != []
