"""Search: SMC as a node, and its own steps on real models."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from comfy_api.latest import io

from pack import search
from pack.nodes import NODES
from pack.nodes.algorithms import ParticleSearch
from pack.nodes.candidates import NoiseFromRecipe
from pack.search import Recipe, SearchError
from pack.search.smc import METHODS, POTENTIALS, PRESETS, TRANSITIONS
from pack.tests.nodes import tiny

FAMILIES = ["flow", "eps", "v_prediction"]


def widgets() -> dict[str, io.Input]:
    [combo] = ParticleSearch.define_schema().inputs
    assert isinstance(combo, io.DynamicCombo.Input)
    [custom] = [option for option in combo.options if option.key == "custom"]
    return {widget.id: widget for widget in custom.inputs}


def chosen(name: str, **settings: Any) -> search.Algorithm:
    algorithm: search.Algorithm = tiny.execute(ParticleSearch, preset={"preset": name, **settings}).args[0]
    return algorithm


def test_the_custom_widgets_are_the_settings_of_the_algorithm_with_its_defaults() -> None:
    assert ParticleSearch in NODES
    settings = list(inspect.signature(search.ALGORITHMS["smc"]).parameters.values())[2:]
    assert {name: widget.default for name, widget in widgets().items()} == {s.name: s.default for s in settings}
    assert all(widget.tooltip for widget in widgets().values())
    options = {name: tuple(w.options) for name, w in widgets().items() if isinstance(w, io.Combo.Input)}
    assert options == {"potential": POTENTIALS, "resampling": METHODS, "transition": TRANSITIONS}


def test_every_custom_widget_reaches_its_setting() -> None:
    given: dict[str, Any] = {}
    for name, widget in widgets().items():
        if isinstance(widget, io.Combo.Input):
            given[name] = widget.options[-1]
        elif isinstance(widget, io.Boolean.Input):
            given[name] = not widget.default
        else:
            step = 1 if isinstance(widget.default, int) else 0.01
            given[name] = widget.default + (step if widget.default + step <= widget.max else -step)
    assert chosen("custom", **given).settings == given
    assert chosen("custom").settings == {}  # left out by an API call: the defaults


@pytest.mark.parametrize("name", list(PRESETS))
def test_presets_are_the_first_choices_and_complete(name: str) -> None:
    [combo] = ParticleSearch.define_schema().inputs
    assert [option.key for option in combo.options] == [*PRESETS, "custom"]
    assert chosen(name).settings == PRESETS[name] and chosen(name).name == "smc" and chosen(name).acts_midway
    assert chosen(name).guides == (name == "guided")


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(SearchError, match="preset: got 'FKS'; expected one of tuned, guided, FK"):
        chosen("FKS")
    for nothing in (None, {}):  # what the host passes of a choice that it does not know
        with pytest.raises(SearchError, match="preset: got none that is known; expected one of tuned, guided, FK"):
            tiny.execute(ParticleSearch, preset=nothing)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("transition", TRANSITIONS)
def test_every_transition_runs_on_real_models(family: str, transition: str) -> None:
    algorithm = chosen("custom", particles=3, transition=transition, inner=2, start=0.2, end=0.9)
    out = tiny.search(
        tiny.model_of(family), steps=6, sampler_name="euler", algorithm=algorithm, max_candidates=0, max_nfe=48,
        batch_size=2, verifier=tiny.Later(),
    )  # fmt: skip
    report = out.args[5]
    assert report.nfe == 48 and len(report.finished) == 8 and report.evaluations[0].seed == 11
    assert all(e.score == e.score for e in report.evaluations)
    assert torch.isfinite(out.args[0]["samples"]).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_noise_of_a_steered_winner_is_refused_in_words(family: str) -> None:
    out = tiny.search(
        tiny.model_of(family), steps=6, sampler_name="euler", algorithm=chosen("tuned"), max_candidates=6,
        verifier=tiny.Later(),
    )  # fmt: skip
    recipe = Recipe(out.args[5].best.evaluation.recipe)
    assert [operation["op"] for operation in recipe.operations][:2] == ["seed", "step"]
    assert "LATENT" in out.args[2].message and "LATENT" in out.args[3].message
    with pytest.raises(SearchError, match="acted on this candidate on its way"):
        tiny.execute(NoiseFromRecipe, recipe=recipe.to_json())


@pytest.mark.parametrize("sampler_name", ["euler", "euler_ancestral", "heun", "dpmpp_2m", "dpmpp_sde", "uni_pc", "lcm"])
def test_the_parts_before_and_after_go_by_any_sampler(sampler_name: str) -> None:
    report = tiny.search(
        tiny.model_of("flow"), steps=6, sampler_name=sampler_name, algorithm=chosen("custom", particles=2),
        max_candidates=5,
    ).args[5]  # fmt: skip
    assert len(report.finished) == 5 and all(e.score == e.score for e in report.evaluations)
