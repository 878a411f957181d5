"""Rows that share forwards: the same numbers, candidates and decisions as alone, and no more forwards than needed."""

from __future__ import annotations

import threading
from typing import Any

import comfy.samplers
import pytest
import torch
from comfy_execution.utils import CurrentNodeContext, get_executing_context

from pack import search
from pack.nodes.guided_sampler import GuidedSampler
from pack.nodes.lockstep import Call, merged_options, run_in_lockstep
from pack.tests.nodes import tiny

SAMPLERS = comfy.samplers.KSampler.SAMPLERS


class Ledger:
    """A meter that remembers the rows of every forward."""

    def __init__(self) -> None:
        self.forwards: list[int] = []
        self.entered = 0

    def forward(self, rows: int) -> None:
        self.forwards.append(rows)

    def model_rows(self, rows: int) -> None:
        self.entered += rows


def port(
    model: Any, sampler_name: str = "euler", steps: int = 6, cfg: float = 3.0, latent: Any = None
) -> GuidedSampler:
    sampler = comfy.samplers.sampler_object(sampler_name)
    return GuidedSampler(
        tiny.guider(model, cfg), sampler, tiny.sigmas(model, steps), latent or tiny.latent(), tiny.PictureVAE()
    )


def fresh(sampler: GuidedSampler, count: int) -> list[search.Row]:
    space = search.Space(search.Candidates.of_seed(4), 4, sampler.sigmas[0])
    return space.fresh(count)


def test_eight_candidates_of_six_euler_steps_make_six_forwards_of_eight_rows() -> None:
    sampler, meter = port(tiny.model_of("flow")), Ledger()
    with torch.inference_mode():
        sampler.advance(fresh(sampler, 8), sampler.sigmas, meter)
    assert meter.forwards == [8] * 6
    assert meter.entered == 2 * 8 * 6


@pytest.mark.parametrize("sampler_name", SAMPLERS)
@pytest.mark.parametrize("family", ["flow", "eps"])
def test_gathered_rows_equal_stock_alone_for_every_sampler(family: str, sampler_name: str) -> None:
    model = tiny.model_of(family)
    stock = comfy.samplers.KSampler(model, 3, model.load_device, sampler_name, "simple", 1.0, model.model_options)
    sampler = GuidedSampler(
        tiny.guider(model), comfy.samplers.sampler_object(sampler_name), stock.sigmas, tiny.latent(), None
    )
    meter = Ledger()
    with torch.inference_mode():
        rows = sampler.advance(fresh(sampler, 3), sampler.sigmas, meter)
    for row in rows:
        expected = tiny.stock(model, row.recipe.seed, sampler_name=sampler_name, steps=3)
        assert tiny.difference({"samples": row.x}, expected) <= 1e-5
    if sampler_name != "dpm_adaptive":
        assert set(meter.forwards) == {3}  # every forward was shared by all


@pytest.mark.parametrize("algorithm", search.ALGORITHMS)
@pytest.mark.parametrize("sampler_name", ["euler_ancestral", "dpmpp_2m"])
def test_the_micro_batch_changes_no_decision(algorithm: str, sampler_name: str) -> None:
    settings = {"paths": 1, "width": 3} if algorithm == "paths" else {}
    reports = []
    for batch_size in (1, 3, 8):
        out = tiny.search(
            tiny.model_of("eps"), max_candidates=7, steps=3, batch_size=batch_size, sampler_name=sampler_name,
            algorithm=search.algorithm(algorithm, **settings),
        )  # fmt: skip
        reports.append(out.args[5])
    for report in reports[1:]:
        finished = [e for e in report.evaluations if not e.after_stop]
        expected = [e for e in reports[0].evaluations if not e.after_stop]
        assert [e.recipe for e in finished] == [e.recipe for e in expected]
        assert [e.score for e in finished] == pytest.approx([e.score for e in expected], abs=1e-5)
        assert report.best.evaluation.recipe == reports[0].best.evaluation.recipe
        expected_x = reports[0].best.row.x  # lidar pulls this random model's latents to values in the hundreds
        assert (report.best.row.x - expected_x).abs().max() <= 1e-4 + 1e-6 * expected_x.abs().max()


@pytest.mark.parametrize("sampler_name", ["euler", "dpmpp_2m_sde", "ddim"])
def test_gathered_rows_of_a_masked_batch_equal_stock(sampler_name: str) -> None:
    """Every candidate is a batch of three with masks of their own (two masks, which stock tiles)."""
    model = tiny.model_of("eps")
    generator = torch.Generator().manual_seed(1)
    masks = torch.stack([torch.zeros(8, 8), torch.ones(8, 8)])[:, None]
    masks[:, :, 2:5, 2:5] = 0.5
    latent = {"samples": torch.randn(3, 16, 8, 8, generator=generator), "noise_mask": masks}
    sampler = port(model, sampler_name, 4, latent=latent)
    with torch.inference_mode():
        rows = sampler.advance(fresh(sampler, 3), sampler.sigmas, Ledger())
    for row in rows:
        expected = tiny.stock(model, row.recipe.seed, sampler_name=sampler_name, latent_image=latent)
        assert tiny.difference({"samples": row.x}, expected) <= 1e-5


