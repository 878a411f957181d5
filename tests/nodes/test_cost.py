"""What a search says it cost is what entered the model, and what it plans is what it spends."""

from __future__ import annotations

import types
from typing import Any

import comfy.controlnet
import comfy.memory_management
import comfy.model_management
import comfy.model_patcher
import comfy.samplers
import node_helpers
import pytest
import torch
from comfy_extras.nodes_custom_sampler import DualModelGuider

from pack import search
from pack.nodes.guided_sampler import GuidedSampler
from pack.tests.nodes import tiny

SAMPLERS = comfy.samplers.KSampler.SAMPLERS


class Meter:
    """Counts forwards of single rows."""

    def __init__(self) -> None:
        self.rows = 0

    def forward(self, rows: int) -> None:
        self.rows += rows

    def model_rows(self, rows: int) -> None:
        pass


@pytest.mark.parametrize("family", ["flow", "eps", "v_prediction"])
def test_the_predicted_cost_is_the_counted_cost_for_every_sampler(family: str) -> None:
    model = tiny.model_of(family)
    unknown = []
    for sampler_name in SAMPLERS:
        sampler = comfy.samplers.sampler_object(sampler_name)
        port = GuidedSampler(tiny.guider(model), sampler, tiny.sigmas(model, 3), tiny.latent(4, 4), None)
        predicted, meter = port.cost(port.sigmas), Meter()
        if predicted is None:
            unknown.append(sampler_name)
            continue
        with torch.inference_mode():
            port.advance([search.Row(search.Recipe.of_seed(1), port.sigmas[0])], port.sigmas, meter)
        assert meter.rows == predicted, sampler_name
    assert unknown == ["dpm_adaptive"]


@pytest.mark.parametrize("sampler_name", ["euler", "heun", "dpmpp_sde", "dpm_2", "seeds_3", "dpm_fast", "euler_cfg_pp"])
@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_the_report_counts_what_entered_the_model(sampler_name: str, cfg: float) -> None:
    counted = tiny.Counted(tiny.model_of("eps"))
    for batch_size in (1, 3):
        counted.sizes.clear()
        out = tiny.search(
            counted.model, max_candidates=4, batch_size=batch_size, sampler_name=sampler_name, cfg=cfg, steps=3
        )
        report = out.args[5]
        assert report.model_rows == counted.rows
        stock = tiny.Counted(tiny.model_of("eps"))
        tiny.stock(stock.model, 1, sampler_name=sampler_name, cfg=cfg, steps=3)
        assert report.model_rows == 4 * stock.rows
        per_forward = 2 if cfg != 1.0 or "cfg_pp" in sampler_name else 1
        assert report.nfe == report.model_rows // per_forward
        assert [e.nfe for e in report.evaluations] == [report.nfe * (i + 1) // 4 for i in range(4)]


def test_the_report_counts_both_models_of_a_two_model_guider() -> None:
    a, b = tiny.Counted(tiny.sd3(0)), tiny.Counted(tiny.sd3(1))
    guider = DualModelGuider.execute(a.model, tiny.conditioning(1), 3.0, b.model, tiny.conditioning(2)).args[0]
    sampler = comfy.samplers.sampler_object("euler")
    out = tiny.search_custom(1, guider, sampler, tiny.sigmas(a.model, 3), max_candidates=3, batch_size=3)
    assert out.args[5].nfe == 9 and out.args[5].model_rows == a.rows + b.rows == 18


@pytest.mark.parametrize("algorithm", [name for name in search.ALGORITHMS if name not in search.GRADIENT])
@pytest.mark.parametrize("sampler_name", ["euler", "heun", "dpm_adaptive"])
def test_an_nfe_budget_is_never_exceeded(algorithm: str, sampler_name: str) -> None:
    counted = tiny.Counted(tiny.model_of("flow"))
    settings: dict[str, Any] = {"sampler_name": sampler_name, "steps": 3, "cfg": 1.0}
    out = tiny.search(
        counted.model, max_candidates=0, max_nfe=61, batch_size=3, algorithm=search.algorithm(algorithm), **settings
    )
    report = out.args[5]
    assert report.nfe == counted.rows <= 61
    assert report.stopped == {"nfe": 61} and len(report.finished) >= 1


def test_a_latent_batch_counts_its_rows() -> None:
    counted = tiny.Counted(tiny.model_of("flow"))
    out = tiny.search(counted.model, max_candidates=2, steps=3, latent_image=tiny.latent(batch=3), cfg=1.0)
    assert out.args[5].nfe == counted.rows == 2 * 3 * 3


def port_of(guider: Any) -> GuidedSampler:
    model = guider.model_patcher
    return GuidedSampler(guider, comfy.samplers.sampler_object("euler"), tiny.sigmas(model, 2), tiny.latent(), None)


def fits(monkeypatch: pytest.MonkeyPatch, need: float, *loaded: Any) -> None:
    """Leave `need` bytes, as ComfyUI counts them, once those models are loaded."""
    weights = sum(model.model_size() - model.loaded_size() for model in loaded)
    free = 1.5 * need + weights + comfy.model_management.extra_reserved_memory() + 1
    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda *_: free)


