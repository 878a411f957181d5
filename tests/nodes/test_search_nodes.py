"""The nodes of the local and evolutionary searches: their widgets are the settings, and their winners replay."""

from __future__ import annotations

import inspect
from typing import Any

import comfy.samplers
import pytest
import torch
from comfy_api.latest import io

from pack import search
from pack.nodes import NODES, algorithms
from pack.nodes.candidates import NoiseFromRecipe
from pack.search import SearchError
from pack.search.recipe import band_mixed, mixed
from pack.tests.nodes import tiny

OF: dict[str, type[io.ComfyNode]] = {
    "random": algorithms.RandomSearch,
    "pruned": algorithms.PrunedSearch,
    "zero_order": algorithms.ZeroOrderSearch,
    "paths": algorithms.SearchOverPaths,
    "trust_region": algorithms.TrustRegionSearch,
    "pcn": algorithms.PCNSearch,
    "spectral": algorithms.SpectralSearch,
    "evolution": algorithms.EvolutionarySearch,
    "lidar": algorithms.LookaheadSearch,
    "gradient": algorithms.GradientSearch,
    "guided": algorithms.GuidedSearch,
    "two_fidelity": algorithms.TwoFidelitySearch,
    "beam": algorithms.BeamSearch,
    "rollover": algorithms.RolloverSearch,
    "depth_first": algorithms.DepthFirstSearch,
    "axes": algorithms.AxesSearch,
}
NAMES = pytest.mark.parametrize("name", list(OF))


@NAMES
def test_the_widgets_are_the_settings_of_the_algorithm_with_its_defaults(name: str) -> None:
    node = OF[name]
    assert node in NODES
    settings = list(inspect.signature(search.ALGORITHMS[name]).parameters.values())[2:]
    expected = {setting.name: setting.default for setting in settings}
    schema = node.define_schema()
    assert {widget.id: widget.default for widget in schema.inputs} == expected
    assert all(widget.tooltip for widget in schema.inputs)
    assert tiny.execute(node).args[0].settings == expected
    assert tiny.execute(node).args[0].name == name
    own = inspect.signature(node.execute).parameters.values()
    assert {p.name: p.default for p in own} == expected


@NAMES
def test_every_widget_reaches_its_setting(name: str) -> None:
    node = OF[name]
    inputs: dict[str, Any] = {}
    for widget in node.define_schema().inputs:
        if isinstance(widget, io.Combo.Input):
            inputs[widget.id] = widget.options[-1]
            continue
        if isinstance(widget, io.String.Input):
            inputs[widget.id] = "some text"
            continue
        if isinstance(widget, io.Boolean.Input):
            inputs[widget.id] = not widget.default
            continue
        step = 1 if isinstance(widget.default, int) else 0.01
        inputs[widget.id] = widget.default + (step if widget.default + step < widget.max else -step)
    if name == "trust_region":
        inputs |= {"cosine": 0.7, "smallest": 0.98}
    assert tiny.execute(node, **inputs).args[0].settings == inputs


@pytest.mark.parametrize("family", ["flow", "eps"])
@pytest.mark.parametrize("sampler_name", ["euler", "euler_ancestral"])
@pytest.mark.parametrize(
    "name, settings, operations",
    [
        ("trust_region", {"starts": 2, "neighbours": 2}, ["seed", "near", "near"]),
        ("pcn", {"starts": 2, "chains": 1, "temperature": 0.01}, ["seed", "mix"]),
        ("spectral", {"starts": 2, "population": 2, "elites": 2}, ["seed", "band"]),
        ("evolution", {"levels": 0, "fresh": 0.3}, ["seed", "near"]),
    ],
)
def test_the_noise_of_a_winner_makes_it_again_in_sampler_custom_advanced(
    family: str, sampler_name: str, name: str, settings: dict[str, Any], operations: list[str]
) -> None:
    model = tiny.model_of(family)
    sampler, sigmas, guider = comfy.samplers.sampler_object(sampler_name), tiny.sigmas(model, 4), tiny.guider(model)
    algorithm = tiny.execute(OF[name], **settings).args[0]
    for batch_size, tolerance in ((1, 0.0), (4, 1e-5)):
        out = tiny.search_custom(
            5, guider, sampler, sigmas, max_candidates=6, batch_size=batch_size, algorithm=algorithm,
            verifier=tiny.Later(),
        )  # fmt: skip
        recipe = out.args[5].best.evaluation.recipe
        assert [operation["op"] for operation in recipe][: len(operations)] == operations
        again = tiny.stock_custom(out.args[2], guider, sampler, sigmas, tiny.latent())
        assert tiny.difference(out.args[0], again) <= tolerance
        from_text = tiny.execute(NoiseFromRecipe, recipe=search.Recipe(recipe).to_json()).args[0]
        assert torch.equal(from_text.generate_noise(tiny.latent()), out.args[2].generate_noise(tiny.latent()))
        assert out.args[3].message  # no plain seed: that output is blocked, with a reason


