"""Gradient search: gradients are right, what they cost is counted, the noise climbs, and what has none is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pack.search import Algorithm, Budget, Recipe, Row, SearchError, algorithm
from pack.search.differentiable import differentiable, gradient_of
from pack.search.gradient_search import away, gradient_search
from pack.search.recipe import describe, gaussian
from pack.search.types import Gradient, Plan, Search, finish, gradient
from pack.tests.search.worlds import Counting, Keeping, Pairs, RankMean, Scorer, first, often_nan, search, second

WEIGHTS = torch.linspace(-1, 1, 12, dtype=torch.float64)


def linear() -> Scorer:
    """A weighted sum of the clean vector."""
    return Scorer("linear", lambda clean: clean @ WEIGHTS)


def asked(reply: list[Row]) -> Algorithm:
    """Asks for the gradient at candidate 0, keeps the reply and ends."""

    def once(space: Any, plan: Plan) -> Search:
        reply.extend((yield from gradient(space.fresh(1))))

    return Algorithm("once", once, needs_gradient=True)


def test_the_way_back_through_the_decoder_is_let_go_before_the_one_through_the_model() -> None:
    sampler = Keeping()
    search("gradient", sampler, Budget(nfe=100), linear())
    assert len(sampler.ways) > 2 and sampler.most_kept == 0


def score_of(sampler: Counting, noise: Tensor, verifier: Scorer) -> float:
    """The score of the candidate that starts at a noise."""

    class Free:
        def forward(self, rows: int) -> None: ...
        def backward(self, rows: int) -> None: ...
        def model_rows(self, rows: int) -> None: ...

    row = Row(Recipe.of_seed(7).then(op="ascent", cosine=1.0), sampler.sigmas[0], noise=noise)
    [image] = sampler.decode(sampler.advance([row], sampler.sigmas, Free()))
    return float(verifier.score(image, "").double().mean())


@pytest.mark.parametrize("world", [Counting, Pairs])
@pytest.mark.parametrize("flow", [True, False])
@pytest.mark.parametrize("order", [1, 2])
def test_the_gradient_is_that_of_finite_differences(world: type[Counting], flow: bool, order: int) -> None:
    means = torch.randn(5, 12, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    sampler, reply = world(flow, order, means=means, spread=0.5), []  # in double precision, for small differences
    search(asked(reply), sampler, Budget(nfe=1000), linear())
    [row] = reply
    assert row.noise is not None and row.gradient is not None and row.gradient.shape == row.noise.shape
    assert torch.equal(row.noise, gaussian(torch.empty(1, 12), 7))
    directions = torch.randn(4, 1, 12, generator=torch.Generator().manual_seed(1))
    for direction in directions:
        up, down = (score_of(sampler, row.noise + step * direction, linear()) for step in (1e-3, -1e-3))
        expected = (up - down) / 2e-3
        assert float((row.gradient * direction).sum()) == pytest.approx(expected, rel=0.01, abs=1e-4)


@pytest.mark.parametrize("order", [1, 2])
def test_a_gradient_costs_a_forward_again_and_two_for_the_way_back(order: int) -> None:
    reply: list[Row] = []
    sampler = Counting(order=order)
    report = search(asked(reply), sampler, Budget(nfe=1000), linear())
    forwards = 6 if order == 1 else 11
    assert (sampler.rows, sampler.backward_rows) == (2 * forwards, forwards)
    assert report.nfe == 4 * forwards and report.model_rows == 2 * forwards
    assert [e.nfe for e in report.evaluations] == [forwards]  # the image was there before the way back
    assert report.stopped == {"algorithm finished": 1}


def test_without_room_for_a_gradient_the_row_is_finished_alone() -> None:
    for nfe, has_gradient in [(29, False), (30, True)]:  # 6 for it, 18 for its gradient, 6 for who follows
        reply: list[Row] = []
        report = search(asked(reply), Counting(), Budget(nfe=nfe), linear())
        assert [row.gradient is not None for row in reply] == [has_gradient]
        assert report.nfe == (24 if has_gradient else 6) and len(report.finished) == 1


def test_what_is_left_of_the_budget_goes_to_fresh_noises() -> None:
    report = search("gradient", Counting(), Budget(nfe=24 + 17), linear())
    assert [[o["op"] for o in e.recipe] for e in report.finished] == [["seed"], ["seed", "ascent"], ["seed"]]
    assert report.nfe == 24 + 12


def test_a_candidate_is_rendered_again_for_its_gradient_but_recorded_once() -> None:
    reply: list[Row] = []

    def best_of_three(space: Any, plan: Plan) -> Search:
        rows = yield from finish(space.fresh(3))
        reply.extend((yield from gradient([max(rows, key=lambda row: row.score)])))

    report = search(Algorithm("three", best_of_three), Counting(), Budget(nfe=1000), linear())
    assert len(report.evaluations) == 3 and report.nfe == 3 * 6 + 24
    assert report.best is not None and reply[0].id == report.best.evaluation.id and reply[0].gradient is not None


@pytest.mark.parametrize("settings", [{}, {"norm": "penalty"}, {"norm": "free"}, {"raw": True}, {"lr": 3.0}])
def test_it_climbs_higher_than_random_search_at_equal_nfe(settings: dict[str, Any]) -> None:
    def gain(name: str, **more: Any) -> float:
        bests = []
        for seed in (7, 8, 9, 10):
            report = search(algorithm(name, **more), Counting(spread=1.0), Budget(nfe=480), linear(), first_seed=seed)
            assert report.best is not None
            bests.append(report.best.evaluation.score)
        return sum(bests) / len(bests)

    assert gain("gradient", **settings) > gain("random") + 0.3


def test_on_the_sphere_the_norm_is_kept_and_the_recipe_tells_how_far_it_moved() -> None:
    requests: list[Row] = []

    def watched(space: Any, plan: Plan, **settings: Any) -> Search:
        inner = gradient_search(space, plan, **settings)
        request = next(inner)
        while True:
            assert isinstance(request, Gradient)
            requests.extend(request.rows)
            request = inner.send((yield request))

    search(Algorithm("watched", watched), Counting(), Budget(candidates=8), linear())
    start = gaussian(torch.empty(1, 12), 7)
    previous = start
    for row in requests[1:]:
        assert row.noise is not None and float(row.noise.norm()) == pytest.approx(float(start.norm()), rel=1e-6)
        cosine = torch.nn.functional.cosine_similarity(row.noise, previous).item()
        assert row.recipe.operations[-1] == {"op": "ascent", "cosine": pytest.approx(cosine, abs=1e-5)}
        assert row.recipe.step_seed == 7 and row.recipe.seed is None and row.recipe.replayable
        previous = row.noise


def test_raw_gradients_with_penalty_are_one_step_of_nesterov_ascent_as_torch_takes_it() -> None:
    rows: list[Row] = []

    def watched(space: Any, plan: Plan, **settings: Any) -> Search:
        inner = gradient_search(space, plan, **settings)
        request = next(inner)
        while True:
            reply = yield request
            rows.extend(reply)
            request = inner.send(reply)

    settings = {"lr": 0.5, "momentum": 0.9, "clip": 1.5, "raw": True, "norm": "penalty", "penalty": 0.2}
    search(Algorithm("watched", watched, settings), Counting(), Budget(nfe=24 * 4 + 6), linear())
    rows = [row for row in rows if row.gradient is not None]
    assert len(rows) == 4 and rows[0].noise is not None
    z = nn.Parameter(rows[0].noise.double().clone())
    optimiser = torch.optim.SGD([z], lr=0.5, momentum=0.9, nesterov=True, maximize=True)
    for row, following in zip(rows, rows[1:], strict=False):
        assert row.noise is not None and row.gradient is not None and following.noise is not None
        assert torch.allclose(z.detach().float(), row.noise, atol=1e-5)
        regulariser = z.square().sum() / 2 - 11 * z.norm().log()
        [pull] = torch.autograd.grad(regulariser, z)
        assert torch.allclose(away(z.detach()), pull)
        z.grad = row.gradient.double() - 0.2 * pull
        nn.utils.clip_grad_norm_([z], 1.5)
        optimiser.step()
        assert torch.allclose(z.detach().float(), following.noise, atol=1e-5)


def test_a_noise_that_climbed_is_in_the_kept_row_and_in_no_text() -> None:
    report = search("gradient", Counting(), Budget(nfe=24 * 6), linear())
    assert report.best is not None and report.best.row.noise is not None
    assert report.best.row.trail == () and report.best.row.x is not None
    assert score_of(Counting(), report.best.row.noise, linear()) == report.best.evaluation.score
    recipe = Recipe.from_json(json.dumps(report.best.evaluation.recipe))
    assert recipe.ascended and "moves" in describe(recipe.operations)
    like = torch.empty(1, 12)
    with pytest.raises(SearchError, match="moved its noise along a gradient"):
        recipe.noise(lambda seed: gaussian(like, seed))
    with pytest.raises(SearchError, match=r"latent: got one for noise of shape \(1, 24\)"):
        recipe.noise(lambda seed: gaussian(torch.empty(1, 24), seed), None, report.best.row.noise)


def test_a_score_without_gradient_begins_again() -> None:
    report = search("gradient", Counting(), Budget(nfe=480), often_nan())
    recipes = [[o["op"] for o in e.recipe] for e in report.finished]
    for before, after in zip(report.finished, recipes[1:], strict=False):
        assert before.verdict == "judged" or after == ["seed"]
    flat = Scorer("flat", lambda clean: 0 * clean[:, 0])
    report = search("gradient", Counting(), Budget(nfe=240), flat)
    assert all(e.seed is not None for e in report.finished)


@pytest.mark.parametrize(
    "verifier, why",
    [
        (Scorer("steps", lambda clean: clean[:, 0].detach()), "it, or a member of it, passes none"),
        (RankMean(first(), second()), "it compares candidates with each other"),
    ],
)
def test_a_verifier_without_gradient_is_refused_by_name(verifier: Any, why: str) -> None:
    with pytest.raises(SearchError, match=f"{verifier.name} has none .{why}"):
        search("gradient", Counting(), Budget(nfe=100), verifier)


def test_a_verifier_that_says_so_is_refused_before_anything_is_rendered() -> None:
    verifier, sampler = linear(), Counting()
    verifier.differentiable = False  # type: ignore[attr-defined]
    with pytest.raises(SearchError, match="linear has none"):
        search("gradient", sampler, Budget(nfe=100), verifier)
    assert sampler.rows == 0
    search("gradient", sampler, Budget(candidates=1), verifier)  # the user's own candidate alone needs none


def test_a_sampler_that_chooses_its_steps_is_refused() -> None:
    class Adaptive(Counting):
        def cost(self, sigmas: Any) -> Any:
            return None

    with pytest.raises(SearchError, match="sampler: it chooses its steps itself"):
        search("gradient", Adaptive(), Budget(nfe=100), linear())


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"lr": 0.0}, "got lr=0, clip=0.1"),
        ({"clip": 0.0}, "clip=0"),
        ({"momentum": 1.0}, "momentum=1"),
        ({"norm": "cube"}, "norm='cube'; expected one of sphere, penalty, free"),
        ({"penalty": -1.0}, "penalty=-1; expected 0 or more"),
    ],
)
def test_settings_that_cannot_climb_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SearchError, match=message):
        search(algorithm("gradient", **settings), Counting(), Budget(nfe=100), linear())


def test_a_gradient_passes_through_what_inference_mode_made_and_leaves_it_as_it_was() -> None:
    def made() -> tuple[nn.Module, Tensor]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 6), nn.Softmax(-1))
        return net, torch.randn(2, 6)

    def slope(net: Callable[[Tensor], Tensor], beside: Tensor) -> Tensor:
        with differentiable():
            x = torch.linspace(-1, 1, 12).reshape(2, 6).requires_grad_()
            end = torch.cat([net(x) * beside, beside])
            return gradient_of(end.square().sum(), [x])[0]

    net, beside = made()
    expected = slope(net, beside)
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    with torch.inference_mode():
        net, beside = made()
        before = {name: (id(p), p.clone()) for name, p in net.named_parameters()}
        assert torch.equal(slope(net, beside), expected)
        assert torch.is_inference_mode_enabled() and not torch.is_grad_enabled()
        assert beside.is_inference()
        for name, p in net.named_parameters():
            assert id(p) == before[name][0] and torch.equal(p, before[name][1])
            assert p.is_inference() and p.requires_grad and p.grad is None


def test_a_search_in_inference_mode_is_the_same() -> None:
    def scores() -> list[float]:
        return [e.score for e in search("gradient", Counting(), Budget(nfe=200), linear()).evaluations]

    expected = scores()
    with torch.inference_mode():
        assert scores() == expected


def test_the_reply_holds_nothing_that_a_climb_does_not_need() -> None:
    reply: list[Row] = []
    search(asked(reply), Counting(), Budget(nfe=1000), linear())
    [row] = reply
    assert row.x is None and row.x0 is None and row.trail == () and row.sigma == 0
    assert row.gradient is not None and not row.gradient.requires_grad


@pytest.mark.parametrize("images", range(1, 12))
def test_a_gradient_is_only_paid_for_if_an_image_can_follow_it(images: int) -> None:
    report = search("gradient", Counting(steps=4), Budget(nfe=4 * images))
    assert report.nfe - max(evaluation.nfe for evaluation in report.finished) == 0
    assert len(report.finished) >= 1 + (images - 1) // 4 and report.nfe == 4 * images


def test_without_patience_it_is_random_search() -> None:
    budget = Budget(nfe=160)
    plain, still = (
        search("random", Counting(steps=4), budget),
        search(algorithm("gradient", patience=0), Counting(steps=4), budget),
    )
    assert [e.score for e in still.finished] == [e.score for e in plain.finished] and len(plain.finished) == 40
