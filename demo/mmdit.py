"""The demo diffusion transformer: Stable Diffusion 3's MMDiT in plain PyTorch, with its state dict keys.

Text and image tokens have weights of their own and attend to each other jointly; timestep and pooled text modulate
every block. Depth d means d blocks, d heads of 64 and a width of 64 d.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

CHANNELS = 16
PATCH = 2
HEAD = 64
POSITIONS = 32
TEXT_WIDTH = 128


def position_table(width: int) -> torch.Tensor:
    """Sine and cosine positions of a POSITIONS x POSITIONS grid, [1, POSITIONS ** 2, width]."""
    rates = 1.0 / 10000 ** (torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    # Half a step per patch keeps the fastest wave unambiguous over the grid of four that training sees.
    angles = torch.arange(POSITIONS, dtype=torch.float64)[:, None] * 0.5 * rates[None, :]
    line = torch.cat((angles.sin(), angles.cos()), dim=1)
    across = line[None, :, :].expand(POSITIONS, -1, -1)
    down = line[:, None, :].expand(-1, POSITIONS, -1)
    return torch.cat((across, down), dim=-1).reshape(1, POSITIONS * POSITIONS, width).float()


def timestep_waves(timesteps: torch.Tensor, width: int = 256) -> torch.Tensor:
    """Cosines and sines of timesteps [B] (0..1000, fractions allowed), [B, width]."""
    half = width // 2
    rates = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=timesteps.device) / half)
    angles = timesteps.float()[:, None] * rates[None, :]
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


def _modulate(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return x * (1 + scale[:, None]) + shift[:, None]


class _Embedder(nn.Module):
    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mlp(x)


class _Patches(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(CHANNELS, width, PATCH, stride=PATCH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class _RMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(x, self.weight.shape, self.weight, 1e-6)


class _Attention(nn.Module):
    """The projections of one stream; the attention itself is joint and lives in JointBlock."""

    def __init__(self, width: int, last: bool) -> None:
        super().__init__()
        self.heads = width // HEAD
        self.qkv = nn.Linear(width, 3 * width)
        self.ln_q = _RMSNorm(HEAD)
        self.ln_k = _RMSNorm(HEAD)
        if not last:
            self.proj = nn.Linear(width, width)

    def split(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, HEAD)).unbind(2)
        return self.ln_q(query), self.ln_k(key), value


class _Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(functional.gelu(self.fc1(x), approximate="tanh"))


class _Stream(nn.Module):
    """One stream (text or image) of a block. The text stream of the last block only gives keys and values."""

    def __init__(self, width: int, last: bool) -> None:
        super().__init__()
        self.last = last
        self.attn = _Attention(width, last)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, (2 if last else 6) * width))
        if not last:
            self.mlp = _Mlp(width)

    @staticmethod
    def norm(x: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(x, x.shape[-1:], eps=1e-6)

    def modulation(self, vector: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.adaLN_modulation(vector).chunk(2 if self.last else 6, dim=-1)

    def finish(self, x: torch.Tensor, attended: torch.Tensor, mods: tuple[torch.Tensor, ...]) -> torch.Tensor:
        x = x + mods[2][:, None] * self.attn.proj(attended)
        return x + mods[5][:, None] * self.mlp(_modulate(self.norm(x), mods[3], mods[4]))


class JointBlock(nn.Module):
    """Text [B, T, width] and image [B, N, width] tokens attend to each other; text is None after the last block."""

    def __init__(self, width: int, last: bool) -> None:
        super().__init__()
        self.context_block = _Stream(width, last)
        self.x_block = _Stream(width, last=False)

    def forward(
        self, text: torch.Tensor, image: torch.Tensor, vector: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor]:
        parts = []
        mods = []
        for stream, x in ((self.context_block, text), (self.x_block, image)):
            mods.append(stream.modulation(vector))
            parts.append(stream.attn.split(_modulate(stream.norm(x), mods[-1][0], mods[-1][1])))
        query, key, value = (torch.cat(pair, dim=1).transpose(1, 2) for pair in zip(*parts, strict=True))
        # Autocast may leave the normalised queries and keys in another precision than the values.
        attended = functional.scaled_dot_product_attention(query.to(value.dtype), key.to(value.dtype), value)
        attended = attended.transpose(1, 2).flatten(2)
        length = text.shape[1]
        image = self.x_block.finish(image, attended[:, length:], mods[1])
        if self.context_block.last:
            return None, image
        return self.context_block.finish(text, attended[:, :length], mods[0]), image


class _Final(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, PATCH * PATCH * CHANNELS)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
        shift, scale = self.adaLN_modulation(vector).chunk(2, dim=-1)
        return self.linear(_modulate(_Stream.norm(x), shift, scale))


class MMDiT(nn.Module):
    """Predicts the velocity (flow) or the noise (eps) of latents [B, 16, h, w], h and w even and at most 64."""

    def __init__(self, depth: int = 2, text_width: int = TEXT_WIDTH) -> None:
        super().__init__()
        width = HEAD * depth
        self.x_embedder = _Patches(width)
        self.t_embedder = _Embedder(256, width)
        self.y_embedder = _Embedder(text_width, width)
        self.context_embedder = nn.Linear(text_width, width)
        self.register_buffer("pos_embed", position_table(width))
        self.joint_blocks = nn.ModuleList(JointBlock(width, last=index == depth - 1) for index in range(depth))
        self.final_layer = _Final(width)

    def reset(self) -> None:
        """The initial weights for training: every block starts as the identity and the output at zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.data.flatten(1))
        for embedder in (self.t_embedder, self.y_embedder):
            nn.init.normal_(embedder.mlp[0].weight, std=0.02)
            nn.init.normal_(embedder.mlp[2].weight, std=0.02)
        gated = [stream for block in self.joint_blocks for stream in (block.context_block, block.x_block)]
        for owner in (*gated, self.final_layer):
            nn.init.zeros_(owner.adaLN_modulation[1].weight)
        nn.init.zeros_(self.final_layer.linear.weight)

    def forward(
        self, x: torch.Tensor, timesteps: torch.Tensor, context: torch.Tensor, y: torch.Tensor
    ) -> torch.Tensor:
        """`timesteps` [B] in 0..1000, `context` [B, T, 128], `y` [B, 128]; gives [B, 16, h, w]."""
        rows, columns = x.shape[-2] // PATCH, x.shape[-1] // PATCH
        top, left = (POSITIONS - rows) // 2, (POSITIONS - columns) // 2
        grid = self.pos_embed.view(POSITIONS, POSITIONS, -1)[top : top + rows, left : left + columns]
        image = self.x_embedder(x) + grid.flatten(0, 1)
        vector = self.t_embedder(timestep_waves(timesteps).to(x.dtype)) + self.y_embedder(y)
        text: torch.Tensor | None = self.context_embedder(context)
        for block in self.joint_blocks:
            text, image = block(text, image, vector)
        out = self.final_layer(image, vector).view(len(x), rows, columns, PATCH, PATCH, CHANNELS)
        return out.permute(0, 5, 1, 3, 2, 4).reshape(len(x), CHANNELS, rows * PATCH, columns * PATCH)


def load(path: str | Path) -> MMDiT:
    """The model of a weights file, in float32 and in evaluation mode; the depth is read from the file."""
    from safetensors.torch import load_file

    weights = {name: value.float() for name, value in load_file(str(path)).items()}
    model = MMDiT(depth=weights["x_embedder.proj.weight"].shape[0] // HEAD)
    model.load_state_dict(weights)
    return model.eval()
