"""Masks, video, nested latents, regions, ControlNets, hooks and patches with memory: as stock, in every search."""

from __future__ import annotations

from typing import Any

import comfy.clip_vision
import comfy.controlnet
import comfy.hooks
import comfy.nested_tensor
import comfy.samplers
import comfy.utils
import node_helpers
import pytest
import torch
from comfy_extras.nodes_apg import APG
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode
from comfy_extras.nodes_lumina2 import RenormCFG
from comfy_extras.nodes_mahiro import Mahiro
from comfy_extras.nodes_model_advanced import RescaleCFG
from comfy_extras.nodes_perpneg import PerpNeg, PerpNegGuider
from comfy_extras.nodes_sag import SelfAttentionGuidance
from comfy_extras.nodes_slg import SkipLayerGuidanceDiT
from comfy_extras.nodes_tcfg import TCFG
from comfy_extras.nodes_video_model import VideoLinearCFGGuidance, VideoTriangleCFGGuidance

import nodes as host_nodes
from pack import search
from pack.nodes.guided_sampler import GuidedSampler
from pack.nodes.patches import keeps_memory, may_keep_memory
from pack.search import SearchError
from pack.tests.nodes import tiny

HAS_NESTED = tiny.HAS_MINIMAX
ALGORITHMS = {
    "random": search.algorithm("random"),
    "zero_order": search.algorithm("zero_order", neighbours=2),
    "paths": search.algorithm("paths", paths=2, width=2),
}


class Control(comfy.controlnet.ControlBase):
    """A ControlNet without a network: it adds its hint to the output of the block, as custom packs do."""

    def get_control(self, x_noisy: Any, t: Any, cond: Any, batched_number: int, transformer_options: Any) -> Any:
        previous = None
        if self.previous_controlnet is not None:
            previous = self.previous_controlnet.get_control(x_noisy, t, cond, batched_number, transformer_options)
        if self.cond_hint is None:
            self.cond_hint = self.cond_hint_original
        hint = comfy.controlnet.broadcast_image_to(self.cond_hint, x_noisy.shape[0], batched_number)
        return self.control_merge({"output": [hint.flatten(2).transpose(1, 2)]}, previous, x_noisy.dtype)

    def copy(self) -> Control:
        copied = Control()
        self.copy_to(copied)
        return copied


def controlled(seed: int, batch: int = 1, previous: Any = None) -> list[Any]:
    generator = torch.Generator().manual_seed(seed)
    control = Control().set_cond_hint(torch.randn(batch, tiny.WIDTH, 4, 4, generator=generator))
    control.set_previous_controlnet(previous)
    return node_helpers.conditioning_set_values(
        tiny.conditioning(seed), {"control": control, "control_apply_to_uncond": True}
    )


def regional() -> list[Any]:
    [left] = host_nodes.ConditioningSetArea().append(tiny.conditioning(5), 32, 64, 0, 0, 1.0)
    mask = torch.zeros(1, 64, 64)
    mask[:, 20:, 20:] = 1.0
    [corner] = host_nodes.ConditioningSetMask().append(tiny.conditioning(6), mask, "default", 0.7)
    return [*tiny.conditioning(1), *left, *corner]


def hooked(model: Any) -> list[Any]:
    """A positive with a weight hook, as a LoRA hook makes it."""
    group = comfy.hooks.HookGroup()
    name = "diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"
    weight = model.model.state_dict()[name]
    hook = comfy.hooks.WeightHook(strength_model=1.0)
    hook.weights = {name: ("diff", (torch.full_like(weight, 0.05),))}
    hook.need_weight_init = False
    group.add(hook)
    return node_helpers.conditioning_set_values(tiny.conditioning(1), {"hooks": group})


def masked(**more: Any) -> dict[str, Any]:
    samples = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(3))
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 3:] = 1.0
    return {"latent_image": {"samples": samples, "noise_mask": mask}, **more}


