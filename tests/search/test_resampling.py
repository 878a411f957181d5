"""Resampling: counts that are unbiased, how far they scatter, and what never survives."""

import math
from collections.abc import Sequence

import pytest
import torch

from pack.search.resampling import RESAMPLING, effective_size, normalised, top

NAN = float("nan")
RANDOM = pytest.mark.parametrize("method", list(RESAMPLING))
WEIGHTS = pytest.mark.parametrize(
    "weights",
    [
        [0.25, 0.25, 0.25, 0.25],
        [0.5, 0.3, 0.15, 0.05],
        [0.05, 0.15, 0.3, 0.5],
        [0.97, 0.01, 0.01, 0.01],
        [0.0, 0.6, 0.0, 0.4, 0.0],
        [0.123, 0.077, 0.2, 0.01, 0.19, 0.25, 0.15],
        [1.0],
    ],
)


def counts(parents: Sequence[int], size: int) -> torch.Tensor:
    return torch.bincount(torch.tensor(parents), minlength=size).double()


@RANDOM
@WEIGHTS
def test_every_particle_leaves_its_weights_share_in_the_mean(method: str, weights: list[float]) -> None:
    size, runs = len(weights), 8000
    drawn = torch.stack([counts(RESAMPLING[method](weights, seed), size) for seed in range(runs)])
    expected = size * torch.tensor(weights, dtype=torch.float64)
    assert torch.equal(drawn.sum(1), torch.full((runs,), float(size), dtype=torch.float64))
    error = drawn.std(0) / math.sqrt(runs)
    assert bool(((drawn.mean(0) - expected).abs() <= 4.5 * error + 1e-9).all())  # 4.5 standard errors, or exactly


@pytest.mark.parametrize("method", ["systematic", "ssp"])
@WEIGHTS
def test_the_counts_of_the_quiet_methods_are_the_share_rounded(method: str, weights: list[float]) -> None:
    expected = len(weights) * torch.tensor(weights, dtype=torch.float64)
    for seed in range(500):
        drawn = counts(RESAMPLING[method](weights, seed), len(weights))
        assert bool(((drawn - expected).abs() < 1 + 1e-9).all())


def test_multinomial_counts_scatter_as_their_name_says() -> None:
    weights, runs = [0.5, 0.3, 0.15, 0.05], 8000
    drawn = torch.stack([counts(RESAMPLING["multinomial"](weights, seed), 4) for seed in range(runs)])
    shares = torch.tensor(weights, dtype=torch.float64)
    expected = 4 * (torch.diag(shares) - torch.outer(shares, shares))
    assert float((torch.cov(drawn.T) - expected).abs().max()) < 0.05


def test_the_quiet_methods_scatter_least_and_in_this_order() -> None:
    weights = [0.4, 0.25, 0.2, 0.15]
    scatter = {}
    for method, resample in RESAMPLING.items():
        drawn = torch.stack([counts(resample(weights, seed), 4) for seed in range(3000)])
        scatter[method] = float(drawn.var(0).sum())
    assert scatter["ssp"] < 0.4 * scatter["multinomial"] and scatter["systematic"] < 0.4 * scatter["multinomial"]


@RANDOM
def test_equal_weights_keep_everybody_where_the_method_is_quiet(method: str) -> None:
    for size in (1, 2, 3, 7, 16):
        kept = RESAMPLING[method]([1 / size] * size, 5)
        assert len(kept) == size and kept == sorted(kept)
        if method != "multinomial":
            assert kept == list(range(size))


@RANDOM
def test_the_same_seed_gives_the_same_parents_and_another_seed_others(method: str) -> None:
    weights = normalised([0.1 * i for i in range(12)])
    drawn = [RESAMPLING[method](weights, seed) for seed in range(20)]
    assert drawn == [RESAMPLING[method](weights, seed) for seed in range(20)]
    assert len({tuple(parents) for parents in drawn}) > 3


@RANDOM
@pytest.mark.parametrize("place", [0, 2, 4])
def test_what_could_not_be_judged_never_survives(method: str, place: int) -> None:
    scores = [0.2, 0.1, 0.4, -0.3, 0.0]
    for bad in (NAN, -math.inf, math.inf):
        logs = [bad if i == place else s for i, s in enumerate(scores)]
        weights = normalised(logs)
        assert weights[place] == 0 and sum(weights) == pytest.approx(1)
        for seed in range(300):
            assert place not in RESAMPLING[method](weights, seed)
        assert place not in top(logs, 5)


@pytest.mark.parametrize("bad", [NAN, -math.inf])
def test_where_nothing_could_be_judged_all_weigh_the_same(bad: float) -> None:
    assert normalised([bad] * 5) == [0.2] * 5
    assert normalised([bad, -math.inf]) == [0.5, 0.5]


def test_weights_are_the_softmax_and_do_not_overflow() -> None:
    logs = [1.0, 2.0, 4.5, -3.0]
    expected = torch.softmax(torch.tensor(logs, dtype=torch.float64), 0)
    assert torch.allclose(torch.tensor(normalised(logs), dtype=torch.float64), expected, atol=1e-15)
    assert normalised([1e6, 1e6 - 800, -1e9]) == [1.0, 0.0, 0.0]


def test_the_effective_size_runs_from_one_to_all() -> None:
    assert effective_size([0.25] * 4) == pytest.approx(4)
    assert effective_size([1.0, 0.0, 0.0]) == 1
    assert effective_size([0.5, 0.5, 0.0, 0.0]) == pytest.approx(2)


def test_top_gives_the_best_equal_shares_and_the_first_the_rest() -> None:
    values = [0.1, 0.4, 0.2, 0.3, -900.0]
    assert top(values, 0) == top(values, 1) == [1] * 5
    assert top(values, 2) == [1, 1, 1, 3, 3]
    assert top(values, 3) == [1, 1, 2, 3, 3]
    assert top(values, 9) == [0, 1, 2, 3, 4]
    assert top([0.5, 0.5], 1) == [0, 0]  # the first among equals
    assert top([NAN, -1e300, -math.inf, NAN], 3) == [1] * 4
    assert top([NAN, -math.inf, NAN], 3) == [0, 1, 2]
