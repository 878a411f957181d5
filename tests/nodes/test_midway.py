"""Rows that pause mid-way: their states, re-noising, x0 predictions and the noise shares of every parametrisation."""

from __future__ import annotations

from typing import Any

import comfy.hooks
import comfy.samplers
import node_helpers
import pytest
import torch
from comfy_extras.nodes_custom_sampler import Noise_RandomNoise
from comfy_extras.nodes_differential_diffusion import DifferentialDiffusion
from comfy_extras.nodes_model_advanced import ModelNoiseScale

from pack import search
from pack.nodes.guided_sampler import GuidedSampler
from pack.search import Recipe, Row, SearchError
from pack.tests.nodes import tiny
from pack.tests.nodes.test_conditions import hooked

FAMILIES = ["flow", "eps", "v_prediction"]


class Silent:
    """A meter that lets everything pass."""

    def forward(self, rows: int) -> None:
        pass

    def model_rows(self, rows: int) -> None:
        pass


def port(family: str, sampler_name: str = "euler", steps: int = 6, latent: Any = None) -> GuidedSampler:
    model = tiny.model_of(family)
    sampler = comfy.samplers.sampler_object(sampler_name)
    return GuidedSampler(
        tiny.guider(model), sampler, tiny.sigmas(model, steps), latent or tiny.latent(), tiny.PictureVAE()
    )


def start(sampler: GuidedSampler, *seeds: int) -> list[Row]:
    return [Row(Recipe.of_seed(seed), sampler.sigmas[0]) for seed in seeds]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sampler_name", ["euler", "heun", "dpm_2"])
def test_pausing_a_memoryless_sampler_changes_nothing(family: str, sampler_name: str) -> None:
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 4:] = 1.0
    image = {"samples": torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(2)), "noise_mask": mask}
    for latent in (None, image):
        sampler = port(family, sampler_name, latent=latent)
        with torch.inference_mode():
            [whole] = sampler.advance(start(sampler, 1), sampler.sigmas, Silent())
            for k in (1, 3, 5):
                [paused] = sampler.advance(start(sampler, 1), sampler.sigmas[: k + 1], Silent())
                assert paused.sigma == sampler.sigmas[k] and paused.x0 is not None
                [ended] = sampler.advance([paused], sampler.sigmas[k:], Silent())
                assert torch.equal(ended.x, whole.x), (k, latent is None)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_paused_together_are_rows_paused_alone(family: str) -> None:
    sampler = port(family)
    with torch.inference_mode():
        together = sampler.advance(start(sampler, 1, 2, 3), sampler.sigmas[:4], Silent())
        together = sampler.advance(together, sampler.sigmas[3:], Silent())
        for row, seed in zip(together, (1, 2, 3), strict=True):
            [alone] = sampler.advance(start(sampler, seed), sampler.sigmas, Silent())
            assert (row.x - alone.x).abs().max() <= 1e-5 * alone.x.abs().max().clamp(min=1)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_paused_state_is_the_state_that_stock_shows_its_callback(family: str) -> None:
    sampler = port(family)
    states: list[tuple[torch.Tensor, torch.Tensor]] = []
    guider, noise = tiny.guider(tiny.model_of(family)), Noise_RandomNoise(1)
    with torch.inference_mode():
        guider.sample(
            noise.generate_noise(tiny.latent()), tiny.latent()["samples"], comfy.samplers.sampler_object("euler"),
            torch.tensor(sampler.sigmas), callback=lambda i, x0, x, n: states.append((x.clone(), x0.clone())), seed=1,
        )  # fmt: skip
        for k in (1, 2, 4):
            [paused] = sampler.advance(start(sampler, 1), sampler.sigmas[: k + 1], Silent())
            assert torch.equal(paused.x, states[k][0])
            assert torch.equal(paused.x0, states[k - 1][1])
            [predicted] = sampler.predict([paused], Silent())
            assert torch.equal(predicted.x0, states[k][1])
            assert torch.equal(predicted.x, paused.x)