def cases() -> dict[str, Any]:
    """name -> (model, widgets)."""
    flow, wan, wan_mask = tiny.sd3(), tiny.wan(), torch.zeros(1, 8, 8)
    wan_mask[:, 3:] = 1.0
    generator = torch.Generator().manual_seed(4)
    video = {"samples": torch.randn(1, 16, 3, 8, 8, generator=generator)}
    nested = {"positive": tiny.conditioning(1, width=48), "negative": tiny.conditioning(2, width=48)}
    image = {"samples": torch.randn(1, 16, 8, 8, generator=generator)}
    batch = {"samples": torch.randn(2, 16, 8, 8, generator=generator)}
    masks = torch.stack([torch.zeros(8, 8), torch.ones(8, 8)])[:, None]
    masks[0, :, 4:] = 1.0
    return {
        "inpaint": (flow, masked()),
        "inpaint, denoise 0.7": (tiny.model_of("eps"), masked(denoise=0.7, steps=5)),
        "a mask per row": (flow, {"latent_image": {**batch, "noise_mask": masks}}),
        "image to image": (flow, {"latent_image": image, "denoise": 0.7, "steps": 5}),
        "video": (wan, {"latent_image": tiny.video_latent()}),
        "video with a mask": (wan, {"latent_image": {**video, "noise_mask": wan_mask}}),
        "v-prediction video": (tiny.cogvideox(), {"latent_image": tiny.video_latent()}),
        **({"nested": (tiny.minimax_h3(), {"latent_image": tiny.nested_latent(), **nested})} if HAS_NESTED else {}),
        "regions": (flow, {"positive": regional()}),
        "conditioning of batch 3": (flow, {"positive": tiny.conditioning(1, batch=3)}),
        "conditioning of batch 2, latent of 2": (
            flow,
            {"positive": tiny.conditioning(1, batch=2), "latent_image": batch},
        ),
        "texts of two lengths": (flow, {"positive": tiny.conditioning(1, tokens=12)}),
        "ControlNet": (flow, {"positive": controlled(7)}),
        "two ControlNets": (
            flow,
            {"positive": controlled(7, previous=Control().set_cond_hint(torch.ones(1, 64, 4, 4)))},
        ),
        "ControlNet with a hint of 3": (flow, {"positive": controlled(7, batch=3)}),
        "ControlNet after one with a hint of 3": (
            flow,
            {
                "positive": controlled(
                    7, previous=Control().set_cond_hint(torch.randn(3, 64, 4, 4, generator=generator))
                )
            },
        ),
        "hooks": (flow, {"positive": hooked(flow)}),
        "reference latents": (tiny.flux(), {"positive": references()}),
        "one video of three frames": (tiny.svd(), {**first_frame(), "latent_image": four_channels(3)}),
        "two pictures to fill": (tiny.flux_fill(), to_fill(2)),
        "a picture to fill": (tiny.flux_fill(), to_fill(1)),
        "three pictures seen": (
            tiny.wan(in_dim=36, model_type="i2v"),
            {"positive": seen(3), "latent_image": tiny.video_latent()},
        ),
    }


def first_frame() -> dict[str, Any]:
    """The conditioning of a video that begins with a picture."""
    generator = torch.Generator().manual_seed(6)
    text, picture = torch.randn(1, 2, 16, generator=generator), torch.randn(1, 4, 8, 8, generator=generator)
    told = {"motion_bucket_id": 127, "fps": 6, "augmentation_level": 0.0}
    return {
        "positive": [[text, {**told, "concat_latent_image": picture}]],
        "negative": [[0 * text, {**told, "concat_latent_image": 0 * picture}]],
    }


def four_channels(batch: int) -> dict[str, Any]:
    return {"samples": torch.zeros(batch, 4, 8, 8)}


