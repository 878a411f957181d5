"""The demo autoencoder: 64 x 64 pictures to latents [B, 16, 8, 8] and back, in the TAESD architecture.

The network is trained thin (few channels at the high resolutions, where the time goes) and stored 64 channels wide
with zeros in the unused ones, which is exactly the same function in the layout that TAESD loaders expect.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

LATENT_CHANNELS = 16
THIN_WIDTHS: tuple[int, int, int, int] = (16, 32, 48, 64)
FILE_WIDTHS: tuple[int, int, int, int] = (64, 64, 64, 64)
# SD3's latent format: what a diffusion model sees is (latent - SHIFT) * SCALE.
SCALE = 1.5305
SHIFT = 0.0609


def _conv(inputs: int, outputs: int, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=bias)


class Block(nn.Module):
    """A residual block of three 3 x 3 convolutions at one width; [B, width, H, W] to the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(_conv(width, width), nn.ReLU(), _conv(width, width), nn.ReLU(), _conv(width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.conv(x) + x)


class SoftClamp(nn.Module):
    """Bends values smoothly into -3..3."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x / 3) * 3


def encoder(widths: tuple[int, int, int, int]) -> nn.Sequential:
    """TAESD's encoder, [B, 3, H, W] in 0..1 to [B, 16, H/8, W/8]; `widths` go from the full resolution down."""
    full, half, quarter, eighth = widths
    return nn.Sequential(
        _conv(3, full), Block(full),
        _conv(full, half, stride=2, bias=False), Block(half), Block(half), Block(half),
        _conv(half, quarter, stride=2, bias=False), Block(quarter), Block(quarter), Block(quarter),
        _conv(quarter, eighth, stride=2, bias=False), Block(eighth), Block(eighth), Block(eighth),
        _conv(eighth, LATENT_CHANNELS),
    )


def decoder(widths: tuple[int, int, int, int]) -> nn.Sequential:
    """TAESD's decoder, [B, 16, H/8, W/8] to [B, 3, H, W] near 0..1; `widths` go from the full resolution down."""
    full, half, quarter, eighth = widths
    return nn.Sequential(
        SoftClamp(), _conv(LATENT_CHANNELS, eighth), nn.ReLU(),
        Block(eighth), Block(eighth), Block(eighth), nn.Upsample(scale_factor=2), _conv(eighth, quarter, bias=False),
        Block(quarter), Block(quarter), Block(quarter), nn.Upsample(scale_factor=2), _conv(quarter, half, bias=False),
        Block(half), Block(half), Block(half), nn.Upsample(scale_factor=2), _conv(half, full, bias=False),
        Block(full), _conv(full, 3),
    )


class VAE(nn.Module):
    """The autoencoder. Its state dict is what TAESD loaders read when `widths` is FILE_WIDTHS."""

    def __init__(self, widths: tuple[int, int, int, int] = FILE_WIDTHS) -> None:
        super().__init__()
        self.taesd_encoder = encoder(widths)
        self.taesd_decoder = decoder(widths)
        self.register_buffer("vae_scale", torch.tensor(1.0))
        self.register_buffer("vae_shift", torch.tensor(0.0))

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Pictures [B, H, W, 3] in 0..1 to latents [B, 16, H/8, W/8]."""
        return self.taesd_encoder(images.permute(0, 3, 1, 2)) / self.vae_scale + self.vae_shift

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents [B, 16, h, w] to pictures [B, 8h, 8w, 3], clamped to 0..1."""
        return self.taesd_decoder((latents - self.vae_shift) * self.vae_scale).clamp(0, 1).permute(0, 2, 3, 1)


def process_in(latents: torch.Tensor) -> torch.Tensor:
    """Latents of the VAE as the diffusion model sees them: about zero mean and unit variance."""
    return (latents - SHIFT) * SCALE


def process_out(latents: torch.Tensor) -> torch.Tensor:
    """The inverse of `process_in`."""
    return latents / SCALE + SHIFT


def widen(thin: VAE) -> VAE:
    """The same function in a network of FILE_WIDTHS: every added channel is zero and feeds nothing."""
    wide = VAE(FILE_WIDTHS)
    target = wide.state_dict()
    for name, value in thin.state_dict().items():
        target[name].zero_()
        target[name][tuple(slice(0, size) for size in value.shape)] = value
    wide.load_state_dict(target)
    return wide.eval()


def narrow(wide: VAE) -> VAE:
    """The inverse of `widen`: the same function without the unused channels, several times faster."""
    thin = VAE(THIN_WIDTHS)
    target = thin.state_dict()
    source = wide.state_dict()
    for name, value in target.items():
        target[name] = source[name][tuple(slice(0, size) for size in value.shape)]
    thin.load_state_dict(target)
    return thin.eval()


def load(path: str | Path) -> VAE:
    """The VAE of a weights file, in float32 and in evaluation mode. Raises when a tensor is missing or misshapen."""
    from safetensors.torch import load_file

    model = VAE(FILE_WIDTHS)
    model.load_state_dict({name: value.float() for name, value in load_file(str(path)).items()})
    return model.eval()
