"""Gradients through ComfyUI's own samplers, models and VAEs: right, without traces, and refused where there is none."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import comfy.model_management
import comfy.samplers
import comfy.sd
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor

from pack import search
from pack.demo import paths
from pack.nodes import algorithms, guided_sampler
from pack.nodes.candidates import NoiseCandidate, NoiseFromRecipe
from pack.nodes.demo_world import load_demo_world
from pack.nodes.gathering import Gathered
from pack.nodes.guided_sampler import GuidedSampler
from pack.nodes.memory import ManagedVerifier, managed
from pack.nodes.pull_back import kept_weights
from pack.search import Recipe, Row, SearchError
from pack.search.differentiable import differentiable, gradient_of
from pack.search.judging import differentiable_score
from pack.tests.nodes import tiny
from pack.verifiers.clip_score import load_clip_score

PROMPT = "a red circle left of a blue square"


class Meter:
    """Counts forwards, ways back and rows of the network."""

    def __init__(self) -> None:
        self.forwards, self.backwards, self.rows = 0, 0, 0

    def forward(self, rows: int) -> None:
        self.forwards += rows

    def backward(self, rows: int) -> None:
        self.backwards += rows

    def model_rows(self, rows: int) -> None:
        self.rows += rows


class Weighted(tiny.Mean):
    """A smooth function of the pixels in which every one counts differently."""

    def score(self, images: torch.Tensor, prompt: str) -> torch.Tensor:
        weights = torch.cos(torch.arange(images[0].numel(), dtype=torch.float64)).reshape(images.shape[1:])
        return (images.double() * weights).flatten(1).sum(1)


def port_of(model: Any, sampler_name: str = "euler", steps: int = 3, latent: Any = None) -> GuidedSampler:
    sampler = comfy.samplers.sampler_object(sampler_name)
    return GuidedSampler(
        tiny.guider(model), sampler, tiny.sigmas(model, steps), latent or tiny.latent(), tiny.PictureVAE()
    )


def start(port: GuidedSampler, noise: torch.Tensor | None = None) -> Row:
    recipe = Recipe.of_seed(5)
    if noise is None:
        return Row(recipe, port.sigmas[0])
    return Row(recipe.then(op="ascent", cosine=1.0), port.sigmas[0], noise=noise)


def rendered(port: GuidedSampler, row: Row) -> tuple[torch.Tensor, torch.Tensor]:
    """The latent and the images of a row as a search without gradients makes them."""
    [done] = port.advance([row], port.sigmas, Meter())
    assert done.x is not None
    return done.x, port.decode([done])[0]


def gradient(port: GuidedSampler, verifier: Any, row: Row, prompt: str = "") -> tuple[torch.Tensor, torch.Tensor]:
    """The images of a row on the way that gradients go, and the gradient of its score by its noise."""
    meter = Meter()
    [done] = port.advance([row], port.sigmas, meter, (), True)
    assert done.x is not None
    with differentiable():
        end = done.x.clone().requires_grad_()
        [images] = port.decode([replace(done, x=end)])
        flat = images.reshape(-1, *images.shape[-3:])
        [at_end] = gradient_of(differentiable_score(verifier, flat, prompt), [end])
    pulled = port.pull_back(done, at_end, meter)
    assert meter.forwards == 2 * meter.backwards == 2 * (port.cost(port.sigmas) or 0) * port.rows_per_candidate
    assert not pulled.requires_grad and pulled.shape == port.noise(row).shape
    return images.detach(), pulled


def differs(port: GuidedSampler, verifier: Any, slope: torch.Tensor, step: float, prompt: str = "") -> float:
    """How far finite differences along a direction near the gradient are from it, relative."""
    noise = port.noise(start(port))
    other = torch.randn(noise.shape, generator=torch.Generator().manual_seed(3))
    direction = slope / slope.norm() + 0.5 * other / other.norm()

    def score(z: torch.Tensor) -> float:
        images = rendered(port, start(port, z))[1]
        return float(verifier.score(images.reshape(-1, *images.shape[-3:]), prompt).double().mean())

    expected = (score(noise + step * direction) - score(noise - step * direction)) / (2 * step)
    return abs(float((slope * direction).sum()) / expected - 1)


@pytest.fixture(scope="module")
def clip_score() -> ManagedVerifier:
    with torch.inference_mode():
        return managed(load_clip_score(str(paths.CLIP)))


@pytest.mark.parametrize("family, steps, step", [("flow", 1, 0.02), ("flow", 3, 0.003), ("eps", 2, 0.003)])
def test_in_the_demo_world_the_gradient_is_that_of_finite_differences(
    family: str, steps: int, step: float, clip_score: ManagedVerifier
) -> None:
    with torch.inference_mode():  # as the executor runs nodes, and as it loaded the model
        port = load_demo_world(family).sampler(PROMPT, steps=steps)
        assert port.abilities.gradient_refusal() is None
        images, slope = gradient(port, clip_score, start(port), PROMPT)
        assert torch.equal(images, rendered(port, start(port))[1])
        assert differs(port, clip_score, slope, step, PROMPT) < 0.02


@pytest.mark.parametrize("family", ["flow", "eps", "v_prediction"])
@pytest.mark.parametrize("sampler_name", ["euler", "heun", "dpmpp_2m", "euler_ancestral", "dpmpp_2m_sde", "ddim"])
def test_stock_samplers_pass_the_gradient_of_finite_differences(family: str, sampler_name: str) -> None:
    with torch.inference_mode():
        port = port_of(tiny.model_of(family), sampler_name)
        assert port.abilities.gradient_refusal() is None
        _, slope = gradient(port, Weighted(), start(port))
        assert differs(port, Weighted(), slope, 0.02) < 0.02


def test_masks_batches_videos_and_other_architectures_pass_it_too() -> None:
    masked = {**tiny.latent(), "noise_mask": torch.zeros(1, 8, 8)}
    masked["noise_mask"][:, :4] = 1.0
    masked["samples"] = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(2))
    cases = [(tiny.sd3(), masked), (tiny.sd3(), tiny.latent(batch=2)), (tiny.flux(), None)]
    cases += [(tiny.wan(), tiny.video_latent()), (tiny.cogvideox(), tiny.video_latent())]
    for model, latent in cases:
        with torch.inference_mode():
            port = port_of(model, latent=latent)
            _, slope = gradient(port, Weighted(), start(port))
            assert differs(port, Weighted(), slope, 0.02) < 0.02
            if latent is masked:  # noise of the kept half is only seen by the other half, on the way
                assert 0 < slope[..., 4:, :].norm() < 0.01 * slope.norm()


def parallel(one: torch.Tensor, other: torch.Tensor) -> float:
    """The cosine between two tensors."""
    return float(torch.nn.functional.cosine_similarity(one.flatten().double(), other.flatten().double(), dim=0))


def test_weights_stored_in_eight_bits_pass_the_gradient_of_their_values() -> None:
    rounded = {name: w.to(torch.float8_e4m3fn).float() for name, w in tiny.sd3_weights().items()}
    with torch.inference_mode():
        small = comfy.sd.load_diffusion_model_state_dict(
            tiny.sd3_weights(), model_options={"dtype": torch.float8_e4m3fn}
        )
        assert {p.dtype for p in small.model.diffusion_model.parameters()} >= {torch.float8_e4m3fn}
        slopes = [
            gradient(port, Weighted(), start(port))[1]
            for port in (port_of(small), port_of(comfy.sd.load_diffusion_model_state_dict(rounded)))
        ]
    assert torch.equal(*slopes)


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("kind", [kind for kind in QUANT_ALGOS if kind != "convrot_w4a4"])  # it wants 256 columns
def test_quantised_weights_pass_the_gradient_of_their_values(
    kind: str, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if native:  # as on a GPU that multiplies them as they are; a CPU can do it with these only
        if not kind.startswith("float8"):
            pytest.skip(f"a CPU cannot multiply {kind}")
        monkeypatch.setattr(comfy.model_management, "supports_fp8_compute", lambda device=None: True)
    layout, whole, packed = QUANT_ALGOS[kind]["comfy_tensor_layout"], {}, {}
    for name, weight in tiny.sd3_weights().items():
        if name.endswith(("qkv.weight", "mlp.fc1.weight")):
            quantised = QuantizedTensor.from_float(weight, layout)
            whole[name] = quantised.dequantize()
            packed |= quantised.state_dict(name)
            marked = json.dumps({"format": kind}).encode()
            packed[name.removesuffix("weight") + "comfy_quant"] = torch.tensor(list(marked), dtype=torch.uint8)
        else:
            whole[name] = packed[name] = weight
    with torch.inference_mode():
        model = comfy.sd.load_diffusion_model_state_dict(packed)
        assert any(isinstance(p, QuantizedTensor) for p in model.model.parameters())
        port, plain = port_of(model), port_of(comfy.sd.load_diffusion_model_state_dict(whole))
        images, slope = gradient(port, Weighted(), start(port))
        assert torch.equal(images, rendered(port, start(port))[1])  # what is scored is made as ever
        expected = gradient(plain, Weighted(), start(plain))[1]
    assert parallel(slope, expected) > (0.99 if native else 0.9999)
    assert float(slope.norm() / expected.norm()) == pytest.approx(1, abs=0.05 if native else 0.001)


@pytest.mark.skipif(not tiny.HAS_MINIMAX, reason="this ComfyUI does not know MiniMax H3")
def test_a_model_that_the_host_runs_on_kernels_without_a_gradient_is_refused() -> None:
    narrow = {"positive": tiny.conditioning(1, width=48), "negative": tiny.conditioning(2, width=48)}
    chosen = tiny.execute(algorithms.GradientSearch).args[0]
    with pytest.raises(SearchError, match="model: no gradient passes through it .*rope"):
        tiny.search(
            tiny.minimax_h3(), algorithm=chosen, verifier=Weighted(), latent_image=tiny.nested_latent(), **narrow
        )


def test_nothing_about_the_model_is_changed() -> None:
    with torch.inference_mode():
        model = tiny.sd3()
        before = tiny.stock(model, 3)
        flags = {n: (p.requires_grad, p.is_inference(), p.data_ptr()) for n, p in model.model.named_parameters()}
        weights = {name: p.clone() for name, p in model.model.named_parameters()}
        chosen = tiny.execute(algorithms.GradientSearch).args[0]
        tiny.search(model, algorithm=chosen, verifier=Weighted(), max_candidates=4)
        assert torch.is_inference_mode_enabled() and not torch.is_grad_enabled()
        assert not getattr(comfy.model_management, "in_training", False)
        for name, p in model.model.named_parameters():
            assert (p.requires_grad, p.is_inference(), p.data_ptr()) == flags[name] and p.grad is None
            assert torch.equal(p, weights[name])
        assert torch.equal(tiny.stock(model, 3)["samples"], before["samples"])


def test_candidate_0_is_stock_and_the_winner_comes_again_from_its_noise() -> None:
    model = tiny.sd3()
    chosen = tiny.execute(algorithms.GradientSearch).args[0]
    out = tiny.search(model, 11, algorithm=chosen, verifier=Weighted(), max_candidates=8, top_k=8)
    latent, images, noise, seed, score, report = out.args
    first = next(kept for kept in report.top if kept.evaluation.candidate == 0)
    assert torch.equal(first.row.x, tiny.stock(model, 11)["samples"])
    assert score > first.evaluation.score + 1 and report.best.evaluation.recipe[-1]["op"] == "ascent"
    assert "no plain seed" in seed.message
    sampler, sigmas = comfy.samplers.sampler_object("euler"), tiny.sigmas(model, 4)
    again = tiny.stock_custom(noise, tiny.guider(model), sampler, sigmas, tiny.latent())
    assert tiny.difference(latent, again) == 0.0
    with pytest.raises(SearchError, match="moved this noise along a gradient"):
        tiny.execute(NoiseFromRecipe, recipe=Recipe(report.best.evaluation.recipe).to_json())
    with pytest.raises(SearchError, match="expected a latent of that size"):
        noise.generate_noise(tiny.latent(16, 16))
    around = tiny.execute(NoiseCandidate, noise=noise, seed=1, cosine=0.9).args[0]
    found = tiny.search(model, candidates=around, verifier=Weighted(), max_candidates=3).args[5]
    assert found.evaluations[0].score == pytest.approx(score, rel=1e-6)
    assert found.evaluations[0].recipe == ({"op": "given", "seed": 11},)


def test_what_the_model_answered_is_kept_where_a_gradient_will_need_it_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Gathered] = []

    class Noted(Gathered):
        def __init__(self, *arguments: Any, **more: Any) -> None:
            super().__init__(*arguments, **more)
            made.append(self)

    monkeypatch.setattr(guided_sampler, "Gathered", Noted)
    port = port_of(tiny.sd3())
    [plain] = port.advance([start(port)], port.sigmas, Meter())
    [followed] = port.advance([start(port)], port.sigmas, Meter(), trail=True)
    assert [len(each.trail) for each in made] == [0, 3]
    assert plain.trail == () and len(followed.trail) == 3 and torch.equal(plain.x, followed.x)


def test_weights_that_share_one_place_in_memory_are_kept_for_the_way_back() -> None:
    class Patcher:
        def is_dynamic(self) -> bool:
            return True

    one, two = torch.eye(3) * 2, torch.eye(3) * 5
    buffer = torch.empty(3, 3)

    def slope(patcher: Any) -> torch.Tensor:
        with differentiable(), kept_weights(patcher):
            x = torch.ones(1, 3, requires_grad=True)
            y = x
            for weights in (one, two):  # as the host does where it pages weights: the next layer's over the last one's
                buffer.data.copy_(weights)
                y = torch.nn.functional.linear(y, torch.empty(0).set_(buffer.untyped_storage(), 0, (3, 3), (3, 1)))
            return gradient_of(y.sum(), [x])[0]

    assert torch.equal(slope(Patcher()), torch.full((1, 3), 10.0))
    assert torch.equal(slope(None), torch.full((1, 3), 25.0))  # what it is there against


@pytest.mark.parametrize("sampler_name", ["dpm_adaptive", "euler_cfg_pp", "dpmpp_2m_cfg_pp", "deis", "uni_pc"])
def test_samplers_without_a_gradient_are_refused(sampler_name: str) -> None:
    chosen = tiny.execute(algorithms.GradientSearch).args[0]
    with pytest.raises(SearchError, match="gradient takes the gradient of the score back.*such as euler"):
        tiny.search(tiny.sd3(), sampler_name=sampler_name, algorithm=chosen, verifier=Weighted())


def test_what_else_stands_in_the_way_is_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = tiny.execute(algorithms.GradientSearch).args[0]

    def refused(match: str, model: Any = None, **settings: Any) -> None:
        with pytest.raises(SearchError, match=match):
            tiny.search(model or tiny.sd3(), **{"algorithm": chosen, "verifier": Weighted(), **settings})

    cached = tiny.sd3().clone()
    cached.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "cache", lambda executor, *a, **k: executor(*a, **k))
    refused("EasyCache, LazyCache", cached)

    momentum = 0

    def remembering(args: dict[str, Any]) -> Any:
        nonlocal momentum
        momentum += 1
        return args["denoised"]

    guided = tiny.sd3().clone()
    guided.set_model_sampler_post_cfg_function(remembering)
    refused("APG momentum", guided)

    class Flat(tiny.PictureVAE):
        def decode(self, samples: torch.Tensor) -> torch.Tensor:
            return super().decode(samples).detach()

    refused("vae: no gradient passes", vae=Flat())

    class Rounded(Weighted):
        def score(self, images: torch.Tensor, prompt: str) -> torch.Tensor:
            return super().score(images.detach(), prompt)

    refused("rounded has none", verifier=Rounded("rounded"))

    stiff = tiny.sd3().clone()
    stiff.set_model_unet_function_wrapper(
        lambda apply, args: apply(args["input"], args["timestep"], **args["c"]).detach()
    )
    refused("model: no gradient passes through it .its answer does not depend", stiff)

    monkeypatch.setattr(comfy.model_management, "sage_attention_enabled", lambda: True)
    refused("SageAttention")
    tiny.search(tiny.sd3(), algorithm=chosen, verifier=Rounded(), max_candidates=1)  # the user's own candidate alone


def test_memory_that_runs_out_on_the_way_back_is_asked_for_again() -> None:
    left = {"faults": 1}

    def before() -> None:
        if torch.is_grad_enabled() and left["faults"]:
            left["faults"] -= 1
            raise torch.OutOfMemoryError("no memory left")

    chosen = tiny.execute(algorithms.GradientSearch).args[0]
    counted = tiny.Counted(tiny.sd3(), before)
    report = tiny.search(counted.model, algorithm=chosen, verifier=Weighted(), max_candidates=3, cfg=1.0).args[5]
    expected = tiny.search(tiny.sd3(), algorithm=chosen, verifier=Weighted(), max_candidates=3, cfg=1.0).args[5]
    assert left["faults"] == 0 and report.lost_nfe > 0 and report.nfe == expected.nfe
    assert [e.score for e in report.evaluations] == [e.score for e in expected.evaluations]
    assert any("model: out of memory on one candidate" in note for note in report.notes)


@pytest.mark.parametrize("sampler_name, calls", [("euler", 3), ("heun", 5)])
def test_the_nfe_of_a_gradient_are_counted_where_the_model_is_entered(sampler_name: str, calls: int) -> None:
    counted = tiny.Counted(tiny.sd3())
    chosen = tiny.execute(algorithms.GradientSearch).args[0]
    settings: dict[str, Any] = {"sampler_name": sampler_name, "steps": 3, "cfg": 1.0, "max_candidates": 0}
    report = tiny.search(
        counted.model, algorithm=chosen, verifier=Weighted(), max_nfe=4 * calls * 2 + calls, **settings
    ).args[5]
    assert len(report.finished) == 3 and report.nfe == 9 * calls  # two with a gradient, one without
    assert report.model_rows == counted.rows == 5 * calls


def test_the_first_climb_of_the_demo_pleases_clip_more_than_random_search(clip_score: ManagedVerifier) -> None:
    with torch.inference_mode():
        port = load_demo_world().sampler(PROMPT, steps=1)
        best = {}
        for name in ("random", "gradient"):
            report = search.run(
                search.algorithm(name), port, clip_score, search.Budget(nfe=40),
                candidates=search.Candidates.of_seed(100), prompt=PROMPT,
            )  # fmt: skip
            assert report.best is not None and report.nfe == 40
            best[name] = report.best.evaluation.score
    assert best["gradient"] > best["random"] + 0.1
