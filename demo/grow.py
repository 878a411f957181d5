"""Grows a trained MMDiT into a wider and deeper one that starts out computing almost the same.

Training the large demo model then starts from what the small one knows. The added channels of the residual streams
start at zero and the added block as the identity; only the layer norms, which now average over more channels, make a
small difference.
"""

from __future__ import annotations

import torch

from .mmdit import HEAD, MMDiT

_SCALES = {6: (1, 4), 2: (1,)}


def _place(target: torch.Tensor, source: torch.Tensor, parts: int = 1) -> None:
    """Copies `source` into the corner of `target`, separately for each of `parts` equal slices of the first axis."""
    for new, old in zip(target.chunk(parts), source.chunk(parts), strict=True):
        new[tuple(slice(0, size) for size in old.shape)] = old


def _modulation(target: dict[str, torch.Tensor], source: dict[str, torch.Tensor], old: str, new: str) -> None:
    """Copies one modulation layer and corrects its scales for the layer norm's larger divisor."""
    small = source[f"{old}.weight"].shape[1]
    wide = target[f"{new}.weight"].shape[1]
    parts = source[f"{old}.weight"].shape[0] // small
    target[f"{new}.weight"].zero_()
    target[f"{new}.bias"].zero_()
    factor = (small / wide) ** 0.5
    weights = list(source[f"{old}.weight"].clone().chunk(parts))
    biases = list(source[f"{old}.bias"].clone().chunk(parts))
    for index in _SCALES[parts]:
        weights[index] = weights[index] * factor
        biases[index] = biases[index] * factor + factor - 1
    _place(target[f"{new}.weight"], torch.cat(weights), parts)
    _place(target[f"{new}.bias"], torch.cat(biases), parts)


def grow(small: MMDiT, depth: int) -> MMDiT:
    """An MMDiT of a larger `depth` (hence width) that starts near `small`. Raises ValueError when it is not larger."""
    blocks = len(small.joint_blocks)
    if depth <= blocks:
        raise ValueError(f"cannot grow a model of depth {blocks} to depth {depth}")
    large = MMDiT(depth)
    large.reset()
    width = HEAD * blocks
    source = small.state_dict()
    target = large.state_dict()
    target["pos_embed"].zero_()
    _place(target["pos_embed"][0], source["pos_embed"][0])
    for name in ("x_embedder.proj", "context_embedder"):
        target[f"{name}.weight"].zero_()
        for kind in ("weight", "bias"):
            _place(target[f"{name}.{kind}"], source[f"{name}.{kind}"])
    for name in ("t_embedder.mlp", "y_embedder.mlp"):
        for layer in (0, 2):
            _place(target[f"{name}.{layer}.weight"], source[f"{name}.{layer}.weight"])
            _place(target[f"{name}.{layer}.bias"], source[f"{name}.{layer}.bias"])
        target[f"{name}.2.weight"][:width, width:] = 0
    _place(target["final_layer.linear.weight"], source["final_layer.linear.weight"])
    _place(target["final_layer.linear.bias"], source["final_layer.linear.bias"])
    _modulation(target, source, "final_layer.adaLN_modulation.1", "final_layer.adaLN_modulation.1")
    for index in range(blocks):
        # The last block, whose text stream ends there, must stay the last one; new blocks go in before it.
        place = index if index < blocks - 1 else depth - 1
        for stream in ("context_block", "x_block"):
            old, new = f"joint_blocks.{index}.{stream}", f"joint_blocks.{place}.{stream}"
            _modulation(target, source, f"{old}.adaLN_modulation.1", f"{new}.adaLN_modulation.1")
            for name in source:
                if not name.startswith(old + ".") or "adaLN" in name:
                    continue
                into = target[new + name[len(old) :]]
                _place(into, source[name], parts=3 if ".qkv." in name else 1)
                if name.endswith(("attn.proj.weight", "mlp.fc2.weight")):
                    # Added heads and hidden units must not write into the channels that were there before.
                    into[:width, source[name].shape[1] :] = 0
    large.load_state_dict(target)
    return large
