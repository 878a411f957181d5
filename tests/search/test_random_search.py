"""Random search: independent noises, and the gain that theory promises."""

import math

import pytest
import torch

from pack.search import Budget
from pack.search.seeds import candidate_seed
from pack.tests.search.worlds import Counting, search


def test_it_tries_fresh_seeds_in_order_and_nothing_else() -> None:
    report = search("random", Counting(), Budget(candidates=150))
    assert [e.seed for e in report.evaluations] == [candidate_seed(7, i) for i in range(150)]
    assert all(e.parent is None and e.sigma == 0 for e in report.evaluations)
    assert [e.candidate for e in report.evaluations] == list(range(150))


@pytest.mark.parametrize("flow", [True, False])
def test_the_best_of_n_has_the_mean_of_the_maximum_of_n_gaussians(flow: bool) -> None:
    # the ODE on one centred Gaussian is linear, so the score is `gain` times a unit Gaussian, whatever the steps
    sampler = Counting(flow, steps=4, means=torch.zeros(1, 3), spread=1.0, batch=16)
    gain = sampler.sigmas[0]
    for sigma, following in zip(sampler.sigmas, sampler.sigmas[1:], strict=False):
        (a, b), (c, d) = sampler.coefficients(sigma), sampler.coefficients(following)
        shrink = a / (a**2 + b**2)
        gain *= c * shrink + d * (1 - a * shrink) / b
    runs, best = 150, {4: 1.02938, 16: 1.76599}  # E[max of n], Harter 1961
    curves = [search("random", sampler, Budget(candidates=16), first_seed=s, batch=16).finished for s in range(runs)]
    for n, expected in best.items():
        mean = sum(max(e.score for e in finished[:n]) for finished in curves) / runs / gain
        assert abs(mean - expected) < 4 * 0.72 / math.sqrt(runs)


def test_candidates_of_one_search_are_independent() -> None:
    sampler = Counting(steps=2, means=torch.zeros(1, 3), spread=1.0, batch=64)
    report = search("random", sampler, Budget(candidates=1000))
    scores = torch.tensor([e.score for e in report.finished])
    scores = (scores - scores.mean()) / scores.std()
    assert abs(float((scores[1:] * scores[:-1]).mean())) < 4 / math.sqrt(1000)
