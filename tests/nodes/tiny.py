"""Tiny real models for node tests: ComfyUI's own architectures with a few thousand random weights."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from typing import Any

import comfy.ldm.cogvideo.model as cogvideo
import comfy.ldm.flux.model as flux_model
import comfy.ldm.modules.diffusionmodules.mmdit as mmdit
import comfy.ldm.wan.model as wan_model
import comfy.model_base
import comfy.model_patcher
import comfy.nested_tensor
import comfy.ops
import comfy.patcher_extension
import comfy.samplers
import comfy.sd
import comfy.supported_models
import torch
from comfy_api.latest import io
from comfy_extras.nodes_custom_sampler import Noise_RandomNoise, SamplerCustomAdvanced
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

import nodes as host_nodes
from pack.nodes.search_sampler import SearchSampler, SearchSamplerAdvanced

CHANNELS, WIDTH, POOLED = 16, 64, 32
#: Older ComfyUI versions do not know the only tiny model with nested latents.
HAS_MINIMAX = importlib.util.find_spec("comfy.ldm.minimax") is not None


def random_weights(shapes: dict[str, torch.Size], seed: int = 0, scale: float = 0.5) -> dict[str, torch.Tensor]:
    """Gaussian weights with standard deviation scale / sqrt(fan-in); biases small, norms one."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes.items():
        fan_in = max(1, int(torch.tensor(shape[1:]).prod())) if len(shape) > 1 else 1
        deviation = scale / fan_in**0.5 if len(shape) > 1 else 0.02
        is_norm = len(shape) == 1 and "norm" in name and name.endswith(("weight", "scale"))
        weights[name] = torch.ones(shape) if is_norm else torch.randn(shape, generator=generator) * deviation
    return weights


def sd3(seed: int = 0) -> Any:
    """A one-block SD3 (flow) as a MODEL."""
    return comfy.sd.load_diffusion_model_state_dict(sd3_weights(seed))


def sd3_weights(seed: int = 0) -> dict[str, torch.Tensor]:
    """The weights of that model, under the names that ComfyUI knows it by."""
    with torch.device("meta"):
        module = mmdit.OpenAISignatureMMDITWrapper(
            in_channels=CHANNELS, patch_size=2, out_channels=CHANNELS, depth=1, adm_in_channels=POOLED,
            context_embedder_config={"target": "torch.nn.Linear", "params": {"in_features": WIDTH, "out_features": 64}},
            num_patches=256, pos_embed_max_size=16, operations=comfy.ops.manual_cast, dtype=torch.float32,
        )  # fmt: skip
    return weights_of(module, seed)


