"""What a search says it cost is what entered the model, and what it plans is what it spends."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import comfy.samplers
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


def test_the_largest_micro_batch_follows_the_hosts_memory_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model_of("flow")
    port = GuidedSampler(
        tiny.guider(model), comfy.samplers.sampler_object("euler"), tiny.sigmas(model), tiny.latent(), None
    )
    assert port.micro_batch() == 4
    need = model.model.memory_required([2 * 3, 16, 8, 8]) * 1.5
    weights = model.model_size() - model.loaded_size()
    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda *_: need + weights + 1)
    assert port.micro_batch() == 3
    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda *_: 0)
    assert port.micro_batch() == 1
