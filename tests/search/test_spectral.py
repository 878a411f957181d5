"""Spectral search: only the band differs from the base, samples stay white noise, the mean is that of the elites."""

import math

import pytest
import torch
from scipy.fft import dct
from torch import Tensor

from pack.search import Budget, Evaluation, Recipe, SearchReport, algorithm
from pack.search.recipe import gaussian
from pack.search.spectral import average, moved, size
from pack.tests.search.test_zero_order import ONE_PEAK, bumpy, noise
from pack.tests.search.worlds import Counting, RankMean, Scorer, first, search, second

LIKE = torch.empty(1, 12)


def spectral(candidates: int, verifier: Scorer | None = None, **settings: float) -> SearchReport:
    sampler = Counting(steps=3, means=ONE_PEAK, spread=1.0)
    return search(algorithm("spectral", **settings), sampler, Budget(candidates=candidates), verifier or first())


def spectrum(e: Evaluation) -> Tensor:
    return torch.from_numpy(dct(noise(e).numpy(), norm="ortho"))


def batches(report: SearchReport, starts: int, population: int) -> list[list[Evaluation]]:
    """The requests of a search: fresh noises, or the samples of one round."""
    out: list[list[Evaluation]] = []
    for e in report.evaluations:
        full = out and len(out[-1]) == (starts if out[-1][0].parent is None else population)
        if not out or full:
            out.append([])
        out[-1].append(e)
    return out


@pytest.mark.parametrize("band, low", [(0.25, 3), (0.5, 6), (1.0, 12)])
def test_every_sample_differs_from_its_base_in_the_band_alone_and_keeps_its_norm(band: float, low: int) -> None:
    report = spectral(80, bumpy(), band=band)
    samples = [e for e in report.evaluations if e.parent is not None]
    assert len(samples) > 50
    for e in samples:
        assert e.parent is not None
        base = report.evaluations[e.parent]
        assert base.parent is None and e.recipe[:-1] == base.recipe
        a, b = spectrum(e), spectrum(base)
        assert float((a - b)[low:].abs().max() if low < 12 else 0.0) < 2e-6
        assert float((a - b)[:low].abs().max()) > 0.01
        assert abs(float(noise(e).norm() / noise(base).norm()) - 1) < 1e-6
        assert Recipe(e.recipe).step_seed == base.recipe[0]["seed"]


def test_the_shares_of_a_sample_make_unit_variance_and_the_spread_shrinks_until_the_base_is_left() -> None:
    settings = {"starts": 4, "population": 6, "elites": 3, "smallest": 0.5}
    report = spectral(200, **settings)
    deviations: list[float] = []
    restarts = 0
    for batch in batches(report, 4, 6):
        if batch[0].parent is None:
            restarts += bool(deviations) and deviations[-1] < 0.75
            deviations = []
            continue
        shares = [(e.recipe[-1]["keep"], *e.recipe[-1]["weights"]) for e in batch]
        assert all(abs(sum(share**2 for share in each) - 1) < 1e-9 for each in shares)
        [deviation] = {round(e.recipe[-1]["weights"][-1], 12) for e in batch}
        assert deviation > 0.5 and deviation <= (deviations[-1] if deviations else 1.0) + 1e-9
        deviations.append(deviation)
    assert restarts >= 2


def test_samples_of_a_shrunken_search_are_still_standard_normal() -> None:
    """The verifier knows nothing of the noise, so over many searches every sample is white noise, whatever the mean."""
    generator = torch.Generator().manual_seed(4)
    blind = Scorer("blind", lambda clean: torch.rand(len(clean), generator=generator))
    last = []
    for seed in range(400):
        sampler = Counting(steps=1, means=ONE_PEAK, spread=1.0)
        chosen = algorithm("spectral", starts=3, population=4, elites=2, band=0.5)
        report = search(chosen, sampler, Budget(candidates=15), blind, first_seed=seed, seed=seed)
        assert report.evaluations[-1].recipe[-1]["weights"][-1] < 0.9
        last.append(noise(report.evaluations[-1]))
    flat = torch.stack(last)
    # 5 standard errors of every entry of mean and covariance
    assert float(flat.mean(0).abs().max()) < 5 / 20
    assert float((flat.T @ flat / 400 - torch.eye(12)).abs().max()) < 5 * math.sqrt(2 / 400)