def seen(count: int) -> list[Any]:
    """A text beside what CLIP Vision made of pictures."""
    made = comfy.clip_vision.Output()
    made["penultimate_hidden_states"] = torch.randn(count, 5, 1280, generator=torch.Generator().manual_seed(9))
    return node_helpers.conditioning_set_values(tiny.conditioning(1), {"clip_vision_output": made})


def to_fill(count: int) -> dict[str, Any]:
    """Different pictures with different masks, as InpaintModelConditioning writes them."""
    pictures = torch.randn(count, 16, 8, 8, generator=torch.Generator().manual_seed(5))
    masks = torch.zeros(count, 1, 64, 64)
    masks[0, ..., 32:], masks[-1, ..., :32] = 1.0, 1.0
    beside = {"concat_latent_image": pictures, "concat_mask": masks}
    texts = {"positive": tiny.conditioning(1), "negative": tiny.conditioning(2)}
    return {
        **{name: node_helpers.conditioning_set_values(text, beside) for name, text in texts.items()},
        "latent_image": {"samples": pictures.clone(), "noise_mask": masks},
    }


def references() -> list[Any]:
    images = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(8))
    return node_helpers.conditioning_set_values(tiny.conditioning(1), {"reference_latents": [images]})


CASES = cases()


@pytest.mark.parametrize("case", CASES)
def test_one_candidate_and_every_candidate_equal_stock(case: str) -> None:
    model, widgets = CASES[case]
    expected = tiny.stock(model, 11, **widgets)
    assert tiny.difference(tiny.search(model, max_candidates=1, **widgets).args[0], expected) == 0.0
    out = tiny.search(model, max_candidates=4, batch_size=4, top_k=4, **widgets)
    port = out.args[0]
    for kept in out.args[5].top:
        row = {"samples": unpacked(kept.row.x, port["samples"])}
        # a sigma of 4518 magnifies the rounding of a batch
        tolerance = 3e-5 if case == "v-prediction video" else 1e-5
        assert tiny.difference(row, tiny.stock(model, kept.evaluation.seed, **widgets)) <= tolerance


def unpacked(x: torch.Tensor, like: Any) -> Any:
    if not like.is_nested:
        return x
    return comfy.nested_tensor.NestedTensor(comfy.utils.unpack_latents(x, [part.shape for part in like.unbind()]))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("algorithm", ["zero_order", "paths"])
def test_every_algorithm_runs_on_it(case: str, algorithm: str) -> None:
    model, widgets = CASES[case]
    report = tiny.search(model, max_candidates=5, batch_size=3, algorithm=ALGORITHMS[algorithm], **widgets).args[5]
    assert len(report.finished) == 5 and all(e.score == e.score for e in report.finished)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("denoise", [1.0, 0.7])
def test_the_kept_region_is_as_exact_as_in_stock(algorithm: str, denoise: float) -> None:
    for family in ("flow", "eps"):
        model, widgets = tiny.model_of(family), masked(denoise=denoise, steps=6)
        kept = widgets["latent_image"]["samples"][..., :3]
        stock = (tiny.stock(model, 11, **widgets)["samples"][..., :3] - kept).abs().max()
        out = tiny.search(model, max_candidates=6, batch_size=3, algorithm=ALGORITHMS[algorithm], **widgets, top_k=6)
        for candidate in out.args[5].top:
            assert (candidate.row.x[..., :3] - kept).abs().max() <= max(float(stock), 1e-6) * 1.5


@pytest.mark.skipif(not HAS_NESTED, reason="this ComfyUI has no MiniMax H3")
def test_a_model_that_takes_one_candidate_at_a_time_is_noted() -> None:
    model, widgets = CASES["nested"]
    out = tiny.search(model, max_candidates=4, batch_size=4, **widgets)
    assert [note for note in out.args[5].notes if "one candidate at a time" in note and "batch size 1" in note]
    assert out.args[0]["samples"].is_nested and out.args[1].ndim == 4
    assert out.args[5].nfe == 4 * 4