@pytest.mark.parametrize("family", FAMILIES)
def test_renoising_has_the_moments_of_the_forward_process(family: str) -> None:
    big = {"samples": torch.zeros(1, 16, 64, 64)}
    sampler = port(family, latent=big)
    times = [sampler.time(s) for s in sampler.sigmas]
    low, high = sampler.sigmas[4], sampler.sigmas[1]
    generator = torch.Generator().manual_seed(3)
    x0, noise = torch.randn(1, 16, 64, 64, generator=generator), torch.randn(1, 16, 64, 64, generator=generator)
    scaling = sampler.model_sampling.noise_scaling
    at_low = scaling(torch.tensor([low]), noise, x0)
    row = sampler.renoise(Row(Recipe.of_seed(1), low, x=at_low, id=4), high, 77)
    assert row.sigma == high and row.parent == 4 and row.recipe.operations[-1]["seed"] == 77
    # x_high = a * x0 + b * (unit noise): what is left without x0 has the variance of the forward process
    a = float(scaling(torch.tensor([high]), torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)))
    b = float(scaling(torch.tensor([high]), torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)))
    rest = row.x - a * x0
    assert float(rest.std()) == pytest.approx(b, rel=0.01) and abs(float(rest.mean())) < 0.02 * b
    assert abs(float((rest * x0).mean())) < 0.02 * b
    assert times == sorted(times, reverse=True)
    assert torch.equal(row.x, sampler.renoise(Row(Recipe.of_seed(1), low, x=at_low), high, 77).x)
    with pytest.raises(SearchError, match="pure noise"):
        sampler.renoise(Row(Recipe.of_seed(1), high), high, 1)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("steps", [1, 2, 6])
def test_sigma_is_the_inverse_of_time(family: str, steps: int) -> None:
    sampler = port(family, steps=steps)
    for sigma in sampler.sigmas[:-1]:
        assert sampler.sigma(sampler.time(sigma)) == pytest.approx(sigma, rel=1e-4)
    for share in (0.05, 0.3, 0.8):
        assert sampler.time(sampler.sigma(share)) == pytest.approx(share, rel=1e-5)
    assert sampler.time(0.0) == 0.0


def test_sigma_is_the_inverse_of_time_with_a_noise_scale() -> None:
    [model] = ModelNoiseScale().patch(tiny.sd3(), 7.5)
    sampler = GuidedSampler(
        tiny.guider(model), comfy.samplers.sampler_object("euler"), tiny.sigmas(model), tiny.latent(), tiny.PictureVAE()
    )
    for share in (0.05, 0.5, 0.9):
        assert sampler.time(sampler.sigma(share)) == pytest.approx(share, rel=1e-5)
    assert tiny.difference(tiny.search(model, max_candidates=1).args[0], tiny.stock(model, 11)) == 0.0


@pytest.mark.parametrize("sampler_name", comfy.samplers.KSampler.SAMPLERS)
def test_search_over_paths_runs_with_every_sampler(sampler_name: str) -> None:
    algorithm = search.algorithm("paths", paths=1, width=2)
    family = "flow" if sampler_name < "h" else "eps"
    report = tiny.search(
        tiny.model_of(family), max_candidates=3, batch_size=2, algorithm=algorithm, sampler_name=sampler_name, steps=3
    ).args[5]
    assert len(report.finished) == 3 and all(e.score == e.score for e in report.evaluations)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("leg_steps", [0, 2])
def test_a_path_winner_has_no_noise_and_no_seed_to_offer(family: str, leg_steps: int) -> None:
    algorithm = search.algorithm("paths", paths=1, width=2, leg_steps=leg_steps)
    out = tiny.search(tiny.model_of(family), max_candidates=5, batch_size=2, algorithm=algorithm, verifier=tiny.Later())
    assert not Recipe(out.args[5].best.evaluation.recipe).replayable
    assert "LATENT" in out.args[2].message and "LATENT" in out.args[3].message
    assert torch.isfinite(out.args[0]["samples"]).all()
    midway = [e for e in out.args[5].evaluations if e.candidate is None]
    assert all(e.sigma > 0 for e in midway)


