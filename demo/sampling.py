"""Schedules and a plain Euler sampler with classifier-free guidance for the demo's diffusion models.

Sigmas and timesteps follow ComfyUI: rectified flow with the SD3 time shift, and the SD1 noise schedule for eps.
"""

from __future__ import annotations

import torch

from .mmdit import MMDiT

SHIFT = 3.0
FLOW_MULTIPLIER = 1000.0


def eps_sigmas() -> torch.Tensor:
    """The 1000 sigmas of the SD1 schedule (betas linear in their square root), ascending, float32."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    kept = torch.cumprod(1 - betas, dim=0)
    return ((1 - kept) / kept).sqrt().float()


def flow_sigmas(shift: float = SHIFT) -> torch.Tensor:
    """The 1000 sigmas of rectified flow with a time shift, ascending up to 1, float32."""
    time = torch.arange(1, 1001, dtype=torch.float32) / 1000
    return shift * time / (1 + (shift - 1) * time)


def simple_schedule(kind: str, steps: int) -> torch.Tensor:
    """`steps` + 1 falling sigmas, evenly spaced in the table of `kind` ("flow" or "eps"), the last one zero."""
    table = flow_sigmas() if kind == "flow" else eps_sigmas()
    stride = len(table) / steps
    picked = [float(table[-(1 + int(step * stride))]) for step in range(steps)]
    return torch.tensor([*picked, 0.0])


def predict_x0(kind: str, model: MMDiT, x: torch.Tensor, sigma: float, text: tuple[torch.Tensor, torch.Tensor],
               ) -> torch.Tensor:
    """The model's clean estimate at one sigma for x [B, 16, h, w] and text (context [B, T, 128], pooled [B, 128])."""
    if kind == "flow":
        time = torch.full((len(x),), sigma * FLOW_MULTIPLIER)
        return x - sigma * model(x, time, *text)
    index = (eps_sigmas().log() - torch.tensor(sigma).log()).abs().argmin()
    time = torch.full((len(x),), float(index))
    return x - sigma * model(x / (sigma**2 + 1) ** 0.5, time, *text)


@torch.no_grad()
def sample(
    kind: str,
    model: MMDiT,
    noise: torch.Tensor,
    text: tuple[torch.Tensor, torch.Tensor],
    empty: tuple[torch.Tensor, torch.Tensor],
    steps: int = 20,
    cfg: float = 3.0,
) -> torch.Tensor:
    """Euler sampling with guidance `cfg` from unit noise [B, 16, h, w] to latents as the diffusion model sees them.

    `text` and `empty` are (context, pooled) of the prompts and of the empty prompt, with a row for every noise.
    """
    sigmas = simple_schedule(kind, steps)
    first = float(sigmas[0])
    x = noise * first if kind == "flow" else noise * (1 + first**2) ** 0.5
    both = (torch.cat((text[0], empty[0])), torch.cat((text[1], empty[1])))
    for now, after in zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True):
        wanted, plain = predict_x0(kind, model, torch.cat((x, x)), now, both).chunk(2)
        x0 = plain + cfg * (wanted - plain)
        x = x + (x - x0) / now * (after - now)
    return x
