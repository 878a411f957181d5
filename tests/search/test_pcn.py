"""pCN: the Gaussian prior is kept, the tilt is the one that was asked for, and Metropolis accepts at the known rate."""

import math

import pytest
import torch
from torch import Tensor

from pack.search import Budget, Candidates, Recipe, SearchError, SearchReport, Space, algorithm
from pack.search.pcn import accepted, drawn, spread
from pack.search.recipe import gaussian
from pack.search.types import Finish, Row
from pack.tests.search.test_zero_order import ONE_PEAK
from pack.tests.search.worlds import Counting, RankMean, Recorded, Scorer, first, search, second

LIKE = torch.empty(1, 12)


def noise(recipe: Recipe) -> Tensor:
    return recipe.noise(lambda seed: gaussian(LIKE, seed)).double().flatten()


def chains_of(recorded: Recorded, chains: int) -> list[list[Row]]:
    """The states before every step, with their scores."""
    steps = [
        reply[:chains]
        for request, reply in zip(recorded.requests, recorded.replies, strict=False)
        if isinstance(request, Finish) and len(reply) == 2 * chains and reply[-1].parent is not None
    ]
    assert len(steps) > 10
    return steps


def run_chains(verifier: Scorer, candidates: int, **settings: float) -> tuple[SearchReport, list[list[Row]]]:
    recorded = Recorded("pcn", **settings)
    sampler = Counting(steps=3, means=ONE_PEAK, spread=1.0, batch=64)
    report = search(recorded.algorithm, sampler, Budget(candidates=candidates), verifier)
    return report, chains_of(recorded, int(settings["chains"]))


def test_without_a_potential_every_step_is_taken_and_the_noise_stays_standard_normal() -> None:
    flat = Scorer("flat", lambda clean: torch.zeros(len(clean)))
    _, steps = run_chains(flat, 3000, starts=100, chains=100, cosine=0.8)
    for before, after in zip(steps, steps[1:], strict=False):
        assert all(len(y.recipe.operations) == len(x.recipe.operations) + 1 for x, y in zip(before, after, strict=True))
    assert len(steps) >= 28
    early, late = (torch.stack([noise(row.recipe) for row in steps[i]]) for i in (3, 25))
    # starts are drawn with replacement, but 25 steps at 0.8 leave 0.4 % of them: 100 x 12 independent numbers.
    # 4 standard errors of the mean, of the variance, and of the correlation over three steps
    assert abs(float(late.mean())) < 4 / math.sqrt(1200)
    assert abs(float((late**2).mean()) - 1) < 4 * math.sqrt(2 / 1200)
    later = torch.stack([noise(row.recipe) for row in steps[6]])
    assert abs(float((early * later).mean()) - 0.8**3) < 4 * math.sqrt(2 / 1200)


def test_a_linear_score_shifts_the_prior_by_its_gradient_over_the_temperature() -> None:
    """score = g x with x ~ N(0, 1): the tilted law is N(g / T, 1), and acceptance has the rate of an exact chain."""
    cosine, temperature = 0.7, 1.0
    report, steps = run_chains(first(), 6000, starts=400, chains=100, cosine=cosine, temperature=temperature)
    scores = torch.tensor([e.score for e in report.evaluations[:400]], dtype=torch.float64)
    starts = torch.stack([noise(Recipe(e.recipe)) for e in report.evaluations[:400]])
    slope = float((starts[:, 0] * scores).sum() / (starts[:, 0] ** 2).sum())
    assert float((scores - slope * starts[:, 0]).abs().max()) < 1e-3  # one peak: the sampler is linear
    scale = temperature * spread([Row(Recipe(e.recipe), 0.0, score=e.score) for e in report.evaluations[:400]])
    shift = slope / scale
    assert len(steps) >= 50
    kept = steps[20::5]
    x = torch.tensor([[row.score / slope for row in states] for states in kept], dtype=torch.float64)
    # five steps apart states still correlate: count every chain as three independent numbers; 4 standard errors
    bound = 4 / math.sqrt(3 * 100)
    assert abs(float(x.mean()) - shift) < bound and abs(float(x.var()) - 1) < bound * math.sqrt(2)
    others = torch.stack([noise(row.recipe)[1:] for row in kept[-1]])
    assert abs(float(others.mean())) < 4 / math.sqrt(1100)
    assert abs(float((others**2).mean()) - 1) < 4 * math.sqrt(2 / 1100)
    moved = [y.id != x.id for a, b in zip(steps[20:], steps[21:], strict=False) for x, y in zip(a, b, strict=True)]
    generator = torch.Generator().manual_seed(1)
    a, e = torch.randn(2, 400_000, generator=generator, dtype=torch.float64)
    a = a + shift
    b = cosine * a + math.sqrt(1 - cosine**2) * e
    rate = float(torch.exp((b - a) * shift).clamp(max=1).mean())
    assert 0.3 < rate < 0.9
    assert abs(sum(moved) / len(moved) - rate) < 4 * math.sqrt(rate * (1 - rate) / (len(moved) / 3))