def test_a_video_gives_all_frames_of_the_best() -> None:
    model, widgets = CASES["video"]
    out = tiny.search(model, max_candidates=3, batch_size=3, **widgets)
    assert out.args[1].shape == (3, 8, 8, 3)
    assert torch.equal(out.args[1], out.args[5].best.images[0])


# patches with memory

PATCHED = {
    "EasyCache": lambda m: EasyCacheNode.execute(m, 0.5, 0.0, 1.0, False).args[0],
    "LazyCache": lambda m: LazyCacheNode.execute(m, 0.5, 0.0, 1.0, False).args[0],
    "APG": lambda m: APG.execute(m, 0.8, 3.0, -0.5).args[0],
}


@pytest.mark.parametrize("patch", PATCHED)
@pytest.mark.parametrize("build", [tiny.flux, tiny.sd3])
def test_patches_with_memory_are_stock_for_every_candidate(patch: str, build: Any) -> None:
    model = PATCHED[patch](build())
    settings = {"steps": 8}
    assert (
        tiny.difference(tiny.search(model, max_candidates=1, **settings).args[0], tiny.stock(model, 11, **settings))
        == 0.0
    )
    out = tiny.search(model, max_candidates=5, batch_size=3, top_k=5, **settings)
    for kept in out.args[5].top:
        expected = tiny.stock(model, kept.evaluation.seed, **settings)
        assert tiny.difference({"samples": kept.row.x}, expected) <= (1e-5 if patch == "APG" else 0.0)


@pytest.mark.parametrize("patch", PATCHED)
def test_paths_refuse_patches_with_memory(patch: str) -> None:
    counted = tiny.Counted(PATCHED[patch](tiny.sd3()))
    with pytest.raises(SearchError, match=f"algorithm: paths .*{patch}.*use Search: Random"):
        tiny.search(counted.model, algorithm=ALGORITHMS["paths"])
    assert counted.sizes == []


def test_paths_refuse_a_sampler_that_is_no_ksampler() -> None:
    class Other(comfy.samplers.Sampler):
        def sample(
            self, model_wrap: Any, sigmas: Any, extra_args: Any, callback: Any, noise: Any, *_: Any, **__: Any
        ) -> Any:
            return noise

    model = tiny.sd3()
    with pytest.raises(SearchError, match="SAMPLER \\(Other\\) can only run whole trajectories"):
        tiny.search_custom(1, tiny.guider(model), Other(), tiny.sigmas(model), algorithm=ALGORITHMS["paths"])
    report = tiny.search_custom(1, tiny.guider(model), Other(), tiny.sigmas(model), max_candidates=3).args[5]
    assert len(report.finished) == 3


def test_memory_in_a_guidance_patch_is_recognised() -> None:
    def functions(model: Any) -> list[Any]:
        options = model.model_options
        return [*options.get("sampler_pre_cfg_function", []), options.get("sampler_cfg_function", len)]

    assert any(map(keeps_memory, functions(PATCHED["APG"](tiny.sd3()))))
    [rescaled] = RescaleCFG().patch(tiny.sd3(), 0.7)
    assert not any(map(keeps_memory, functions(rescaled)))
    out = tiny.search(rescaled, max_candidates=4, batch_size=4, algorithm=ALGORITHMS["paths"])
    assert len(out.args[5].finished) == 4


def test_conditioning_mixed_with_noise_of_the_seed_is_not_shared() -> None:
    positive = node_helpers.conditioning_set_values(tiny.conditioning(1), {"noise_augmentation": 0.3})
    model, guider = tiny.sd3(), tiny.guider(tiny.sd3())
    guider.set_conds(positive, tiny.conditioning(2))
    port = GuidedSampler(guider, comfy.samplers.sampler_object("euler"), tiny.sigmas(model), tiny.latent(), None)
    assert port.micro_batch() == 1


# guidance that mixes the rows it sees

