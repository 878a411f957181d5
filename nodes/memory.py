"""Verifiers whose network ComfyUI's memory manager owns."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import comfy.model_patcher
import torch


class ManagedVerifier:
    """Loads a verifier's network to score and leaves it to ComfyUI to unload it for the sampler.

    Exposes `patcher`, which is where the host looks for the models that an output holds.
    """

    def __init__(self, verifier: Any) -> None:
        self.verifier = verifier
        self.name: str = verifier.name
        # looked up at call time: the host rebinds the class when it pages weights on demand
        self.patcher = comfy.model_patcher.CoreModelPatcher(
            verifier.module,
            load_device=comfy.model_management.text_encoder_device(),
            offload_device=comfy.model_management.text_encoder_offload_device(),
        )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.verifier, name)

    def score(self, images: torch.Tensor, prompt: str) -> torch.Tensor:
        """See search.types.Verifier."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        comfy.model_management.load_models_gpu([self.patcher], force_full_load=True)
        scores: torch.Tensor = self.verifier.score(images, prompt)
        return scores


def managed(verifier: Any) -> Any:
    """The verifier, owned by ComfyUI's memory manager if it has a network."""
    return verifier if getattr(verifier, "module", None) is None else ManagedVerifier(verifier)