def test_a_step_proposes_a_gaussian_mix_of_its_state() -> None:
    report, _ = run_chains(first(), 300, starts=8, chains=4, cosine=0.6)
    children = [e for e in report.evaluations if e.parent is not None]
    for e in children:
        assert e.parent is not None and e.recipe[-1]["op"] == "mix" and e.recipe[-1]["cosine"] == 0.6
        fresh = gaussian(LIKE, e.recipe[-1]["seed"]).double().flatten()
        expected = 0.6 * noise(Recipe(report.evaluations[e.parent].recipe)) + 0.8 * fresh
        assert (noise(Recipe(e.recipe)) - expected).abs().max() < 1e-5


def test_metropolis_accepts_by_the_ratio_and_never_moves_to_what_has_no_score() -> None:
    space, nan, count = Space(Candidates.of_seed(1), 5, 1.0), float("nan"), 4000
    cases = [(0.0, -0.5, 0.5, math.exp(-1)), (2.0, 1.9, 1.0, math.exp(-0.1)), (1.0, -9.0, 0.1, 0)]
    for old, new, scale, chance in cases:
        rate = sum(accepted(space, old, new, scale) for _ in range(count)) / count
        assert abs(rate - chance) <= 4 * math.sqrt(chance * (1 - chance) / count)
    for old, new in [(1.0, 1.0), (1.0, 2.0), (nan, -9.0), (nan, nan), (-math.inf, 0.0)]:
        assert all(accepted(space, old, new, 0.1) for _ in range(50))
    assert not any(accepted(space, -9.0, bad, 100.0) for bad in (nan, -math.inf) for _ in range(50))


def test_starts_are_drawn_by_their_tilted_weights() -> None:
    space, count = Space(Candidates.of_seed(1), 5, 1.0), 6000
    potentials = [0.0, 1.0, -math.inf, 2.0]
    picked = [drawn(space, potentials) for _ in range(count)]
    total = 1 + math.e + math.e**2
    for index, weight in enumerate([1, math.e, 0, math.e**2]):
        share = weight / total
        assert abs(picked.count(index) / count - share) <= 4 * math.sqrt(share * (1 - share) / count)
    assert {drawn(space, [-math.inf] * 3) for _ in range(100)} == {0, 1, 2}


@pytest.mark.parametrize(
    "scores, expected",
    [([1.0, 3.0], 1.0), ([2.0, 2.0], 1.0), ([0.1] * 3, 1.0), ([5.0, float("nan"), 1.0], 2.0), ([], 1.0)],
)
def test_the_spread_ignores_what_has_no_score_and_is_1_where_all_are_equal(
    scores: list[float], expected: float
) -> None:
    assert spread([Row(Recipe.of_seed(1), 0.0, score=score) for score in scores]) == expected


def test_a_temperature_of_zero_is_refused() -> None:
    with pytest.raises(SearchError, match="temperature=0; expected more than 0"):
        search(algorithm("pcn", temperature=0.0), Counting(), Budget(candidates=9))


def test_it_is_the_same_for_a_verifier_on_another_scale() -> None:
    large = Scorer("large", lambda clean: 1024 * clean[:, 0] + 4096)
    one, two = (search("pcn", Counting(steps=3), Budget(candidates=120), v) for v in (first(), large))
    assert [e.recipe for e in one.evaluations] == [e.recipe for e in two.evaluations]


def test_it_beats_random_search_at_equal_nfe_on_a_smooth_landscape() -> None:
    target = torch.linspace(-2, 2, 12, dtype=torch.float64)
    near = Scorer("near", lambda clean: -((clean - target) ** 2).sum(1))
    gains = []
    for seed in range(6):
        pair = []
        for name in ("pcn", "random"):
            sampler = Counting(steps=3, means=ONE_PEAK, spread=1.0)
            report = search(name, sampler, Budget(nfe=720), near, first_seed=seed, seed=seed)
            assert report.best is not None and report.nfe == 720
            pair.append(report.best.evaluation.score)
        gains.append(pair[0] - pair[1])
    assert sum(gain > 0 for gain in gains) >= 5 and sum(gains) / 6 > 1.0


def test_under_a_pooled_ensemble_chains_move() -> None:
    sampler = Counting(steps=3, means=ONE_PEAK, spread=1.0)
    report = search(algorithm("pcn"), sampler, Budget(candidates=100), RankMean(first(), second()), batch=4)
    assert max(len(e.recipe) for e in report.evaluations) > 4
