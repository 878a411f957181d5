"""Guided search: slopes are right and free, what has none is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pack.search import Algorithm, Budget, Row, SearchError, SearchReport, algorithm
from pack.search.types import Plan, Search, predict, slope
from pack.tests.search.worlds import Counting, Keeping, RankMean, Recorded, Scorer, first, search, second

WEIGHTS = torch.linspace(-1, 1, 12, dtype=torch.float64)


def linear() -> Scorer:
    """A weighted sum of the clean vector."""
    return Scorer("linear", lambda clean: clean @ WEIGHTS)


def by_noise(report: SearchReport) -> dict[int, float]:
    """Scores of the finished images by the seed of their start noise."""
    return {e.recipe[0]["seed"]: e.score for e in report.finished}


def looked_at(reply: list[Row]) -> Algorithm:
    """Asks for the slopes of two fresh noises, keeps the reply and ends."""

    def once(space: Any, plan: Plan) -> Search:
        rows = yield from predict(space.fresh(2))
        reply.extend((yield from slope(rows)))

    return Algorithm("once", once, acts_midway=True, guides=True)


def test_the_slope_of_a_linear_score_is_its_weights_and_costs_no_model_call() -> None:
    reply: list[Row] = []
    means = torch.randn(5, 12, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    sampler = Counting(means=means, spread=0.5)
    report = search(looked_at(reply), sampler, Budget(nfe=1000), linear())
    for row in reply:
        assert row.x0 is not None and row.gradient is not None and row.gradient.shape == row.x0.shape
        assert row.score == pytest.approx(float(row.x0.double().flatten() @ WEIGHTS), abs=1e-4)
        assert torch.allclose(row.gradient.double().flatten(), WEIGHTS, rtol=0, atol=1e-3)
    # one call each for the predictions; the driver finishes one image, because none was
    assert report.nfe == sampler.rows == 2 + 6


def test_a_row_without_a_score_has_no_slope() -> None:
    probe: list[Row] = []
    search(looked_at(probe), Counting(flow=False), Budget(nfe=100))
    middle = sum(row.score for row in probe) / 2
    nan = torch.tensor(float("nan"), dtype=torch.float64)
    half = Scorer("half", lambda clean: torch.where(clean[:, 0] > middle, nan, clean[:, 0]))
    reply: list[Row] = []
    search(looked_at(reply), Counting(flow=False), Budget(nfe=100), half)
    assert sorted(row.gradient is None for row in reply) == [False, True]
    assert all((row.gradient is None) == (row.score != row.score) for row in reply)


@pytest.mark.parametrize("flow", [True, False])
def test_without_strength_it_is_random_search(flow: bool) -> None:
    budget = Budget(nfe=60)
    plain = search("random", Counting(flow), budget, linear())
    guided = search(algorithm("guided", strength=0.0, transition="ode"), Counting(flow), budget, linear())
    assert by_noise(guided) == pytest.approx(by_noise(plain), abs=1e-4)


@pytest.mark.parametrize("flow", [True, False])
def test_guided_images_score_more_than_those_of_the_same_noises(flow: bool) -> None:
    sampler = {"means": torch.zeros(1, 12), "spread": 1.0}
    budget = Budget(nfe=126)
    plain = search("random", Counting(flow, **sampler), budget, linear())
    guided = search(algorithm("guided", transition="ode"), Counting(flow, **sampler), budget, linear())
    assert len(plain.finished) == len(guided.finished) == 21
    assert guided.finished[0].score == plain.finished[0].score  # the user's own is not guided
    before, after = by_noise(plain), by_noise(guided)
    gains = [after[seed] - before[seed] for seed in before if seed != 7]
    assert len(gains) == 20 and min(gains) > 0 and sum(gains) / len(gains) > (0.3 if flow else 0.05)


def test_a_guided_winner_has_no_seed_and_says_how_it_was_guided() -> None:
    report = search(algorithm("guided", strength=0.3, end=0.5, transition="ode"), Counting(), Budget(nfe=60), linear())
    own, *others = report.finished
    assert own.seed == 7 and own.recipe == ({"op": "seed", "seed": 7},)
    for evaluation in others:
        assert evaluation.seed is None
        assert evaluation.recipe[1] == {"op": "uphill", "strength": 0.3, "from": 1.0, "to": pytest.approx(0.5)}


def test_what_has_no_slope_is_refused_before_any_model_call() -> None:
    class Deaf(Scorer):
        differentiable = False

    for verifier in (RankMean(first(), second()), Deaf("deaf", lambda clean: clean[:, 0])):
        sampler = Counting()
        with pytest.raises(SearchError, match="has none"):
            search("guided", sampler, Budget(nfe=100), verifier)
        assert sampler.rows == 0


@pytest.mark.parametrize(
    "settings", [{"strength": -1.0}, {"images": 0}, {"start": 0.6, "end": 0.5}, {"transition": "x"}, {"eta": 2.0}]
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(SearchError, match="guided: got"):
        search(algorithm("guided", **settings), Counting(), Budget(nfe=100))


def test_images_go_down_together_and_begin_again() -> None:
    recorded = Recorded("guided", images=3)
    search(recorded.algorithm, Counting(), Budget(nfe=6 + 2 * 18), linear(), batch=8)
    sizes = [len(request.rows) for request in recorded.requests]
    assert sizes[0] == 1 and set(sizes[1:]) == {3}


@pytest.mark.parametrize("steps, settings", [(1, {}), (20, {"start": 0.96, "end": 0.96}), (4, {"start": 0.9})])
def test_where_no_step_is_guided_it_is_refused(steps: int, settings: dict[str, float]) -> None:
    sampler = Counting(steps=steps)
    with pytest.raises(SearchError, match=f"guided: got start=.* of {steps} steps leave none to guide"):
        search(algorithm("guided", **settings), sampler, Budget(nfe=100), linear())
    assert sampler.rows == 0


def test_smc_with_guidance_leaves_their_seeds_to_images_that_it_does_not_move() -> None:
    report = search(algorithm("smc", guidance=0.3), Counting(steps=1), Budget(nfe=10), linear())
    plain = search("random", Counting(steps=1), Budget(nfe=10), linear())
    assert [e.seed for e in report.finished] == [e.seed for e in plain.finished]
    assert None not in {e.seed for e in report.finished}


def test_a_micro_batch_is_decoded_judged_and_followed_together() -> None:
    found = {}
    for batch in (4, 1):
        sampler, verifier = Counting(), linear()
        found[batch] = report = search("guided", sampler, Budget(nfe=6 + 3 * 4 * 6), verifier, batch=batch)
        looks, ends = len(report.evaluations) - len(report.finished), len(report.finished) - 1
        assert (looks, ends) == (3 * 4 * 5, 3 * 4)
        assert sampler.calls["decode"] == 1 + (looks + ends) / batch
        assert verifier.calls == 1 + (2 * looks + ends) / batch  # a look is judged, and then followed
    assert found[4].curve() == found[1].curve()


@pytest.mark.parametrize("batch", [1, 2])
def test_what_a_gradient_keeps_is_let_go_before_the_next_is_decoded(batch: int) -> None:
    sampler = Keeping()
    search("guided", sampler, Budget(nfe=30), linear(), batch=batch)
    assert len(sampler.ways) == 4 * 5 and sampler.most_kept == 0


@pytest.mark.parametrize("chosen", [algorithm("guided"), algorithm("smc", guidance=0.3)])
def test_an_automatic_micro_batch_is_one_row_since_rounding_grows_along_gradients(chosen: Algorithm) -> None:
    sampler = Counting(batch=4)
    search(chosen, sampler, Budget(nfe=100), linear())
    assert sampler.largest == 1


def test_memory_that_runs_out_on_the_way_back_halves_what_goes_together() -> None:
    class Large(Scorer):
        """Has room for the way back of two images."""

        def score(self, images: torch.Tensor, prompt: str) -> torch.Tensor:
            if images.requires_grad and len(images) > 2:
                raise torch.OutOfMemoryError("no memory left")
            return super().score(images, prompt)

    budget, sampler = Budget(nfe=54), Counting()
    expected = search("guided", Counting(), budget, linear(), batch=4)
    report = search("guided", sampler, budget, Large("linear", lambda clean: clean @ WEIGHTS), batch=4)
    # products of fewer rows at once may be rounded otherwise, in the last digit
    assert report.curve() == [pytest.approx(point, rel=1e-12) for point in expected.curve()]
    assert [note for note in report.notes if "out of memory" in note] == [
        "verifier: out of memory at NFE 10, batch 4 -> 2"
    ]
    looks = 1 + 2 * (2 * 5 - 1)  # afterwards no more are decoded than can be followed
    assert sampler.calls["decode"] == 1 + looks + 2
