"""Measure Curve: what it sees on the way is what stock shows its callback, and Search: Pruned plans from it."""

from __future__ import annotations

import json
import statistics
from typing import Any

import comfy.model_management
import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_custom_sampler import Noise_RandomNoise

from pack.demo import paths
from pack.nodes.algorithms import PrunedSearch
from pack.nodes.curve_node import MeasureCurve
from pack.nodes.demo_world import load_demo_world
from pack.nodes.live import FINISH
from pack.nodes.memory import ManagedEnsemble, managed
from pack.nodes.search_sampler import SearchSampler
from pack.search import SearchError
from pack.search.halving_plan import halving_plan
from pack.search.measuring import Measured
from pack.tests.nodes import tiny
from pack.verifiers import VERIFIERS

PROMPT = "a red circle left of a blue square"
SAMPLERS = ["euler", "euler_ancestral", "heun", "dpmpp_2m"]


def measure(model: Any = None, seed: int = 5, **settings: Any) -> Any:
    """Run Measure Curve with WIDGETS of ten steps unless told otherwise."""
    inputs = {**tiny.WIDGETS, "steps": 10, "vae": tiny.PictureVAE(), "verifier": tiny.Mean(), **settings}
    return tiny.execute(MeasureCurve, model=model or tiny.sd3(), seed=seed, **inputs)


def pictures_by_stock(guider: Any, sampler: str, sigmas: torch.Tensor, latent: Any, vae: Any, seed: int) -> list[Any]:
    """The picture of every step's x0 prediction, from stock's own callback, and that of the end."""
    seen: dict[int, torch.Tensor] = {}
    with torch.inference_mode():
        out = guider.sample(
            Noise_RandomNoise(seed).generate_noise(latent), latent["samples"], comfy.samplers.sampler_object(sampler),
            sigmas.clone(), callback=lambda i, x0, x, n: seen.__setitem__(i, x0.clone()), seed=seed,
        )  # fmt: skip
        clean = [guider.model_patcher.model.process_latent_out(seen[step].cpu()) for step in sorted(seen)]
        return [vae.decode(x)[..., :3].float() for x in (*clean, out.cpu())]


def correlation(early: list[float], final: list[float]) -> float:
    """Of the normal scores of numbers, written down anew; equal ones (CLIPScore is cut off at 0) share a place."""

    def normal(values: list[float]) -> list[float]:
        places = [(sum(v < x for v in values) + sum(v <= x for v in values) - 1) / 2 for x in values]
        return [statistics.NormalDist().inv_cdf((place + 0.5) / len(values)) for place in places]

    return statistics.correlation(normal(early), normal(final))


@pytest.mark.parametrize("family", ["flow", "eps"])
def test_the_curve_of_the_demo_model_is_that_of_stocks_own_callbacks(family: str) -> None:
    world = load_demo_world(family)
    positive, negative = world.conditioning(PROMPT), world.conditioning("")
    latent = {"samples": torch.zeros(1, 16, 8, 8)}
    verifier = managed(VERIFIERS["clip_score"].load(file=str(paths.CLIP / "model.safetensors")))
    text, _, out, image, report = measure(
        world.model, 3, steps=8, positive=positive, negative=negative, latent_image=latent, vae=world.vae,
        verifier=verifier, prompt=PROMPT, max_candidates=8, looks=3, batch_size=1,
    ).args  # fmt: skip
    guider = comfy.samplers.CFGGuider(world.model)
    guider.set_conds(positive, negative)
    guider.set_cfg(3.0)
    sigmas = comfy.samplers.calculate_sigmas(world.model.get_model_object("model_sampling"), "simple", 8)
    scores = []
    for evaluation in report.finished:
        shown = pictures_by_stock(guider, "euler", sigmas, latent, world.vae, evaluation.seed)
        scores.append([float(verifier.score(picture, PROMPT)) for picture in shown])
        for share, step in ((25, 2), (50, 4), (87.5, 7)):  # the x0 prediction that step number 2, 4, 7 made
            assert evaluation.parts[f"CLIPScore after {share:.4g} %"] == pytest.approx(scores[-1][step - 1], abs=1e-6)
    measured = Measured.from_json(text)
    assert measured.shares == (0.25, 0.5, 0.875) and measured.candidates == 8
    columns = [list(column) for column in zip(*scores, strict=True)]
    expected = [correlation(columns[step - 1], columns[-1]) for step in (2, 4, 7)]
    assert measured.seen == pytest.approx(expected, abs=1e-6)  # ranks alone matter
    best = max(range(8), key=lambda i: scores[i][-1])
    assert report.best.evaluation.candidate == best
    assert (image - pictures_by_stock(guider, "euler", sigmas, latent, world.vae, report.best.evaluation.seed)[-1]
            ).abs().max() < 1e-4  # fmt: skip
    assert out["samples"].shape == (1, 16, 8, 8)