GUIDANCE = {
    "linear over the batch": lambda m: VideoLinearCFGGuidance().patch(m, 1.0)[0],
    "triangle over the batch": lambda m: VideoTriangleCFGGuidance().patch(m, 1.0)[0],
    "Mahiro": lambda m: Mahiro.execute(m).args[0],
    "RenormCFG": lambda m: RenormCFG.execute(m, 100.0, 1.0).args[0],
    "Perp-Neg": lambda m: PerpNeg.execute(m, tiny.conditioning(3), 1.0).args[0],
    "TCFG": lambda m: TCFG.execute(m).args[0],
    "layers left out, rescaled": lambda m: SkipLayerGuidanceDiT.execute(
        m, 3.0, 0.0, 1.0, "0", "", rescaling_scale=0.5
    ).args[0],
    "TCFG, Mahiro and linear": lambda m: GUIDANCE["TCFG"](GUIDANCE["Mahiro"](GUIDANCE["linear over the batch"](m))),
}


@pytest.mark.parametrize("guidance", GUIDANCE)
@pytest.mark.parametrize("sampler_name", ["euler", "euler_ancestral_cfg_pp"])
def test_guidance_that_mixes_rows_sees_one_candidate_at_a_time(guidance: str, sampler_name: str) -> None:
    counted = tiny.Counted(GUIDANCE[guidance](tiny.sd3()))
    rows = 1 if guidance == "RenormCFG" else 3  # it takes no batch, in stock neither
    widgets = {"latent_image": tiny.latent(batch=rows), "sampler_name": sampler_name}
    out = tiny.search(counted.model, max_candidates=4, batch_size=4, top_k=4, **widgets)
    assert max(counted.sizes) == 2 * 4 * rows  # the forward is shared all the same
    for kept in out.args[5].top:
        expected = tiny.stock(counted.model, kept.evaluation.seed, **widgets)
        assert tiny.difference({"samples": kept.row.x}, expected) <= 1e-5


def test_a_guider_that_goes_its_own_way_goes_with_one_candidate_at_a_time() -> None:
    model, texts = tiny.sd3(), [tiny.conditioning(seed) for seed in (1, 2, 3)]
    guider = PerpNegGuider.execute(model, *texts, 3.0, 1.0).args[0]
    euler, sigmas = comfy.samplers.sampler_object("euler"), tiny.sigmas(model)
    out = tiny.search_custom(1, guider, euler, sigmas, max_candidates=4, batch_size=4, top_k=4)
    for kept in out.args[5].top:
        expected = tiny.stock_custom(kept.evaluation.seed, guider, euler, sigmas, tiny.latent())
        assert tiny.difference({"samples": kept.row.x}, expected) == 0.0


def choosy() -> Any:
    """A model with a patch on its network that was made for one row."""

    def patch(apply: Any, args: dict[str, Any]) -> torch.Tensor:
        scale = 1.0 if args["timestep"] >= 0 else 0.0
        return scale * apply(args["input"], args["timestep"], **args["c"])

    model = tiny.sd3()
    model.set_model_unet_function_wrapper(patch)
    return model


def test_an_error_of_a_shared_forward_leads_to_one_candidate_at_a_time() -> None:
    out = tiny.search(choosy(), max_candidates=4, batch_size=4, top_k=4, cfg=1.0)
    [note] = [note for note in out.args[5].notes if "one candidate at a time" in note]
    assert "RuntimeError: Boolean value of Tensor with more than one value is ambiguous" in note
    assert out.args[5].nfe == 4 * 4
    for kept in out.args[5].top:
        expected = tiny.stock(tiny.sd3(), kept.evaluation.seed, cfg=1.0)
        assert tiny.difference({"samples": kept.row.x}, expected) == 0.0


def test_an_error_of_every_forward_is_raised_as_it_is() -> None:
    with pytest.raises(RuntimeError, match="Boolean value of Tensor") as raised:
        tiny.search(choosy(), max_candidates=4, batch_size=4)  # conditional and unconditional are two rows
    assert raised.value.__context__ is None


