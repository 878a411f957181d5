"""Precision, recall, diversity and the jackknife on sets whose values are known."""

import math

import pytest
import torch

from pack.benchmarks.sets import coverage, diversity, jackknife, precision_recall, radii


def line(*places: float) -> torch.Tensor:
    return torch.tensor(places)[:, None]


def test_the_radius_is_the_distance_to_the_kth_nearest_other_row() -> None:
    assert radii(line(0, 1, 3, 7), k=2).tolist() == [3, 2, 3, 6]
    assert radii(line(5, 5, 5, 9), k=2).tolist() == [0, 0, 0, 4]


def test_precision_and_recall_by_hand() -> None:
    true, made = line(0, 1, 2, 10), line(0.5, 1.5, 30)
    # balls of the true ones with k = 1: [-1, 1], [0, 2], [1, 3], [2, 18]; of the made ones: [-0.5, 1.5], [0.5, 2.5]
    # and [1.5, 58.5]
    precision, recall = precision_recall(made, true, k=1)
    assert precision == pytest.approx(2 / 3)
    assert recall == 1.0
    assert precision_recall(made[:2], true, k=1) == (1.0, 0.75)


def test_a_set_of_its_own_covers_itself_whole() -> None:
    rows = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    assert precision_recall(rows, rows.flip(0)) == (1.0, 1.0)


def test_winners_of_one_mode_of_two_keep_precision_and_lose_half_of_recall() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(200, 2, generator=generator) + torch.tensor([x, 0.0]) for x in (-20, 20))
    fresh = torch.randn(200, 2, generator=generator) + torch.tensor([-20.0, 0.0])
    precision, recall = precision_recall(fresh, torch.cat((left, right)))
    assert precision > 0.95
    assert 0.45 < recall <= 0.5


def test_coverage_by_hand_and_that_an_outlier_buys_none() -> None:
    true = line(0, 1, 2, 10)  # radii with k = 1: 1, 1, 1, 8
    assert coverage(line(0.5), true, k=1) == 0.5
    assert coverage(line(3, -1), true, k=1) == 0.75
    made = line(0, 0.1, 0.2, 1000)
    assert precision_recall(made, true, k=3)[1] == 1.0  # the outlier's ball holds everything
    assert coverage(made, true, k=1) == 0.5


def test_far_away_nothing_is_covered() -> None:
    rows = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    assert precision_recall(rows + 1000, rows) == (0.0, 0.0)


def test_a_set_that_is_too_small_is_refused() -> None:
    with pytest.raises(ValueError, match="more than 3"):
        precision_recall(line(0, 1, 2), line(0, 1, 2, 3))


def test_diversity_is_the_mean_distance_of_two_different_pictures() -> None:
    assert diversity(line(0, 1, 3)) == pytest.approx(2.0)
    assert diversity(line(4, 4, 4)) == 0.0


def test_the_jackknife_of_a_mean_is_its_usual_interval() -> None:
    values = [1.0, 4.0, 2.0, 8.0]
    middle, low, high = jackknife(lambda groups: sum(values[g] for g in groups) / len(groups), len(values))
    spread = 1.959964 * float(torch.tensor(values).std()) / math.sqrt(len(values))
    assert middle == 3.75
    assert (low, high) == pytest.approx((3.75 - spread, 3.75 + spread))