@pytest.mark.parametrize("sampler_name", SAMPLERS)
def test_a_sampler_is_not_paused_so_the_best_is_that_of_a_plain_search(sampler_name: str) -> None:
    model = tiny.sd3()
    settings = {"steps": 6, "sampler_name": sampler_name, "max_candidates": 6}
    _, _, latent, image, report = measure(model, 11, batch_size=2, **settings).args
    plain = tiny.search(model, 11, top_k=1, batch_size=2, **settings).args
    assert torch.equal(latent["samples"], plain[0]["samples"]) and torch.equal(image, plain[1])
    assert (report.nfe, report.model_rows) == (plain[5].nfe, plain[5].model_rows)
    assert [e.score for e in report.evaluations] == [e.score for e in plain[5].evaluations]


def test_pruned_plans_from_what_the_node_gives() -> None:
    model = tiny.sd3()
    text = measure(model).args[0]
    algorithm = tiny.execute(PrunedSearch, curve="cautious", measured_curve=text).args[0]
    report = tiny.search(model, steps=10, algorithm=algorithm, max_candidates=0, max_nfe=120).args[5]
    plan = halving_plan(Measured.from_json(text).curve(), 10, 120)
    looked = [e for e in report.evaluations if e.candidate is None]
    assert plan.cuts and len({e.sigma for e in looked}) == len(plan.cuts)
    assert sum(e.sigma == looked[0].sigma for e in looked) == plan.first


def test_several_prompts_are_put_together_by_chaining_nodes() -> None:
    model = tiny.sd3()
    one = measure(model, 5, max_candidates=6).args[0]
    other = Measured.from_json(measure(model, 9, positive=tiny.conditioning(4), max_candidates=6).args[0])
    text, table, *_ = measure(model, 9, positive=tiny.conditioning(4), max_candidates=6, earlier=one).args
    both = Measured.from_json(text)
    assert both == other.with_earlier(Measured.from_json(one)) and (both.candidates, both.prompts) == (12, 2)
    assert table == both.table() and "12 candidates, 2 prompts" in table
    with pytest.raises(SearchError, match="earlier: got a measurement of mean after"):
        measure(model, looks=3, earlier=one)


def test_what_was_measured_before_does_not_count_once_more() -> None:
    model = tiny.sd3()
    one = measure(model, 5, max_candidates=4).args[0]
    other = measure(model, 9, max_candidates=4, earlier=one).args[0]
    assert Measured.from_json(other).candidates == 8
    for seed in (5, 9):  # whichever of the two comes again
        out = measure(model, seed, max_candidates=4, earlier=other)
        assert out.args[0] == other and out.args[1] == Measured.from_json(other).table()
        assert "has candidates of this prompt and seed already" in out.args[4].notes[-1]
        assert out.ui["noise_search"][0]["notes"] == out.args[4].notes
    larger = measure(model, 5, max_candidates=6, earlier=one).args  # its first four are the earlier ones
    assert Measured.from_json(larger[0]) == Measured.from_json(measure(model, 5, max_candidates=6).args[0])
    assert "only the larger" in larger[4].notes[-1]


