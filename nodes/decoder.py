"""A wired VAE as the search uses it: latents in, pictures out, and what can go wrong in the words of its input."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import torch

from ..search.errors import SearchError
from .pull_back import kept_weights


@dataclass(frozen=True)
class Decoder:
    """A VAE and the name of the input that it is wired to."""

    input: str
    vae: Any

    def images(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents [B, C, (T,) h, w] -> images [B, (T,) H, W, 3] in 0..1 on the CPU.

        A gradient that latents require reaches the images. Raises SearchError where the VAE is not the model's, or
        passes no gradient; of several latents, memory may be why, and that is raised first.
        """
        with kept_weights(getattr(self.vae, "patcher", None)) if latents.requires_grad else nullcontext():
            images = self._decoded(latents)
        if latents.requires_grad and not images.requires_grad:
            if len(latents) > 1:
                raise comfy.model_management.OOM_EXCEPTION(f"{self.input} passed no gradient of {len(latents)} latents")
            raise SearchError(
                f"{self.input}: no gradient passes through it (this kind has none, or memory ran short and it decoded "
                "in tiles), and this search needs one: choose another algorithm, or a smaller latent"
            )
        return images

    def check(self, latent: torch.Tensor) -> None:
        """Fail now, and not after the first candidate, on a VAE that does not take what the model makes."""
        if getattr(self.vae, "latent_channels", latent.shape[1]) != latent.shape[1]:
            self.images(torch.zeros_like(latent))

    def _decoded(self, latents: torch.Tensor) -> torch.Tensor:
        try:
            images = self.vae.decode(latents)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise SearchError(
                f"{self.input}: it could not decode a latent of shape {tuple(latents.shape)} ({reason}); "
                "wire a VAE that belongs to the model"
            ) from error
        if not isinstance(images, torch.Tensor) or images.shape[-1] < 3:
            raise SearchError(
                f"{self.input}: got images of shape {tuple(images.shape)}; expected three colour channels: "
                "wire a VAE that belongs to the model"
            )
        return images[..., :3].float().cpu()
