"""What patches and samplers that remember or mix rows may do: every seed that a search offers is stock's image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.samplers
import pytest
import torch
from comfy.patcher_extension import CallbacksMP, WrappersMP
from comfy_api.torch_helpers import set_torch_compile_wrapper
from comfy_extras.nodes_slg import SkipLayerGuidanceDiTSimple

from pack import search
from pack.nodes.guided_sampler import GuidedSampler
from pack.nodes.patches import may_keep_memory
from pack.search import SearchError
from pack.tests.nodes import tiny

EULER = comfy.samplers.sampler_object("euler")


def port(model: Any, sampler: Any = EULER) -> GuidedSampler:
    return GuidedSampler(tiny.guider(model), sampler, tiny.sigmas(model), tiny.latent(), tiny.PictureVAE())


def averaging(build: Any = tiny.sd3) -> Any:
    """Guidance with a running mean in a dict, started anew where the sigma rises."""
    model, memory = build(), {"sigma": -1.0, "mean": 0.0}

    def post_cfg(args: dict[str, Any]) -> torch.Tensor:
        sigma = float(args["sigma"].flatten()[0])
        memory["mean"] = args["denoised"] if sigma > memory["sigma"] else 0.5 * memory["mean"] + args["denoised"]
        memory["sigma"] = sigma
        return memory["mean"] / 2

    model.set_model_sampler_post_cfg_function(post_cfg)
    return model


def counting(build: Any = tiny.sd3) -> Any:
    """A wrapper that acts on every third model call since sampling began."""
    model, memory = build(), {"calls": 0}

    def every_third(executor: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        memory["calls"] += 1
        return executor(*args, **kwargs) * (0.9 if memory["calls"] % 3 == 0 else 1.0)

    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "third", every_third)
    model.add_callback(CallbacksMP.ON_PRE_RUN, lambda _: memory.update(calls=0))
    return model


def caching(build: Any = tiny.sd3) -> Any:
    """A patch that answers every second call with what it remembers of the one before, as TeaCache does."""
    model, memory = build(), {}

    def wrapper(apply: Callable[..., torch.Tensor], args: dict[str, Any]) -> torch.Tensor:
        x, t, c = args["input"], args["timestep"], args["c"]
        step = int((c["transformer_options"]["sample_sigmas"] - t[0]).abs().argmin())
        if step % 2 == 0:
            memory["residual"] = apply(x, t, **c) - x
        return x + memory["residual"]

    model.set_model_unet_function_wrapper(wrapper)
    return model


def compiled() -> Any:
    model = tiny.sd3()
    set_torch_compile_wrapper(model, backend="eager")
    return model


FORGETFUL = {"guidance": averaging, "a wrapper": counting}


@pytest.mark.parametrize("build", [*FORGETFUL.values(), caching])
def test_patches_with_memory_are_stock_for_every_candidate_of_a_shared_search(build: Any) -> None:
    out = tiny.search(build(), max_candidates=4, batch_size=4, top_k=4, steps=6)
    for kept in out.args[5].top:
        expected = tiny.stock(build(), kept.evaluation.seed, steps=6)
        assert tiny.difference({"samples": kept.row.x}, expected) <= 1e-5


@pytest.mark.parametrize("build", FORGETFUL.values(), ids=FORGETFUL)
def test_what_paused_under_a_patch_with_memory_offers_no_seed(build: Any) -> None:
    sampler = port(build())
    assert not sampler.exact_pauses and sampler.abilities.midway_refusal() is None
    report = tiny.search(
        build(), steps=8, max_nfe=80, max_candidates=0, top_k=8, algorithm=search.algorithm("pruned")
    ).args[5]  # fmt: skip
    paused = [e for e in report.finished if any(operation["op"] == "pause" for operation in e.recipe)]
    assert paused and all(e.seed is None for e in paused)
    for kept in report.top:
        if kept.evaluation.seed is not None:
            expected = tiny.stock(build(), kept.evaluation.seed, steps=8)
            assert tiny.difference({"samples": kept.row.x}, expected) <= 1e-5


@pytest.mark.parametrize("name", ["paths", "pruned"])
def test_a_patch_around_the_models_calls_that_remembers_is_refused_by_what_acts_midway(name: str) -> None:
    with pytest.raises(SearchError, match=f"algorithm: {name} .*TeaCache.*use Search: Random"):
        tiny.search(caching(), algorithm=search.algorithm(name))


@pytest.mark.parametrize("patched", [*FORGETFUL.values(), caching])
def test_an_unwired_algorithm_renders_whole_under_a_patch_with_memory(patched: Any) -> None:
    verifier = tiny.Later()
    verifier.name = "ImageReward"
    limits = {"max_candidates": 0, "max_nfe": 48, "steps": 6}
    for model, chosen in ((tiny.flux(), "pruned"), (patched(tiny.flux), "random")):
        report = tiny.search(model, verifier=verifier, **limits).args[5]
        assert report.settings["algorithm"]["name"] == chosen


def test_a_patch_without_memory_is_no_obstacle() -> None:
    for model in (tiny.sd3(), compiled()):
        assert port(model).exact_pauses and port(model).micro_batch() > 1


# samplers


class OfAnotherPack(comfy.samplers.Sampler):
    """A SAMPLER that keeps its last estimate on itself between its calls of the model."""

    def sample(
        self, model_wrap: Any, sigmas: Any, extra_args: Any, callback: Any, noise: Any, *_: Any, **__: Any
    ) -> torch.Tensor:
        told = {name: extra_args[name] for name in ("model_options", "seed")}
        return second_order(lambda x, sigma: model_wrap(x, sigma, **told), noise * sigmas[0], sigmas, vars(self))


def second_order(model: Any, x: torch.Tensor, sigmas: torch.Tensor, memory: dict[str, Any]) -> torch.Tensor:
    memory["last"] = None
    for sigma, following in zip(sigmas, sigmas[1:], strict=False):
        x0 = model(x, sigma * x.new_ones([x.shape[0]]))
        estimate = x0 if memory["last"] is None else 1.5 * x0 - 0.5 * memory["last"]
        memory["last"] = x0
        x = x + (x - estimate) / sigma * (following - sigma)
    return x


def around_a_function_with_memory() -> Any:
    memory: dict[str, Any] = {}

    def function(
        model: Any, x: Any, sigmas: Any, extra_args: Any = None, callback: Any = None, disable: Any = None
    ) -> torch.Tensor:
        return second_order(lambda x, sigma: model(x, sigma, **extra_args), x, sigmas, memory)

    return comfy.samplers.KSAMPLER(function)


@pytest.mark.parametrize("build", [OfAnotherPack, around_a_function_with_memory])
def test_a_sampler_with_memory_beside_its_run_takes_one_candidate_at_a_time(build: Any) -> None:
    model = tiny.sd3()
    guider, sigmas = tiny.guider(model), tiny.sigmas(model)
    out = tiny.search_custom(1, guider, build(), sigmas, max_candidates=3, batch_size=3, top_k=3)
    for kept in out.args[5].top:
        expected = tiny.stock_custom(kept.evaluation.seed, guider, build(), sigmas, tiny.latent())
        assert tiny.difference({"samples": kept.row.x}, expected) <= 1e-5


def test_no_sampler_of_the_host_is_taken_for_one_with_memory() -> None:
    for name in comfy.samplers.KSampler.SAMPLERS:
        assert not may_keep_memory(comfy.samplers.sampler_object(name).sampler_function), name


def test_a_sampler_of_the_host_that_is_no_ksampler_shares_forwards() -> None:
    nodes_void = pytest.importorskip("comfy_extras.nodes_void", reason="this ComfyUI has no such sampler")
    assert port(tiny.sd3(), nodes_void.VOID_DDIM()).micro_batch() > 1


def test_a_prediction_of_another_pack_sees_one_candidate_at_a_time() -> None:
    def alike(args: dict[str, Any]) -> list[torch.Tensor]:
        told = (args["model"], args["conds"], args["input"], args["sigma"], args["model_options"])
        positive, negative = comfy.samplers.calc_cond_batch(*told)
        return [positive * (negative.std() / positive.std()), negative]

    model = tiny.sd3()
    model.set_model_sampler_calc_cond_batch_function(alike)
    out = tiny.search(model, max_candidates=3, batch_size=3, top_k=3)
    for kept in out.args[5].top:
        assert tiny.difference({"samples": kept.row.x}, tiny.stock(model, kept.evaluation.seed)) <= 1e-5
    assert port(SkipLayerGuidanceDiTSimple.execute(tiny.sd3(), 0.0, 1.0, "0", "").args[0]).micro_batch() > 1
