"""The probe: its statistics are those of textbooks, and its verdict is right where the truth is known."""

from __future__ import annotations

import math
import statistics
from typing import Any

import pytest
import torch

from pack.search import Budget, Candidates, SearchError
from pack.search.probe import FEWEST, collapse, distance, expected_top, interval, probe
from pack.search.recipe import Recipe
from pack.tests.search.worlds import Counting, RankMean, Scorer, first, often_nan, search, second


def scaled(sd: float | None) -> Scorer:
    verifier = first()
    verifier.scale = None if sd is None else (0.0, sd)  # type: ignore[attr-defined]
    return verifier


def report_of(
    spread: float = 1.0, scale: float | None = 1.0, candidates: int = 12, name: str = "random", **more: Any
) -> Any:
    """A search whose scores deviate by `spread`: one Gaussian, so seeds are as far apart as its width."""
    world = Counting(means=torch.zeros(1, 12), spread=spread)
    budget = more.pop("budget", Budget(candidates=candidates))
    return search(name, world, budget, more.pop("verifier", scaled(scale)), top_k=more.pop("top_k", 4), **more)


def test_the_expected_best_of_n_normals_is_that_of_the_tables() -> None:
    # Harter 1961, Biometrika 48
    tables = {1: 0.0, 2: 0.56418958, 4: 1.02937537, 10: 1.53875273, 16: 1.76599139, 100: 2.50759364}
    for count, expected in tables.items():
        assert expected_top(count) == pytest.approx(expected, abs=2e-6)


def test_the_interval_of_a_deviation_is_that_of_the_chi_square_law() -> None:
    # quantiles 0.05 and 0.95 of chi-square with 3, 7 and 15 degrees of freedom
    for count, low, high in ((4, 0.351846, 7.814728), (8, 2.167350, 14.067140), (16, 7.260944, 24.995790)):
        expected = math.sqrt((count - 1) / high), math.sqrt((count - 1) / low)
        assert interval(count) == pytest.approx(expected, rel=0.04)


def test_the_interval_covers_the_true_deviation_as_often_as_it_says() -> None:
    draws = torch.randn(4000, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64).std(dim=1)
    low, high = interval(6)
    covered = ((draws * low <= 1) & (draws * high >= 1)).double().mean()
    assert float(covered) == pytest.approx(0.9, abs=0.015)


def test_the_spread_and_its_share_are_those_of_the_scores() -> None:
    report = report_of(scale=0.5)
    found, scores = probe(report), [e.score for e in report.finished]
    assert found.seeds == 12 and found.spread == pytest.approx(statistics.stdev(scores))
    assert found.share == pytest.approx(2 * found.spread)
    assert found.gain(16) == pytest.approx(1.76599139 * found.spread, rel=1e-5) and found.gain(1) == pytest.approx(0)


def test_the_expected_gain_is_what_searches_gain() -> None:
    world = Counting(means=torch.zeros(1, 12), spread=1.0)
    gains, predicted = [], []
    for seed in range(120):
        report = search("random", world, Budget(candidates=16), scaled(1.0), first_seed=seed)
        scores = [e.score for e in report.finished]
        gains.append(max(scores) - statistics.fmean(scores))
        predicted.append(probe(report).gain(16))
    assert statistics.fmean(predicted) == pytest.approx(statistics.fmean(gains), rel=0.05)


def test_seeds_that_differ_and_seeds_that_collapse_are_told_apart() -> None:
    apart, alike = report_of(spread=1.0), report_of(spread=0.01)
    assert "differ enough" in probe(apart).verdict and not probe(apart).collapsed and collapse(apart) == []
    assert "collapse" in probe(alike).verdict and "Search: Axes" in probe(alike).verdict
    assert collapse(alike) == [probe(alike).verdict]


def test_pictures_that_differ_under_equal_scores_are_no_collapse() -> None:
    report = report_of(verifier=Scorer("blind", lambda clean: clean[:, 0] * 1e-3), scale=None)
    report.settings["scales"] = {"blind": 1.0}
    assert "score alike" in probe(report).verdict and not probe(report).collapsed and collapse(report) == []