def test_mixes_and_bands_of_a_recipe_start_from_the_stock_noise_of_its_seed() -> None:
    text = (
        '[{"op": "seed", "seed": 3}, {"op": "mix", "seed": 4, "cosine": 0.6}, '
        '{"op": "band", "fraction": 0.5, "keep": 0.6, "seeds": [5], "weights": [0.8]}]'
    )
    for latent in (tiny.latent(), tiny.latent(12, 20), tiny.latent(batch=2)):
        noise = tiny.execute(NoiseFromRecipe, recipe=text).args[0].generate_noise(latent)
        stock = comfy.sample.prepare_noise(latent["samples"], 3)
        assert torch.equal(noise, band_mixed(mixed(stock, 4, 0.6), 0.5, 0.6, [5], [0.8]))


@pytest.mark.parametrize("family", ["flow", "eps", "v_prediction"])
def test_evolution_mutates_half_made_images_of_real_models(family: str) -> None:
    model = tiny.model_of(family)
    chosen = tiny.execute(algorithms.EvolutionarySearch, fresh=0.4, levels=2).args[0]
    out = tiny.search(model, steps=8, sampler_name="euler", algorithm=chosen, max_candidates=0, max_nfe=80)
    report = out.args[5]
    made = [e.recipe[-1]["op"] for e in report.finished]
    assert made[:4] == ["seed"] * 4 and {"near", "renoise"} <= set(made) and report.nfe <= 80
    assert report.evaluations[0].seed == 11


def test_a_mutated_half_made_winner_blocks_seed_and_noise_alone() -> None:
    chosen = tiny.execute(algorithms.EvolutionarySearch, fresh=0.2, levels=1).args[0]
    out = tiny.search(
        tiny.model_of("flow"), steps=8, sampler_name="euler", algorithm=chosen, max_candidates=9,
        verifier=tiny.Later(),
    )  # fmt: skip
    assert "renoise" in [operation["op"] for operation in out.args[5].best.evaluation.recipe]
    assert out.args[2].message and out.args[3].message and torch.isfinite(out.args[0]["samples"]).all()


def test_settings_that_make_no_step_are_refused() -> None:
    chosen = tiny.execute(algorithms.TrustRegionSearch, cosine=0.9, smallest=0.8).args[0]
    with pytest.raises(SearchError, match="expected cosine below smallest"):
        tiny.search(tiny.model_of("flow"), algorithm=chosen, max_candidates=8)


@pytest.mark.parametrize("family", ["flow", "eps", "v_prediction"])
@pytest.mark.parametrize(
    "name, settings, operation",
    [
        ("beam", {"width": 2, "oversample": 2, "expansion": "early"}, "step"),
        ("beam", {"width": 2, "transition": "glass", "inner": 2, "start": 0.0}, "step"),
        ("rollover", {"starts": 2, "chains": 1}, "step"),
        ("depth_first", {"quantile": 0.9, "start": 0.6, "back": 0.3}, "renoise"),
    ],
)
def test_searches_on_the_way_run_on_real_models_and_refuse_the_noise_of_a_winner_that_they_changed(
    family: str, name: str, settings: dict[str, Any], operation: str
) -> None:
    out = tiny.search(
        tiny.model_of(family), steps=6, sampler_name="euler", algorithm=tiny.execute(OF[name], **settings).args[0],
        max_candidates=0, max_nfe=60, batch_size=2, verifier=tiny.Later(),
    )  # fmt: skip
    report = out.args[5]
    assert 50 < report.nfe <= 60 and report.evaluations[0].seed == 11
    assert all(e.score == e.score for e in report.evaluations)
    assert any(o["op"] == operation for e in report.finished for o in e.recipe)
    assert torch.isfinite(out.args[0]["samples"]).all()
    if any(o["op"] == operation for o in report.best.evaluation.recipe):
        assert "LATENT" in out.args[2].message and "LATENT" in out.args[3].message
        with pytest.raises(SearchError, match="acted on this candidate on its way"):
            tiny.execute(NoiseFromRecipe, recipe=search.Recipe(report.best.evaluation.recipe).to_json())
