"""Intervals, best-of-N from recorded candidates, and the factor of compute, against counting and formulas."""

import math
from itertools import combinations

import numpy as np
import pytest

from pack.benchmarks.statistics import (
    best_of_n,
    bounds,
    clustered,
    efficiency,
    factor,
    matched,
    of_best,
    rated,
    resamples,
    said,
)


def test_best_of_n_is_the_mean_over_all_subsets() -> None:
    scores = np.random.default_rng(1).normal(size=(2, 6))
    values = np.random.default_rng(2).normal(size=(2, 6))
    for n in range(1, 7):
        for prompt in range(2):
            subsets = list(combinations(range(6), n))
            winners = [max(subset, key=lambda i: scores[prompt, i]) for subset in subsets]
            assert best_of_n(scores)[n - 1, prompt] == pytest.approx(np.mean([scores[prompt, i] for i in winners]))
            held_out = np.mean([values[prompt, i] for i in winners])
            assert of_best(scores, values)[n - 1, prompt] == pytest.approx(held_out)


def test_the_best_of_all_of_many_candidates_is_the_best() -> None:
    scores = np.random.default_rng(3).normal(size=(1, 256))
    table = best_of_n(scores)
    assert table[-1, 0] == pytest.approx(scores.max()) and table[0, 0] == pytest.approx(scores.mean())
    assert np.all(np.diff(table[:, 0]) > 0)


def test_a_method_that_is_best_of_n_with_twice_the_candidates_has_factor_two() -> None:
    curve = np.log(np.arange(1, 257))
    assert factor(curve, [8], math.log(16)) == pytest.approx(2, rel=1e-3)
    assert factor(curve, [8], math.log(4)) == pytest.approx(0.5, rel=1e-3)


def test_the_factor_over_several_budgets_multiplies_all_of_them() -> None:
    curve = np.log(np.arange(1, 257))
    counts = [4, 8, 16, 32]
    target = float(np.mean([math.log(3 * n) for n in counts]))
    assert factor(curve, counts, target) == pytest.approx(3, rel=1e-3)


def test_what_lies_beyond_the_curve_is_not_extrapolated() -> None:
    curve = np.log(np.arange(1, 257))
    assert factor(curve, [32], 6.0) == math.inf
    assert factor(curve, [4], -0.1) == 0.0
    assert factor(curve, [4], 0.0) == pytest.approx(0.25)
    least, most = bounds(256, [4, 32])
    assert (least, most) == (0.25, 8.0)
    assert said((math.inf, 1.5, math.inf), least, most) == "> 8 [1.50, > 8]"
    assert said((0.0, 0.0, 0.3), least, most) == "< 0.25 [< 0.25, 0.30]"


def test_a_curve_that_falls_again_gives_the_first_place_that_reaches_the_target() -> None:
    curve = np.array([0.0, 1.0, 2.0, 1.5, 1.5, 2.5, 1.0, 1.0])
    assert factor(curve, [1], 2.0) == pytest.approx(3, rel=1e-2)
    assert factor(curve, [1], 2.25) == pytest.approx(5.5, rel=1e-2)


def test_efficiency_compares_with_the_better_sampler_on_the_same_prompts() -> None:
    rng = np.random.default_rng(4)
    hardness = rng.normal(scale=10, size=60)  # of the prompts: it cancels in pairs
    worse = np.log(np.arange(1, 257))[:, None] + hardness
    better = worse + math.log(2)
    found = np.stack([better[16 - 1]]) + rng.normal(scale=0.1, size=60)  # as good as 16 candidates
    weights = resamples(60, 400)
    middle, low, high = efficiency(found, [worse, better], [8], weights)
    assert low < 2 < high and high / low < 1.1 and middle == pytest.approx(2, rel=0.05)
    assert efficiency(found, [worse], [8], weights)[0] == pytest.approx(2 * middle, rel=0.01)


def test_the_interval_of_efficiency_covers_the_truth_about_95_times_in_100() -> None:
    rng = np.random.default_rng(5)
    curve = np.log(np.arange(1, 257))[:, None] * np.ones(40)
    weights = resamples(40, 200)
    truths = 0
    for _ in range(100):
        found = math.log(16) + rng.normal(scale=1.0, size=(1, 40))
        _, low, high = efficiency(found, [curve], [8], weights)
        truths += low <= 2 <= high
    assert 88 <= truths <= 99


def test_weights_of_a_bootstrap_begin_with_all_prompts_alike() -> None:
    weights = resamples(10, 50)
    assert weights.shape == (51, 10) and np.allclose(weights.sum(axis=1), 1)
    assert np.all(weights[0] == 0.1) and not np.all(weights[1] == 0.1)
    assert np.array_equal(weights, resamples(10, 50))


def test_intervals_of_means_and_rates() -> None:
    mean, low, high = clustered([0.0, 1.0, 2.0, 3.0])
    half = 1.959964 * math.sqrt(5 / 3 / 4)
    assert (mean, low, high) == pytest.approx((1.5, 1.5 - half, 1.5 + half))
    assert math.isnan(clustered([1.0])[1])
    rate, low, high = rated([True] * 5 + [False] * 5)
    assert rate == 0.5 and low == pytest.approx(1 - high)


def test_matched_pass_rates_by_hand_and_that_agreement_is_no_certainty() -> None:
    first, second = [True] * 6 + [False] * 4, [True] * 2 + [False] * 8  # 4 better, 0 worse
    middle, low, high = matched(first, second)
    assert middle == pytest.approx(0.4)
    centre, spread = 4 / 12, 1.959964 * math.sqrt(5 - 16 / 12) / 12
    assert (low, high) == pytest.approx((centre - spread, centre + spread))
    same = matched(first, first)
    assert same[0] == 0 and same[1] == pytest.approx(-same[2]) and same[2] > 0.1
