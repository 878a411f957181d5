"""A node pack for the tests' server: tiny random models in place of the loaders that cannot take a tiny file.

ComfyUI recognises SDXL by its width and has fixed sizes for CLIP and T5. These two nodes have the names, inputs and
outputs of the stock loaders and build ComfyUI's own classes for the same family, with small sizes. ComfyUI loads this
file by its path, so it imports nothing of the pack.
"""

from __future__ import annotations

from typing import Any

import comfy.ldm.modules.diffusionmodules.model as autoencoder
import comfy.model_management as management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.sdxl_clip
import comfy.supported_models
import comfy.supported_models_base
import comfy.text_encoders.flux
import torch

#: Sizes of a text tower that replace those of ComfyUI's JSON files.
CLIP = {"intermediate_size": 64, "num_attention_heads": 1, "num_hidden_layers": 3}
T5 = {"d_model": 64, "d_ff": 64, "d_kv": 64, "num_heads": 1, "num_layers": 1}


def filled(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    """The module with random weights; ComfyUI's layers leave theirs as the memory was."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 0
        noise = torch.randn(parameter.shape, generator=generator)
        one = parameter.ndim == 1 and name.endswith("weight")  # the scale of a norm
        parameter.data = noise / fan_in**0.5 if fan_in else noise * 0.02 + float(one)
    return module.requires_grad_(False).eval()


def decoder(channels: int) -> dict[str, torch.Tensor]:
    """The decoder of Stable Diffusion's and FLUX's autoencoder as their files have it, a quarter as wide."""
    made = autoencoder.Decoder(
        ch=32, out_ch=3, ch_mult=(1, 2, 4, 4), num_res_blocks=2, attn_resolutions=[], in_channels=3, resolution=256,
        z_channels=channels,
    )  # fmt: skip
    weights = filled(made, seed=3).state_dict()
    # FLUX's file ends here; SDXL's has one more convolution in front.
    before = {"post_quant_conv.weight": torch.eye(4)[..., None, None], "post_quant_conv.bias": torch.zeros(4)}
    return {**{f"decoder.{name}": tensor for name, tensor in weights.items()}, **(before if channels == 4 else {})}


def text_encoder(tokenizer: type, network: type, **sizes: dict[str, int]) -> Any:
    """ComfyUI's CLIP object with the tokenizer of the family and a small network."""
    target = comfy.supported_models_base.ClipTarget(tokenizer, network)
    made = comfy.sd.CLIP(target, model_options={f"{name}_model_config": size for name, size in sizes.items()})
    filled(made.cond_stage_model, seed=2)
    return made


def sdxl() -> Any:
    """An SDXL (eps, size conditioning, cross-attention on both CLIPs) of two levels, as a MODEL."""
    config = comfy.supported_models.SDXL(
        {
            "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "channel_mult": [1, 2],
            "num_res_blocks": [1, 1], "transformer_depth": [0, 1], "transformer_depth_middle": 1,
            "transformer_depth_output": [0, 0, 1, 1], "num_head_channels": 32, "context_dim": 64 + 64,
            "num_classes": "sequential", "adm_in_channels": 64 + 6 * 256, "use_spatial_transformer": True,
            "use_linear_in_transformer": True, "legacy": False, "use_temporal_attention": False,
        }
    )  # fmt: skip
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "")
    filled(model.diffusion_model, seed=1)
    return comfy.model_patcher.CoreModelPatcher(
        model, load_device=management.get_torch_device(), offload_device=management.unet_offload_device()
    )


class TinyCheckpointLoader:
    """Load Checkpoint, for SDXL."""

    CATEGORY, FUNCTION, RETURN_TYPES = "tests", "load", ("MODEL", "CLIP", "VAE")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"ckpt_name": ("STRING", {})}}

    def load(self, ckpt_name: str) -> tuple[Any, Any, Any]:
        """The three parts of a checkpoint, whatever its name."""
        small = {"hidden_size": 64, **CLIP}
        clip = text_encoder(comfy.sdxl_clip.SDXLTokenizer, comfy.sdxl_clip.SDXLClipModel, clip_l=small, clip_g=small)
        return sdxl(), clip, comfy.sd.VAE(sd=decoder(4))


class TinyDualCLIPLoader:
    """Load CLIP (Dual), for FLUX."""

    CATEGORY, FUNCTION, RETURN_TYPES = "tests", "load", ("CLIP",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        names = ("clip_name1", "clip_name2", "type", "device")
        return {"required": {name: ("STRING", {}) for name in names}}

    def load(self, **names: str) -> tuple[Any]:
        """FLUX's two text encoders, whatever their names."""
        flux = comfy.text_encoders.flux
        small = {"hidden_size": 32, **CLIP}
        return (text_encoder(flux.FluxTokenizer, flux.flux_clip(torch.float32), clip_l=small, t5xxl=T5),)


NODE_CLASS_MAPPINGS = {"TinyCheckpointLoader": TinyCheckpointLoader, "TinyDualCLIPLoader": TinyDualCLIPLoader}