def test_the_largest_micro_batch_follows_the_hosts_memory_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model_of("flow")
    port = port_of(tiny.guider(model))
    assert port.micro_batch() == 4
    fits(monkeypatch, model.model.memory_required([2 * 3, 16, 8, 8]), model)
    assert port.micro_batch() == 3
    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda *_: 0)
    assert port.micro_batch() == 1


def test_memory_that_the_host_gives_back_to_forwards_counts_as_free(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.sd3()
    port = port_of(tiny.guider(model))
    fits(monkeypatch, model.model.memory_required([2, 16, 8, 8]), model)
    assert port.micro_batch() == 1
    pages = types.SimpleNamespace(vbars_analyze=lambda device: 2**40)  # of weights, by the host's dynamic VRAM
    monkeypatch.setattr(comfy.memory_management, "aimdo_enabled", True)
    monkeypatch.setattr(comfy.model_patcher, "comfy_aimdo", types.SimpleNamespace(model_vbar=pages), raising=False)
    assert port.micro_batch() == 4


def test_reference_latents_take_the_memory_that_the_host_asks_for_when_it_samples_with_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, asked = tiny.flux(), []
    images = [torch.full((1, 16, 8, 8), float(i)) for i in range(3)]
    guider = tiny.guider(model)
    guider.set_conds(
        *(node_helpers.conditioning_set_values(tiny.conditioning(i), {"reference_latents": images}) for i in (1, 2))
    )
    port, required = port_of(guider), model.model.memory_required

    def noted(shape: list[int], cond_shapes: Any = None) -> float:
        asked.append(required(shape, cond_shapes or {}))
        return asked[-1]

    model.model.memory_required = noted
    with torch.inference_mode():
        rows = [search.Row(search.Recipe.of_seed(seed), port.sigmas[0]) for seed in range(3)]
        port.advance(rows, port.sigmas, Meter())
    need = asked[-1]  # by the last model call
    assert need == 4 * required([2 * 3, 16, 8, 8])
    fits(monkeypatch, need, model)
    assert port.micro_batch() == 3
    fits(monkeypatch, 0.99 * need, model)
    assert port.micro_batch() == 2


def test_a_controlnet_that_is_not_loaded_yet_takes_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    model, network = tiny.sd3(), tiny.sd3(1)

    class Control(comfy.controlnet.ControlBase):
        def get_models(self) -> list[Any]:
            return [network]

        def inference_memory_requirements(self, dtype: torch.dtype) -> int:
            return 1000

        def copy(self) -> Any:
            return self

    positive = node_helpers.conditioning_set_values(tiny.conditioning(1), {"control": Control()})
    guider = tiny.guider(model)
    guider.set_conds(positive, tiny.conditioning(2))
    port, need = port_of(guider), model.model.memory_required([2 * 3, 16, 8, 8])
    fits(monkeypatch, need, model)
    without = port.micro_batch()
    fits(monkeypatch, need + 1000 / 1.5, model, network)
    assert port.micro_batch() == 3 > without