@pytest.mark.parametrize("family", FAMILIES)
def test_steps_by_hand_from_predictions_are_the_stock_euler_sampler(family: str) -> None:
    sampler = port(family)
    with torch.inference_mode():
        rows = start(sampler, 1, 2)
        for sigma, following in zip(sampler.sigmas, sampler.sigmas[1:], strict=False):
            rows = sampler.predict(rows, Silent())
            (a, b), (c, d) = sampler.coefficients(sigma), sampler.coefficients(following)
            stepped = [c * row.x0 + d * (row.x - a * row.x0) / b for row in rows]
            rows = [Row(row.recipe, following, x, row.x0) for row, x in zip(rows, stepped, strict=True)]
        for row, seed in zip(rows, (1, 2), strict=True):
            [whole] = sampler.advance(start(sampler, seed), sampler.sigmas, Silent())
            assert (sampler.guider.model_patcher.model.process_latent_out(row.x) - whole.x).abs().max() <= 1e-4


@pytest.mark.parametrize("family", ["flow", "eps"])
@pytest.mark.parametrize("sampler_name", comfy.samplers.KSampler.SAMPLERS)
def test_whether_a_pause_is_exact_is_known_for_every_sampler(family: str, sampler_name: str) -> None:
    sampler = port(family, sampler_name)
    if sampler.cost(sampler.sigmas) is None or sampler.abilities.midway_refusal():
        return
    with torch.inference_mode():
        [whole] = sampler.advance(start(sampler, 1), sampler.sigmas, Silent())
        [paused] = sampler.advance(start(sampler, 1), sampler.sigmas[:4], Silent())
        [ended] = sampler.advance([paused], sampler.sigmas[3:], Silent())
    assert sampler.exact_pauses == torch.equal(ended.x, whole.x)


@pytest.mark.parametrize(("sampler_name", "exact"), [("euler", True), ("heun", True), ("dpmpp_2m", False)])
def test_a_paused_winner_has_a_seed_only_where_stock_makes_it_from_that_seed(sampler_name: str, exact: bool) -> None:
    out = tiny.search(
        tiny.sd3(), algorithm=search.algorithm("paths"), sampler_name=sampler_name, steps=6, max_nfe=80,
        max_candidates=0, verifier=First(),
    ).args  # fmt: skip
    best = out[5].best.evaluation
    assert best.candidate == 0 and (best.seed == 11) == exact
    if exact:
        assert tiny.difference(out[0], tiny.stock(tiny.sd3(), 11, sampler_name=sampler_name, steps=6)) <= 1e-5


class First(tiny.Mean):
    """The earlier an image comes, the better."""

    def score(self, images: torch.Tensor, prompt: str) -> torch.Tensor:
        super().score(images, prompt)
        return -torch.arange(self.seen - len(images), self.seen, dtype=torch.float32)


def soft_mask() -> dict[str, Any]:
    """An image with a mask that rises from left to right."""
    generator = torch.Generator().manual_seed(2)
    mask = torch.linspace(0, 1, 8).expand(1, 1, 8, 8)
    return {"samples": torch.randn(1, 16, 8, 8, generator=generator), "noise_mask": mask}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_paused_winner_with_a_soft_mask_is_what_stock_makes_of_its_seed(family: str) -> None:
    model = DifferentialDiffusion.execute(tiny.model_of(family)).args[0]
    widgets = {"latent_image": soft_mask(), "steps": 6}
    out = tiny.search(model, algorithm=search.algorithm("pruned"), max_nfe=48, max_candidates=0, **widgets).args
    assert isinstance(out[3], int) and [e for e in out[5].evaluations if e.sigma > 0]
    assert tiny.difference(out[0], tiny.stock(model, out[3], **widgets)) <= 1e-5