class Momentum:
    """A guidance patch whose memory is in an attribute."""

    def __init__(self) -> None:
        self.last = 0.0

    def __call__(self, args: dict[str, Any]) -> torch.Tensor:
        self.last = 0.5 * self.last + args["denoised"]
        return self.last

    def method(self, args: dict[str, Any]) -> torch.Tensor:
        return self(args)


def in_a_dict() -> Any:
    memory = {"last": 0.0}

    def function(args: dict[str, Any]) -> torch.Tensor:
        memory["last"] = 0.5 * memory["last"] + args["denoised"]
        return memory["last"]

    return function


def in_a_list() -> Any:
    memory: list[torch.Tensor] = []
    return lambda args: memory.append(args["denoised"]) or sum(memory) / len(memory)


def in_a_list_by_a_helper() -> Any:
    """Read by the function itself, which comes first, and written by another that it holds."""
    memory: list[torch.Tensor] = []

    def remember(x: torch.Tensor) -> None:
        memory.append(x)

    def function(args: dict[str, Any]) -> torch.Tensor:
        remember(args["denoised"])
        return sum(memory) / len(memory)

    return function


OF_MODULE = {"last": 0.0}
OBJECT_OF_MODULE = Momentum()


def remember_in_module(x: Any) -> None:
    OF_MODULE["last"] = x


def reads_a_dict_of_its_module(args: dict[str, Any]) -> torch.Tensor:
    remembered = 0.5 * OF_MODULE["last"] + args["denoised"]
    remember_in_module(remembered)
    return remembered


MEMORIES = {
    "an object": Momentum,
    "a method": lambda: Momentum().method,
    "a dict": in_a_dict,
    "a list": in_a_list,
    "a list that a helper writes": in_a_list_by_a_helper,
    "a dict of its module that a helper writes": lambda: reads_a_dict_of_its_module,
    "an object of its module": lambda: lambda args: OBJECT_OF_MODULE(args),
    "a function in a function": lambda: (lambda inner: lambda args: inner(args))(in_a_dict()),
}


@pytest.mark.parametrize("memory", MEMORIES)
def test_guidance_that_may_remember_goes_with_one_candidate_at_a_time(memory: str) -> None:
    assert may_keep_memory(MEMORIES[memory]())
    model = tiny.sd3()
    model.set_model_sampler_post_cfg_function(MEMORIES[memory]())
    out = tiny.search(model, max_candidates=3, batch_size=3, top_k=3)
    assert out.args[5].nfe == 3 * 4 and port_of(model).micro_batch() == 1


def port_of(model: Any) -> GuidedSampler:
    euler = comfy.samplers.sampler_object("euler")
    return GuidedSampler(tiny.guider(model), euler, tiny.sigmas(model), tiny.latent(), tiny.PictureVAE())


def test_guidance_without_a_memory_shares_forwards_and_with_a_patch_inside_the_model_it_does_not() -> None:
    for guidance, patch in GUIDANCE.items():
        model = patch(tiny.sd3())
        assert port_of(model).micro_batch() > 1, guidance
    assert port_of(SelfAttentionGuidance.execute(tiny.sd3(), 0.5, 2.0).args[0]).micro_batch() == 1
    assert port_of(PATCHED["APG"](tiny.sd3())).micro_batch() == 1


def test_of_several_videos_the_best_comes_whole_and_the_others_as_latents_with_one_frame() -> None:
    out = tiny.search(tiny.wan(), max_candidates=4, top_k=3, batch_size=4, latent_image=tiny.video_latent())
    latent, images, report = out.args[0], out.args[1], out.args[5]
    assert torch.equal(images, tiny.PictureVAE().decode(latent["samples"])[0]) and len(images) == 3
    for kept in report.top[1:]:
        assert torch.equal(kept.images, tiny.PictureVAE().decode(kept.row.x)[:, 1:2])