def weights_of(module: torch.nn.Module, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights for a network's architecture."""
    return random_weights({name: tensor.shape for name, tensor in module.state_dict().items()}, seed)


def loaded(module: torch.nn.Module, seed: int = 0, config: dict[str, Any] | None = None) -> Any:
    """A MODEL of a network's architecture, through ComfyUI's own detection and loader."""
    metadata = {"config": json.dumps({"transformer": config})} if config else None
    return comfy.sd.load_diffusion_model_state_dict(weights_of(module, seed), metadata=metadata)


def flux(seed: int = 0, in_channels: int = CHANNELS) -> Any:
    """A Flux (flow, guidance embedding) of one double and one single block."""
    with torch.device("meta"):
        module = flux_model.Flux(
            in_channels=in_channels, out_channels=CHANNELS, vec_in_dim=POOLED, context_in_dim=WIDTH, hidden_size=128,
            mlp_ratio=4.0, num_heads=1, depth=1, depth_single_blocks=1, axes_dim=[16, 56, 56], theta=10000,
            patch_size=2, qkv_bias=True, guidance_embed=True, txt_ids_dims=[], operations=comfy.ops.manual_cast,
            dtype=torch.float32,
        )  # fmt: skip
    return loaded(module, seed)


def wan(seed: int = 0, in_dim: int = CHANNELS, model_type: str = "t2v", **config: Any) -> Any:
    """A Wan 2.1 (flow, latents [B, 16, T, h, w]); "i2v" with 36 channels also takes a picture."""
    with torch.device("meta"):
        module = wan_model.WanModel(
            model_type=model_type, in_dim=in_dim, dim=48, ffn_dim=64, num_heads=2, num_layers=1, text_dim=WIDTH,
            operations=comfy.ops.manual_cast, dtype=torch.float32,
        )  # fmt: skip
    return loaded(module, seed, {"num_heads": 2, "text_dim": WIDTH, **config})


def cogvideox(seed: int = 0) -> Any:
    """A CogVideoX (v-prediction with a sigma_max in the thousands, latents [B, 16, T, h, w])."""
    with torch.device("meta"):
        module = cogvideo.CogVideoXTransformer3DModel(
            num_attention_heads=1, attention_head_dim=64, time_embed_dim=64, text_embed_dim=WIDTH, num_layers=1,
            use_rotary_positional_embeddings=True, operations=comfy.ops.manual_cast, dtype=torch.float32,
        )  # fmt: skip
    return loaded(module, seed)


def svd(seed: int = 0) -> Any:
    """A Stable Video Diffusion (v-prediction, latents [frames, 4, h, w] that are one video)."""
    config = comfy.supported_models.SVD_img2vid({
        "image_size": 32, "in_channels": 8, "out_channels": 4, "model_channels": 32, "num_res_blocks": [1],
        "channel_mult": [1], "transformer_depth": [1], "transformer_depth_output": [1, 1],
        "transformer_depth_middle": -2, "context_dim": 16, "num_heads": -1, "num_classes": "sequential",
        "adm_in_channels": 768, "use_temporal_attention": True, "use_temporal_resblock": True,
        "use_spatial_transformer": True, "use_linear_in_transformer": True, "legacy": False,
        "extra_ff_mix_layer": True, "video_kernel_size": [3, 1, 1], "max_ddpm_temb_period": 10000,
        "merge_strategy": "learned_with_images", "dtype": torch.float32,
    })  # fmt: skip
    config.unet_config["num_head_channels"] = 8  # the class's own is 64, more than this network has
    config.set_inference_dtype(torch.float32, None)
    model, cpu = comfy.model_base.SVD_img2vid(config, device="cpu"), torch.device("cpu")
    weights = weights_of(model.diffusion_model, seed)
    mixes = {name: torch.zeros_like(w) for name, w in weights.items() if name.endswith("mix_factor")}
    model.diffusion_model.load_state_dict({**weights, **mixes})
    return comfy.model_patcher.ModelPatcher(model.eval(), cpu, cpu)


def flux_fill(seed: int = 0) -> Any:
    """A Flux Fill: the Flux of `flux` that also takes a picture and a mask."""
    return flux(seed, in_channels=96)


def minimax_h3(seed: int = 0) -> Any:
    """A MiniMax H3 (flow, nested video and audio latents, one candidate per forward); see HAS_MINIMAX."""
    import comfy.ldm.minimax.model as minimax

    with torch.device("meta"):
        module = minimax.MiniMaxH3Model(
            hidden_size=96, num_layers=1, token_refiner_num_layers=1, num_attention_heads=1, attention_head_dim=96,
            ffn_hidden_size=64, text_dim=48, timestep_input_dim=32, time_embed_hidden_size=32, time_embed_dim=32,
            operations=comfy.ops.manual_cast, dtype=torch.float32,
        )  # fmt: skip
    return loaded(module, seed)


def discrete(model: Any, kind: str = "eps") -> Any:
    """The same network under another parametrisation, through ComfyUI's own node."""
    return ModelSamplingDiscrete().patch(model, kind, False)[0]


def model_of(family: str) -> Any:
    """A MODEL of a family: flow, eps or v_prediction."""
    return sd3() if family == "flow" else discrete(sd3(), family)


def conditioning(seed: int, tokens: int = 8, width: int = WIDTH, batch: int = 1) -> list[Any]:
    """Random CONDITIONING for `sd3`."""
    generator = torch.Generator().manual_seed(seed)
    pooled = torch.randn(batch, POOLED, generator=generator)
    return [[torch.randn(batch, tokens, width, generator=generator), {"pooled_output": pooled}]]


def guider(model: Any, cfg: float = 3.0) -> Any:
    """A stock CFGGuider with a positive and a negative."""
    made = comfy.samplers.CFGGuider(model)
    made.set_conds(conditioning(1), conditioning(2))
    made.set_cfg(cfg)
    return made


def latent(height: int = 8, width: int = 8, batch: int = 1) -> dict[str, Any]:
    """An empty LATENT."""
    return {"samples": torch.zeros(batch, CHANNELS, height, width)}


def sigmas(model: Any, steps: int = 6, scheduler: str = "simple") -> torch.Tensor:
    """Stock SIGMAS."""
    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), scheduler, steps)