def test_without_a_scale_the_pictures_decide() -> None:
    assert probe(report_of(scale=None)).share is None
    assert "differ enough" in probe(report_of(scale=None)).verdict
    assert "collapse" in probe(report_of(spread=0.01, scale=None)).verdict
    unknown = probe(report_of(scale=None, top_k=1))
    assert unknown.apart is None and unknown.verdict.startswith("Unknown") and not unknown.collapsed


def test_an_ensemble_goes_by_the_scales_of_its_members() -> None:
    one, two = scaled(0.5), second()
    report = report_of(verifier=RankMean(one, two))
    found = probe(report)
    deviation = statistics.stdev(e.parts["first"] for e in report.finished)
    assert found.share == pytest.approx(deviation / 0.5)  # the second has none
    assert found.pooled and math.isnan(found.gain(16)) and "gain" not in found.text


def test_candidates_around_a_liked_noise_are_probed_as_they_are() -> None:
    world = Counting(means=torch.zeros(1, 12), spread=1.0)
    found = {}
    for cosine in (0.0, 0.99):
        around = Candidates(Recipe.of_seed(7), 7, cosine)
        found[cosine] = probe(search("random", world, Budget(candidates=16), scaled(1.0), candidates=around, top_k=4))
        assert found[cosine].seeds == 16
    # the noises of neighbours deviate by sqrt(1 - 0.99^2) = 0.141
    assert found[0.99].spread / found[0.0].spread == pytest.approx(0.141, rel=0.5)
    assert found[0.99].collapsed and not found[0.0].collapsed


@pytest.mark.parametrize("name", ["zero_order", "axes", "trust_region"])
def test_only_fresh_noises_count(name: str) -> None:
    report = report_of(candidates=40, name=name)
    fresh = [e for e in report.finished if e.seed is not None]
    if len(fresh) < FEWEST:
        with pytest.raises(SearchError, match=f"got {len(fresh)} judged candidates with fresh noises"):
            probe(report)
        assert collapse(report) == []
    else:
        found = probe(report)
        assert found.seeds == len(fresh) < 40
        assert found.spread == pytest.approx(statistics.stdev(e.score for e in fresh))


def test_what_could_not_be_judged_does_not_count() -> None:
    report = report_of(verifier=often_nan(), candidates=20)
    judged = [e for e in report.finished if math.isfinite(e.score)]
    assert 4 <= len(judged) < 20 and probe(report).seeds == len(judged)


def test_survivors_of_pruning_are_never_called_collapsed() -> None:
    report = report_of(spread=0.01, name="pruned", budget=Budget(nfe=200))
    found = probe(report)
    assert found.survivors and "survivors" in found.verdict and not found.collapsed


def test_too_few_seeds_are_refused() -> None:
    with pytest.raises(SearchError, match="got 3 judged candidates.*at least 4"):
        probe(report_of(candidates=3))
    assert collapse(report_of(candidates=3)) == []


def test_the_distance_of_pictures_is_the_root_mean_square_of_their_fields() -> None:
    flat = [torch.full((1, 64, 48, 3), value) for value in (0.1, 0.5, 0.6)]
    assert distance(flat) == pytest.approx((0.4 + 0.5 + 0.1) / 3, abs=1e-6)
    board = (torch.arange(64)[:, None] + torch.arange(64)) % 2.0
    fine = board[None, ..., None].expand(1, 64, 64, 3)
    assert distance([fine, 1 - fine]) == pytest.approx(0, abs=1e-6)  # what is finer than a field does not count
    video = torch.rand(2, 3, 32, 32, 3)
    assert distance([video, video]) == 0 and distance([video, video + 0.25]) == pytest.approx(0.25, abs=1e-6)


def test_the_text_says_the_numbers_behind_the_verdict() -> None:
    found = probe(report_of())
    lines = found.text.splitlines()
    assert lines[0] == found.verdict and lines[1].startswith("12 seeds; their scores deviate by ")
    assert f"{found.share:.2f} of the verifier's own scale" in lines[1] and "pictures differ by" in lines[2]
    assert lines[3].startswith("expected gain") and all(f"at {count}" in lines[3] for count in (4, 16, 64))
