"""CLIP (Radford et al. 2021, arXiv 2103.00020): its towers, under the tensor names of Hugging Face's CLIPModel.

A plain module, so that ComfyUI's memory manager can hold it: it sets `.device` on what it manages, which is read-only
on every model of the transformers library.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


def quick_gelu(x: Tensor) -> Tensor:
    """The activation of OpenAI's CLIP: a cheap approximation of GELU."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"quick_gelu": quick_gelu, "gelu": functional.gelu}


@dataclass(frozen=True)
class Tower:
    """The sizes of one transformer: `mlp` is the width between the two linear layers of a block."""

    width: int
    layers: int
    heads: int
    mlp: int
    activation: str = "quick_gelu"
    epsilon: float = 1e-5


@dataclass(frozen=True)
class Sizes:
    """The sizes of a CLIP: `grid` patches of `patch` pixels along each side, `context` tokens, `embedding` numbers.

    `text` is None, and its `tokens` and `context` are 0, where there is an image tower alone.
    """

    text: Tower | None
    vision: Tower
    tokens: int
    context: int
    patch: int
    grid: int
    embedding: int

    @property
    def image(self) -> int:
        """Height and width of the images that the network takes."""
        return self.patch * self.grid


class _Attention(nn.Module):
    def __init__(self, tower: Tower, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = tower.heads, causal
        self.q_proj = nn.Linear(tower.width, tower.width)
        self.k_proj = nn.Linear(tower.width, tower.width)
        self.v_proj = nn.Linear(tower.width, tower.width)
        self.out_proj = nn.Linear(tower.width, tower.width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            projection(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        out: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(-2))
        return out


class _MLP(nn.Module):
    def __init__(self, tower: Tower) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[tower.activation]
        self.fc1 = nn.Linear(tower.width, tower.mlp)
        self.fc2 = nn.Linear(tower.mlp, tower.width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.activation(self.fc1(x)))
        return out


class _Block(nn.Module):
    def __init__(self, tower: Tower, causal: bool) -> None:
        super().__init__()
        self.self_attn = _Attention(tower, causal)
        self.layer_norm1 = nn.LayerNorm(tower.width, eps=tower.epsilon)
        self.mlp = _MLP(tower)
        self.layer_norm2 = nn.LayerNorm(tower.width, eps=tower.epsilon)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        out: Tensor = x + self.mlp(self.layer_norm2(x))
        return out


class _Encoder(nn.Module):
    def __init__(self, tower: Tower, causal: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Block(tower, causal) for _ in range(tower.layers))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.layers:
            x = block(x)
        return x


def _positions(embedding: nn.Embedding, x: Tensor) -> Tensor:
    # Made on the spot: a buffer would stay behind when the weights are put into a network without storage.
    positions: Tensor = embedding(torch.arange(x.shape[1], device=x.device))
    return positions


class _TextEmbeddings(nn.Module):
    def __init__(self, tower: Tower, sizes: Sizes) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(sizes.tokens, tower.width)
        self.position_embedding = nn.Embedding(sizes.context, tower.width)

    def forward(self, ids: Tensor) -> Tensor:
        x: Tensor = self.token_embedding(ids)
        return x + _positions(self.position_embedding, x)


class _TextTower(nn.Module):
    def __init__(self, tower: Tower, sizes: Sizes) -> None:
        super().__init__()
        self.embeddings = _TextEmbeddings(tower, sizes)
        self.encoder = _Encoder(tower, causal=True)
        self.final_layer_norm = nn.LayerNorm(tower.width, eps=tower.epsilon)

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.final_layer_norm(self.encoder(self.embeddings(ids)))
        return out


class _VisionEmbeddings(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width = sizes.vision.width
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.patch_embedding = nn.Conv2d(3, width, kernel_size=sizes.patch, stride=sizes.patch, bias=False)
        self.position_embedding = nn.Embedding(sizes.grid**2 + 1, width)

    def forward(self, pixels: Tensor) -> Tensor:
        patches: Tensor = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(pixels), 1, -1), patches], dim=1)
        return x + _positions(self.position_embedding, x)


class _VisionTower(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.embeddings = _VisionEmbeddings(sizes)
        self.pre_layrnorm = nn.LayerNorm(sizes.vision.width, eps=sizes.vision.epsilon)  # the files spell it so
        self.encoder = _Encoder(sizes.vision, causal=False)
        self.post_layernorm = nn.LayerNorm(sizes.vision.width, eps=sizes.vision.epsilon)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.encoder(self.pre_layrnorm(self.embeddings(pixels)))
        out: Tensor = self.post_layernorm(x[:, 0])
        return out


class CLIPNetwork(nn.Module):
    """Image tower and projection, and those of texts if there are any. Embeddings are float32, not normalised."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        if sizes.text is not None:
            self.text_model = _TextTower(sizes.text, sizes)
            self.text_projection = nn.Linear(sizes.text.width, sizes.embedding, bias=False)
        self.vision_model = _VisionTower(sizes)
        self.visual_projection = nn.Linear(sizes.vision.width, sizes.embedding, bias=False)

    @property
    def anchor(self) -> Tensor:
        """A weight that is always where the network runs, even when a memory manager pages the layers in and out."""
        return self.vision_model.embeddings.class_embedding

    def embed_text(self, ids: Tensor, end: int) -> Tensor:
        """Embeddings [B, embedding] of token ids [B, T], read off at the first token `end` of each row."""
        ids = ids.to(self.anchor.device)
        hidden = self.text_model(ids)
        at = (ids == end).int().argmax(dim=1)
        out: Tensor = self.text_projection(hidden[torch.arange(len(ids), device=ids.device), at])
        return out.float()

    def embed_images(self, pixels: Tensor) -> Tensor:
        """Embeddings [B, embedding] of normalised pixels [B, 3, image, image]."""
        out: Tensor = self.visual_projection(self.vision_model(pixels.to(self.anchor)))
        return out.float()