class PictureVAE:
    """Decodes a latent by its first three channels: enough for verifiers that only need some picture."""

    def decode(self, samples: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W] -> [B, H, W, 3] in 0..1; a time axis stays where ComfyUI has it, after the batch."""
        return torch.sigmoid(samples[:, :3].movedim(1, -1))


def video_latent(frames: int = 3) -> dict[str, Any]:
    """An empty video LATENT."""
    return {"samples": torch.zeros(1, CHANNELS, frames, 8, 8)}


def nested_latent() -> dict[str, Any]:
    """An empty LATENT of video and audio for `minimax_h3`."""
    parts = [torch.zeros(1, 24, 2, 4, 4), torch.zeros(1, 32, 2, 6)]
    return {"samples": comfy.nested_tensor.NestedTensor(parts)}


class Mean:
    """A deterministic verifier: brighter is better. Counts its calls and may be told to fail."""

    needs_prompt = False

    def __init__(self, name: str = "mean", before: Callable[[], None] | None = None) -> None:
        self.name, self.before = name, before
        self.seen = 0

    def score(self, images: torch.Tensor, prompt: str) -> torch.Tensor:
        """The mean of all pixels."""
        if self.before:
            self.before()
        self.seen += len(images)
        return images.double().mean(dim=(1, 2, 3))


class Later(Mean):
    """The later an image comes, the better: the last candidate wins."""

    def score(self, images: torch.Tensor, prompt: str) -> torch.Tensor:
        """1, 2, 3 and so on."""
        super().score(images, prompt)
        return torch.arange(self.seen - len(images) + 1, self.seen + 1, dtype=torch.float32)


class Counted:
    """Counts what enters a MODEL: calls and rows. `before` runs first and may raise."""

    def __init__(self, model: Any, before: Callable[[], None] | None = None) -> None:
        self.model = model.clone()
        self.sizes: list[int] = []
        self.before = before
        self.model.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.APPLY_MODEL, "test_counter", self._count)

    def _count(self, executor: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.before:
            self.before()
        self.sizes.append(int(x.shape[0]))
        return executor(x, *args, **kwargs)

    @property
    def rows(self) -> int:
        """Rows that entered the model."""
        return sum(self.sizes)


def parts(samples: Any) -> list[torch.Tensor]:
    """The tensors of a latent."""
    return list(samples.unbind()) if samples.is_nested else [samples]


def difference(a: dict[str, Any], b: dict[str, Any]) -> float:
    """The largest difference of two LATENTs, relative to the largest value; NaN where they differ in NaN."""
    worst = 0.0
    for x, y in zip(parts(a["samples"]), parts(b["samples"]), strict=True):
        assert x.shape == y.shape and x.dtype == y.dtype
        if not torch.equal(x.isnan(), y.isnan()):
            return float("nan")
        worst = max(worst, float((x - y).nan_to_num().abs().max() / y.nan_to_num().abs().max().clamp(min=1.0)))
    return worst


def stock(model: Any, seed: int, **settings: Any) -> dict[str, Any]:
    """What stock KSampler makes of the same widgets."""
    w = {**WIDGETS, **settings}
    with torch.inference_mode():
        [out] = host_nodes.KSampler().sample(
            model, seed, w["steps"], w["cfg"], w["sampler_name"], w["scheduler"], w["positive"], w["negative"],
            w["latent_image"], w["denoise"],
        )  # fmt: skip
    return out


def stock_custom(noise: Any, guider: Any, sampler: Any, sigmas: torch.Tensor, latent_image: Any) -> dict[str, Any]:
    """What stock SamplerCustomAdvanced makes of the same inputs."""
    with torch.inference_mode():
        noise = Noise_RandomNoise(noise) if isinstance(noise, int) else noise
        return SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas.clone(), latent_image).args[0]


WIDGETS: dict[str, Any] = {
    "steps": 4, "cfg": 3.0, "sampler_name": "euler", "scheduler": "simple", "positive": conditioning(1),
    "negative": conditioning(2), "latent_image": latent(), "denoise": 1.0,
}  # fmt: skip


def execute(node: type[io.ComfyNode], graph: Any = None, **inputs: Any) -> io.NodeOutput:
    """Run a V3 node as ComfyUI's executor does: on a clone of the class that knows its hidden values."""
    hidden = {io.Hidden.unique_id: "7", io.Hidden.dynprompt: graph}
    v3_data = {"hidden_inputs": hidden}
    with torch.inference_mode():
        return node.PREPARE_CLASS_CLONE(v3_data).execute(**inputs)


def search(model: Any, seed: int = 11, **settings: Any) -> io.NodeOutput:
    """Run Search Sampler on a MODEL with WIDGETS unless told otherwise."""
    inputs = {**WIDGETS, "vae": PictureVAE(), "verifier": Mean(), **settings}
    return execute(SearchSampler, model=model, seed=seed, **inputs)


def search_custom(noise: Any, guider: Any, sampler: Any, sigmas: torch.Tensor, **settings: Any) -> io.NodeOutput:
    """Run Search Sampler (Advanced)."""
    inputs = {"latent_image": latent(), "vae": PictureVAE(), "verifier": Mean(), **settings}
    noise = Noise_RandomNoise(noise) if isinstance(noise, int) else noise
    return execute(SearchSamplerAdvanced, noise=noise, guider=guider, sampler=sampler, sigmas=sigmas, **inputs)