@pytest.mark.parametrize("rate", [1.0, 0.4])
def test_the_mean_is_that_of_the_elites_bands(rate: float) -> None:
    """The bands are taken from the noises themselves, the mean from them by the textbook formula."""
    settings = {"starts": 4, "population": 6, "elites": 3, "band": 0.5, "smallest": 0.01, "rate": rate}
    report = spectral(40, **settings)
    starts, *rounds = [batch for batch in batches(report, 4, 6) if len(batch) in (4, 6)]
    base = max(starts, key=lambda e: e.score)
    norm = spectrum(base)[:6].norm()
    pool, mean = [base], torch.zeros(6, dtype=torch.float64)

    def unscaled(e: Evaluation) -> Tensor:
        """The mix of a band before it was brought to the norm of the base's."""
        if e.id == base.id:
            return spectrum(base)[:6]
        last = e.recipe[-1]
        own = last["keep"] * spectrum(base)[:6]
        for seed, weight in zip(last["seeds"], last["weights"], strict=True):
            own = own + weight * gaussian(torch.empty(1, 6), seed).double().flatten()
        assert (spectrum(e)[:6] - own * norm / own.norm()).abs().max() < 1e-5
        return own

    for batch in rounds:
        for e in batch:
            fresh = gaussian(torch.empty(1, 6), e.recipe[-1]["seeds"][-1]).double().flatten()
            assert (unscaled(e) - e.recipe[-1]["weights"][-1] * fresh - mean).abs().max() < 1e-6
        pool = sorted([*pool, *batch], key=lambda e: -e.score)[:3]
        mean = (1 - rate) * mean + rate * torch.stack([unscaled(e) for e in pool]).mean(0)
    assert len(rounds) >= 5


def test_mixes_add_up() -> None:
    mean = average([{1: 1.0}, {1: 0.5, 2: 0.5}, {3: 3.0}])
    assert mean == {1: 0.5, 2: pytest.approx(0.5 / 3), 3: 1.0}
    assert moved({1: 1.0, 4: 1.0}, {1: 0.0, 2: 2.0}, 0.25) == {1: 0.75, 4: 0.75, 2: 0.5}
    assert size({1: 0.6, 2: -0.8}) == pytest.approx(1.0)


def test_it_beats_random_search_at_equal_nfe_where_the_score_hangs_on_low_frequencies() -> None:
    place = (torch.arange(96, dtype=torch.float64) + 0.5) / 96
    layout = sum(torch.cos(math.pi * k * place) for k in range(1, 9)) / math.sqrt(8 * 48)  # of unit length
    fits = Scorer("fits", lambda clean: clean @ layout)
    gains = []
    for seed in range(6):
        pair = []
        for name in ("spectral", "random"):
            sampler = Counting(steps=3, means=torch.zeros(1, 96), spread=1.0)
            report = search(name, sampler, Budget(nfe=360), fits, first_seed=seed, seed=seed)
            assert report.best is not None and report.nfe == 360
            pair.append(report.best.evaluation.score)
        gains.append(pair[0] - pair[1])
    assert sum(gain > 0 for gain in gains) >= 5 and sum(gains) / 6 > 0.3


def test_what_has_no_score_is_no_elite() -> None:
    nan = float("nan")
    scores = iter([nan, 1.0, nan, 0.5] + [nan] * 5 + [3.0] + [nan] * 1000)
    shy = Scorer("shy", lambda clean: torch.tensor([next(scores) for _ in clean]))
    sampler = Counting(steps=3, means=ONE_PEAK, spread=1.0)
    chosen = algorithm("spectral", starts=4, population=6, elites=2)
    report = search(chosen, sampler, Budget(candidates=30), shy, batch=1)
    assert {e.parent for e in report.evaluations[4:]} == {1}
    assert report.best is not None and report.best.evaluation.id == 9
    second_round = report.evaluations[10].recipe[-1]
    assert second_round["keep"] == 0.5 and report.evaluations[9].recipe[-1]["seeds"][0] in second_round["seeds"]


def test_fewer_scores_than_elites_leave_out_those_without_one() -> None:
    nan = float("nan")
    scores = iter([1.0, nan, 2.0, nan, nan, 4.0] + [nan] * 1000)
    shy = Scorer("shy", lambda clean: torch.tensor([next(scores) for _ in clean]))
    sampler = Counting(steps=3, means=ONE_PEAK, spread=1.0)
    report = search(algorithm("spectral", starts=2, population=4), sampler, Budget(candidates=10), shy, batch=1)
    chosen = [report.evaluations[i].recipe[-1]["seeds"][0] for i in (2, 5)]
    for e in report.evaluations[6:]:
        assert e.recipe[-1]["seeds"][:2] == chosen[::-1] and e.recipe[-1]["keep"] == pytest.approx(1 / 3)


def test_under_a_pooled_ensemble_elites_are_ranked_in_one_pool() -> None:
    sampler = Counting(steps=3, means=ONE_PEAK, spread=1.0)
    pooled = search("spectral", sampler, Budget(candidates=80), RankMean(first()), batch=4)
    alone = search("spectral", sampler, Budget(candidates=80), first(), batch=4)
    assert [e.recipe for e in pooled.evaluations] == [e.recipe for e in alone.evaluations]
    both = search("spectral", sampler, Budget(candidates=80), RankMean(first(), second()), batch=4)
    assert max(len(e.recipe[-1].get("seeds", [])) for e in both.evaluations) > 8
