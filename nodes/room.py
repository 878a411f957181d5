"""How many candidates the memory holds at once, by ComfyUI's own estimates."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import comfy.model_management
import comfy.sampler_helpers


def room(guider: Any, shape: Sequence[int], rows: int, most: int) -> int:
    """Up to `most` candidates of `rows` rows each of a packed latent's shape; 1 even where none fits.

    As the host's samplers reckon: 1.5 times what the model asks for.
    """
    free, size = _free_memory(guider), most
    while size > 1 and 1.5 * _memory_required(guider, shape, size * rows) >= free:
        size -= 1
    return size


def _memory_required(guider: Any, shape: Sequence[int], rows: int) -> float:
    """What a forward of so many rows takes, conditional and unconditional together.

    Conditioning such as reference latents is repeated for every row.
    """
    model, beside = guider.model_patcher.model, defaultdict(list)
    for cond in (cond for each in guider.original_conds.values() for cond in each):
        for name, of_cond in model.extra_conds_shapes(**cond).items():
            beside[name].append([rows, *of_cond[1:]])
    required: float = model.memory_required([2 * rows, *shape[1:]], cond_shapes=beside)
    return required


def _free_memory(guider: Any) -> float:
    """What is left on the device for forwards once all is loaded that they use, such as ControlNets."""
    patcher = guider.model_patcher
    beside, inference = comfy.sampler_helpers.get_additional_models(guider.original_conds, patcher.model_dtype())
    used = {id(each): each for each in (patcher, *beside, *patcher.get_nested_additional_models())}.values()
    not_loaded = sum(each.model_size() - each.loaded_size() for each in used)
    # asked of the patcher: some of what its weights take, the host gives back to forwards
    free: float = patcher.get_free_memory(patcher.load_device) - comfy.model_management.extra_reserved_memory()
    return free - not_loaded - inference
