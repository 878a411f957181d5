"""Facts about a user's conditioning and model patches that decide how candidates may go through the model."""

from __future__ import annotations

import dis
from typing import Any

import torch

#: Conditioning that the host mixes with noise of the sampler's own seed, so it differs between candidates.
SEEDED = frozenset({"noise_augmentation", "unclip_conditioning", "minimax_refs", "minimax_keyframes"})
#: Conditioning that speaks of places in the picture.
PLACED = frozenset({"control", "area", "mask", "gligen"})


def keeps_memory(function: Any) -> bool:
    """Whether a patch function assigns to variables outside itself, so that one call changes the next."""
    code = getattr(function, "__code__", None)
    if code is None:
        return False
    return any(i.opname == "STORE_DEREF" and i.argval in code.co_freevars for i in dis.get_instructions(code))


def has_a_place(cond: dict[str, Any]) -> bool:
    """Whether a cond speaks of places in the picture: texts are vectors, pictures and latents have height and width."""
    if any(cond.get(name) is not None for name in PLACED):
        return True
    tensors = [each for value in cond.values() for each in (value if isinstance(value, list | tuple) else [value])]
    return any(isinstance(each, torch.Tensor) and each.ndim > 3 for each in tensors)


def repeats_alike(cond: dict[str, Any], rows: int) -> bool:
    """Whether a cond gives every candidate of `rows` rows the same when it is tiled over several candidates."""
    if any(cond.get(name) for name in SEEDED):
        return False
    values = [*cond.values()]
    control = cond.get("control")
    while control is not None:
        values += [getattr(control, "cond_hint_original", None), getattr(control, "extra_concat_orig", None)]
        control = getattr(control, "previous_controlnet", None)
    tensors = [each for value in values for each in (value if isinstance(value, list | tuple) else [value])]
    return all(rows % each.shape[0] == 0 for each in tensors if isinstance(each, torch.Tensor) and each.ndim > 1)
