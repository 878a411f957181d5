"""The demo world as ComfyUI loads it: for the command line demo and the benchmarks, without a graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import comfy.samplers
import comfy.sd
import comfy.utils
import torch
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

from ..search.errors import SearchError
from .demo_models import load_text_encoder
from .guided_sampler import GuidedSampler
from .model_files import DEMO_MODELS

FAMILIES = ("flow", "eps", "flow_large")


@dataclass(frozen=True)
class DemoWorld:
    """A demo MODEL, CLIP and VAE, as the stock loaders give them."""

    model: Any
    clip: Any
    vae: Any

    def conditioning(self, text: str) -> Any:
        """CONDITIONING of a text, as CLIPTextEncode makes it."""
        return self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))

    def sampler(
        self, prompt: str, steps: int = 20, cfg: float = 3.0, sampler_name: str = "euler", scheduler: str = "simple"
    ) -> GuidedSampler:
        """What a search moves candidates with, for one prompt and an empty 64 x 64 picture."""
        guider = comfy.samplers.CFGGuider(self.model)
        guider.set_conds(self.conditioning(prompt), self.conditioning(""))
        guider.set_cfg(cfg)
        stock = comfy.samplers.KSampler(
            self.model, steps, self.model.load_device, sampler_name, scheduler, 1.0, self.model.model_options
        )
        latent = {"samples": torch.zeros(1, 16, 8, 8)}
        return GuidedSampler(guider, comfy.samplers.sampler_object(sampler_name), stock.sigmas, latent, self.vae)


def load_demo_world(family: str = "flow") -> DemoWorld:
    """Load one of the demo's models: flow, eps (the same architecture, noise objective) or flow_large."""
    if family not in FAMILIES:
        raise SearchError(f"demo model: got {family!r}; expected one of {', '.join(FAMILIES)}")
    path = DEMO_MODELS / "diffusion_models" / f"noise_search_demo_{family}.safetensors"
    model = comfy.sd.load_diffusion_model(str(path))
    if family == "eps":
        [model] = ModelSamplingDiscrete().patch(model, "eps", False)
    weights = comfy.utils.load_torch_file(str(DEMO_MODELS / "vae" / "noise_search_demo_vae.safetensors"))
    return DemoWorld(model, load_text_encoder(), comfy.sd.VAE(sd=weights))