def test_the_same_seed_of_another_conditioning_is_new_and_so_is_a_text_without_its_parts() -> None:
    model = tiny.sd3()
    one = measure(model, 5, max_candidates=4).args[0]
    both = measure(model, 5, max_candidates=4, positive=tiny.conditioning(4), earlier=one).args
    assert Measured.from_json(both[0]).candidates == 8 and not any("earlier" in note for note in both[4].notes)
    plain = Measured.from_json(one).to_json()  # as older versions wrote it
    assert Measured.from_json(measure(model, 9, max_candidates=4, earlier=plain).args[0]).candidates == 8
    changed = json.dumps({**json.loads(plain), "of": [3, {"mean": "x"}, None]})
    assert Measured.from_json(measure(model, 5, max_candidates=4, earlier=changed).args[0]).candidates == 8


def test_an_ensemble_of_ranks_can_be_measured() -> None:
    ensemble = ManagedEnsemble([tiny.Mean("a"), tiny.Later("b")], method="rank_mean")
    measured = Measured.from_json(measure(verifier=ensemble, max_candidates=6).args[0])
    assert measured.verifier == "rank_mean of a, b" and all(-1 <= seen <= 1 for seen in measured.seen)


def test_a_batch_of_latents_and_a_video_can_be_measured() -> None:
    for model, latent in ((tiny.sd3(), tiny.latent(batch=2)), (tiny.wan(), tiny.video_latent())):
        text = measure(model, latent_image=latent, max_candidates=4, steps=4).args[0]
        assert Measured.from_json(text).candidates == 4


def test_what_tells_nothing_blocks_the_curve_and_keeps_the_image() -> None:
    class Flat(tiny.Mean):
        def score(self, images: torch.Tensor, prompt: str) -> torch.Tensor:
            return torch.zeros(len(images))

    out = measure(verifier=Flat(), max_candidates=4)
    text, table, latent, _image, report = out.args
    assert "all of them score the same" in text.message == table.message
    assert report.notes[-1] == text.message == out.ui["noise_search"][0]["notes"][-1]  # where the user looks
    assert torch.isfinite(latent["samples"]).all() and len(report.finished) == 4


def test_finish_now_measures_on_what_there_is() -> None:
    FINISH.start("7")

    class Pressing(tiny.Mean):
        def score(self, images: torch.Tensor, prompt: str) -> torch.Tensor:
            if self.seen >= 9 * 4:  # nine scores for each candidate
                FINISH.ask("7")
            return super().score(images, prompt)

    out = measure(verifier=Pressing(), batch_size=1)
    report = out.args[4]
    assert report.stopped == {"finish now": 1} and 4 <= len(report.judged) < 16
    assert Measured.from_json(out.args[0]).candidates == len(report.judged)
    json.dumps(out.ui, allow_nan=False)


def test_cancel_passes_and_leaves_the_model_as_it_was() -> None:
    model = tiny.sd3()
    before = tiny.stock(model, 2)

    def cancelled() -> None:
        raise comfy.model_management.InterruptProcessingException

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        measure(model, verifier=tiny.Mean(before=cancelled))
    assert tiny.difference(tiny.stock(model, 2), before) == 0.0


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"steps": 3}, "expected at least 4 steps"),
        ({"sampler_name": "dpm_adaptive"}, "chooses its steps itself"),
        ({"verifier": None}, "verifier: got nothing"),
        ({"vae": None}, "vae: got nothing"),
        ({"earlier": "{}"}, "expected the text that Measure Curve gives"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_a_sentence_before_anything_is_rendered(
    settings: dict[str, Any], said: str
) -> None:
    counted = tiny.Counted(tiny.sd3())
    with pytest.raises(SearchError, match=said):
        measure(counted.model, **settings)
    assert counted.rows == 0


def test_its_widgets_are_those_of_search_sampler_with_its_own_behind_them() -> None:
    sampler = {each.id: each for each in SearchSampler.define_schema().inputs}
    own = [each.id for each in MeasureCurve.define_schema().inputs if each.id not in sampler]
    assert own == ["looks", "earlier"]
    assert [each.display_name for each in MeasureCurve.define_schema().outputs] == [
        "measured_curve", "table", "latent", "image", "report"
    ]  # fmt: skip
