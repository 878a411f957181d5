"""What a look on the way costs in model calls, through the model's own VAE and through TAESD as `preview_vae`.

    python run.py bench look_cost

The networks of SD1.5 (512 x 512), SDXL and FLUX.1-dev (1024 x 1024) are built by ComfyUI's own classes in their real
sizes without weights (on the meta device), and the multiplications of their forwards counted, which is exact and takes
no GPU: FLOPs, not seconds, so what a GPU is bad at (many small layers, memory traffic) does not show. One NFE is a
positive and a negative of SD1.5 and SDXL, and a single call of FLUX. A look is a decode and a score by a CLIP ViT-H/14,
the tower of PickScore and HPSv2. "to go back" is what autograd keeps of a decode at 16 bits for its gradient, which
Search: Guided takes at its looks; the attention's matrix, which GPUs do not keep, is left out. The table is written to
benchmarks/results/look_cost.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .own_code import SD15
from .pass_rate import RESULTS

#: The networks as ComfyUI's model detection describes them.
SDXL = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "num_res_blocks": [2, 2, 2],
    "channel_mult": (1, 2, 4), "transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_middle": 10,
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "num_head_channels": 64, "num_classes": "sequential",
    "use_spatial_transformer": True, "context_dim": 2048, "use_linear_in_transformer": True, "legacy": False,
    "adm_in_channels": 2816, "use_temporal_attention": False,
}  # fmt: skip
FLUX = {
    "in_channels": 16, "out_channels": 16, "vec_in_dim": 768, "context_in_dim": 4096, "hidden_size": 3072,
    "mlp_ratio": 4.0, "num_heads": 24, "depth": 19, "depth_single_blocks": 38, "axes_dim": [16, 56, 56],
    "theta": 10000, "patch_size": 2, "qkv_bias": True, "guidance_embed": True, "txt_ids_dims": [],
}  # fmt: skip
VAE = {
    "double_z": True, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128, "ch_mult": [1, 2, 4, 4],
    "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0,
}  # fmt: skip


@dataclass(frozen=True)
class Model:
    """A model family at its usual size."""

    name: str
    channels: int  # of its latents
    side: int  # of its latents
    calls: int  # of the network for one NFE
    text: tuple[int, int]  # tokens, width
    vector: int  # width of what else conditions it; 0 = nothing


MODELS = (
    Model("SD1.5, 512 px", 4, 64, 2, (77, 768), 0),
    Model("SDXL, 1024 px", 4, 128, 2, (77, 2048), 2816),
    Model("FLUX.1-dev, 1024 px", 16, 128, 1, (512, 4096), 768),
)


def flops(work: Callable[[], Any]) -> int:
    """Multiplications and additions of matrix products and convolutions."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counted:
        work()
    return counted.get_total_flops()


def kept(decoder: Any, latent: Any) -> int:
    """Bytes that autograd keeps of a decode for the gradient by its latent, without weights and attention matrices."""
    import torch

    seen: dict[int, Any] = {}

    def pack(tensor: Any) -> Any:
        if tensor.shape[-1] != latent.shape[-1] * latent.shape[-2]:
            seen[tensor.untyped_storage()._cdata] = tensor.untyped_storage()  # views share one
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        decoder(latent.clone().requires_grad_())
    weights = {weight.untyped_storage()._cdata for weight in decoder.parameters()}
    return sum(storage.nbytes() for place, storage in seen.items() if place not in weights)


def network(model: Model) -> Callable[[], Any]:
    """One call of the denoiser on one image."""
    import comfy.ops
    import torch
    from comfy.ldm.flux.model import Flux
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    more = {"dtype": torch.bfloat16, "device": "meta", "operations": comfy.ops.disable_weight_init}
    x = torch.empty(1, model.channels, model.side, model.side)
    time, context, vector = torch.empty(1), torch.empty(1, *model.text), torch.empty(1, model.vector)
    if model.channels == 16:
        flux = Flux(**FLUX, **more)
        return lambda: flux(x, time, context, vector, guidance=torch.empty(1))
    unet = UNetModel(**(SDXL if model.vector else SD15), **more)
    return lambda: unet(x, timesteps=time, context=context, y=vector if model.vector else None)


def decoders(channels: int) -> dict[str, Any]:
    """The decoders of latents with so many channels."""
    import comfy.ldm.modules.diffusionmodules.model as vae
    from comfy.taesd.taesd import TAESD

    return {"its VAE": vae.Decoder(**VAE, z_channels=channels), "TAESD": TAESD(latent_channels=channels).taesd_decoder}


def tower() -> Callable[[], Any]:
    """A CLIP ViT-H/14 that looks at one image."""
    import torch
    from transformers import CLIPVisionConfig, CLIPVisionModel

    sizes = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16}
    vision = CLIPVisionModel(CLIPVisionConfig(**sizes, patch_size=14, image_size=224))
    return lambda: vision(torch.empty(1, 3, 224, 224))


def main() -> None:
    """The command line."""
    argparse.ArgumentParser(
        prog="run.py bench look_cost", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    import torch

    from ..load_pack import import_host

    import_host()
    from comfy.cli_args import args

    args.use_pytorch_cross_attention = True  # as on a GPU; the others ask the device what is free
    torch.set_default_dtype(torch.bfloat16)
    lines = [
        "| model | one NFE, TFLOP | decoder | decode, TFLOP | a look, NFE | to go back, GB |",
        "|---|---|---|---|---|---|",
    ]
    with torch.device("meta"):
        with torch.no_grad():
            score = flops(tower())
        for model in MODELS:
            latent = torch.empty(1, model.channels, model.side, model.side)
            with torch.no_grad():
                nfe = model.calls * flops(network(model))
            for name, decoder in decoders(model.channels).items():
                decoder.requires_grad_(False)
                memory = kept(decoder, latent)
                with torch.no_grad():
                    cost = flops(lambda decoder=decoder, latent=latent: decoder(latent))  # type: ignore[misc]
                lines.append(
                    f"| {model.name} | {nfe / 1e12:.2f} | {name} | {cost / 1e12:.2f} | {(cost + score) / nfe:.2f} | "
                    f"{memory / 1e9:.1f} |"
                )
    text = "\n".join([*lines, "", f"One score by a CLIP ViT-H/14: {score / 1e12:.2f} TFLOP.", ""])
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "look_cost.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