def test_an_error_in_one_row_unwinds_all_others_and_leaves_no_thread() -> None:
    guider = tiny.guider(tiny.model_of("flow"))
    before, unwound = threading.active_count(), []

    def job(index: int) -> Any:
        def run(model: Any) -> None:
            try:
                for _ in range(3):
                    model(torch.zeros(1, 1), torch.tensor([1.0]))
                    if index == 1:
                        raise ZeroDivisionError("row 1")
            finally:
                unwound.append(index)

        return run

    with pytest.raises(ZeroDivisionError, match="row 1"):
        run_in_lockstep(guider, [job(i) for i in range(4)], lambda calls: [call.x for call in calls])
    assert sorted(unwound) == [0, 1, 2, 3] and threading.active_count() == before


def test_an_error_in_the_forward_unwinds_all_rows() -> None:
    guider = tiny.guider(tiny.model_of("flow"))
    before = threading.active_count()

    def fails(calls: list[Call]) -> list[torch.Tensor]:
        raise MemoryError

    with pytest.raises(MemoryError):
        run_in_lockstep(guider, [lambda m: m(torch.zeros(1, 1), torch.ones(1))] * 3, fails)
    assert threading.active_count() == before


def test_rows_with_fewer_calls_leave_the_others_undisturbed() -> None:
    guider, groups = tiny.guider(tiny.model_of("flow")), []

    def job(index: int) -> Any:
        def run(model: Any) -> int:
            for step in range(4 - index):
                out = model(torch.full((1, 1), float(index)), torch.tensor([4.0 - step]))
                assert float(out) == index + 10
            return index

        return run

    def forward(calls: list[Call]) -> list[torch.Tensor]:
        groups.append([float(call.x) for call in calls])
        return [call.x + 10 for call in calls]

    assert run_in_lockstep(guider, [job(i) for i in range(3)], forward) == [0, 1, 2]
    assert groups == [[0, 1, 2], [0, 1, 2], [0, 1], [0]]


def test_rows_share_the_hosts_context_and_inference_mode() -> None:
    seen = []

    def job(model: Any) -> None:
        model(torch.zeros(1, 1), torch.ones(1))
        seen.append((get_executing_context().node_id, torch.is_inference_mode_enabled()))

    with CurrentNodeContext("p", "42", None), torch.inference_mode():
        run_in_lockstep(tiny.guider(tiny.model_of("flow")), [job, job], lambda calls: [call.x for call in calls])
    assert seen == [("42", True)] * 2


def test_rows_keep_their_own_place_in_the_global_generator() -> None:
    def job(seed: int) -> Any:
        def run(model: Any) -> list[float]:
            torch.manual_seed(seed)
            drawn = []
            for _ in range(3):
                drawn.append(float(torch.randn(1)))
                model(torch.zeros(1, 1), torch.ones(1))
            return drawn

        return run

    def forward(calls: list[Call]) -> list[torch.Tensor]:
        torch.randn(7)  # the model may draw too
        return [call.x for call in calls]

    expected = [[float(x) for x in torch.randn(3, generator=torch.Generator().manual_seed(s))] for s in (1, 2)]
    guider = tiny.guider(tiny.model_of("flow"))
    got = run_in_lockstep(guider, [job(1), job(2)], forward)
    # randn(3) at once and one by one are the same stream
    assert got == [pytest.approx(e) for e in expected]


def test_calls_with_foreign_model_options_do_not_share_a_forward() -> None:
    shared = {"transformer_options": {}}

    def call(options: dict[str, Any]) -> Call:
        return Call(torch.zeros(1, 1), torch.ones(1), options, 0)

    assert merged_options([call(shared), call(shared)]) is shared
    assert merged_options([call(shared), call({"transformer_options": {}})]) is None
    assert merged_options([call(shared), call({**shared, "extra": 1})]) is None


@pytest.mark.parametrize("sampler_name", ["euler", "euler_ancestral", "heun"])
def test_a_model_that_draws_random_numbers_draws_those_of_every_candidate_alone(sampler_name: str) -> None:
    def wrapper(apply: Any, args: dict[str, Any]) -> torch.Tensor:
        return apply(args["input"], args["timestep"], **args["c"]) * (0.5 + torch.rand(1))

    model = tiny.sd3()
    model.set_model_unet_function_wrapper(wrapper)
    settings = {"sampler_name": sampler_name, "cfg": 1.0}
    out = tiny.search(model, max_candidates=5, batch_size=3, top_k=5, **settings)
    assert any("one candidate at a time (it draws random numbers)" in note for note in out.args[5].notes)
    for kept in out.args[5].top:
        expected = tiny.stock(model, kept.evaluation.seed, **settings)
        assert tiny.difference({"samples": kept.row.x}, expected) <= 1e-5