def shown(sampler: GuidedSampler, seen: list[Any], *moves: Any) -> list[Any]:
    """What moves of one row show to a patch that writes into `seen`."""
    seen.clear()
    with torch.inference_mode():
        rows = start(sampler, 1)
        for move in moves:
            rows = sampler.predict(rows, Silent()) if move is None else sampler.advance(rows, move, Silent())
    return [*seen]


def test_a_patch_is_told_of_the_whole_schedule_while_a_row_pauses() -> None:
    seen: list[Any] = []

    def note(args: dict[str, Any]) -> torch.Tensor:
        whole = args["model_options"]["transformer_options"]["sample_sigmas"]
        seen.append((float(args["sigma"][0]), whole.tolist(), whole.device))
        return args["denoised"]

    model = tiny.sd3()
    model.set_model_sampler_post_cfg_function(note)
    tiny.stock(model, 1, steps=6)
    stock = [*seen]
    euler = comfy.samplers.sampler_object("euler")
    sampler = GuidedSampler(tiny.guider(model), euler, tiny.sigmas(model), tiny.latent(), tiny.PictureVAE())
    sigmas = sampler.sigmas
    assert shown(sampler, seen, sigmas) == stock
    assert shown(sampler, seen, sigmas[:3], sigmas[2:5], sigmas[4:]) == stock
    assert shown(sampler, seen, sigmas[:3], None)[2] == stock[2]
    # a row that leaves the schedule and comes back to it
    [(_, whole, _)] = shown(sampler, seen, sigmas[:3], (sigmas[2], 0.1, 0.0))[2:3]
    assert whole == [*sigmas[:3], pytest.approx(0.1), 0.0]


@pytest.mark.parametrize(
    ("sampler_name", "starts", "steps", "active"),
    [
        ("euler", (0.0, 0.3, 0.6), 1, None),
        ("heun", (0.0, 0.3, 0.35), 1, None),
        ("euler", (0.0, 0.3, 0.35), 2, None),
        ("dpm_2", (0.05, 0.1, 0.15), 2, None),
        ("euler", (0.05, 0.1, 0.15), 1, (0.4, 1.0)),
        ("dpm_2", (0.05, 0.1, 0.15), 2, (0.4, 1.0)),
        ("heun", (0.05, 0.1, 0.15), 2, (0.0, 0.5)),
    ],
)
def test_a_pause_does_not_turn_back_the_keyframes_of_a_hook(
    sampler_name: str, starts: tuple[float, ...], steps: int, active: tuple[float, float] | None
) -> None:
    """`steps`: that a keyframe is guaranteed; `active`: from where to where its cond takes part."""
    model = tiny.sd3()
    positive, frames = hooked(model), comfy.hooks.HookKeyframeGroup()
    for strength, percent in zip((5.0, -3.0, 2.0), starts, strict=True):
        frames.add(comfy.hooks.HookKeyframe(strength, percent, steps))
    for hook in positive[0][1]["hooks"].hooks:
        hook.hook_keyframe = frames
    if active is not None:
        part = node_helpers.conditioning_set_values(
            positive, dict(zip(("start_percent", "end_percent"), active, strict=True))
        )
        positive = [*tiny.conditioning(7), *part]
    guider = tiny.guider(model)
    guider.set_conds(positive, tiny.conditioning(2))
    kind = comfy.samplers.sampler_object(sampler_name)
    expected = tiny.stock_custom(1, guider, kind, tiny.sigmas(model), tiny.latent())
    sampler = GuidedSampler(guider, kind, tiny.sigmas(model), tiny.latent(), tiny.PictureVAE())
    with torch.inference_mode():
        for k in range(1, 6):
            paused = sampler.advance(start(sampler, 1), sampler.sigmas[: k + 1], Silent())
            [ended] = sampler.advance(sampler.predict(paused, Silent()), sampler.sigmas[k:], Silent())
            assert tiny.difference({"samples": ended.x}, expected) == 0.0, k
