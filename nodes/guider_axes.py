"""What a recipe may ask of a guider beside the noise: another cfg or guidance, noise on the conditioning."""

from __future__ import annotations

import copy
import uuid
from collections.abc import Sequence
from typing import Any

import comfy.samplers
import torch

from ..search.errors import SearchError
from ..search.recipe import Operation, gaussian
from ..search.seeds import child_seed

#: Why a guider does not offer an axis.
REFUSALS = {
    "cfg": "this guider has no single cfg that steers a positive against a negative",
    "guidance": "its positive conditioning has no guidance value that the model goes by: wire FluxGuidance",
    "conditioning": "it has no positive conditioning with text embeddings",
}


def axes_of(guider: Any) -> dict[str, float]:
    """What can be asked of a guider, by the operation's name, with the user's own value; see search.types.Sampler.

    "cfg" where one number steers positive against negative. "guidance" instead where that number does nothing, because
    it is 1 or there is no negative, and the positive conditioning has a value for the model, as FluxGuidance writes it.
    """
    axes: dict[str, float] = {}
    positive = guider.original_conds.get("positive", [])
    guidance = [cond.get("guidance") for cond in positive]
    steers = getattr(type(guider), "set_cfg", None) is comfy.samplers.CFGGuider.set_cfg
    steers = steers and "negative" in guider.original_conds
    if guidance and all(isinstance(g, int | float) for g in guidance) and not (steers and guider.cfg != 1):
        axes["guidance"] = float(guidance[0])
    elif steers:
        axes["cfg"] = float(guider.cfg)
    if any(_text(cond) is not None for cond in positive):
        axes["conditioning"] = 0.0
    return axes


def asked_as(guider: Any, operations: Sequence[Operation]) -> Any:
    """The guider, or, with operations, a copy of it that does as they say; the guider itself stays as it is.

    Raises SearchError where it cannot.
    """
    if not operations:
        return guider
    axes, made = axes_of(guider), copy.copy(guider)
    for kind in (operation["op"] for operation in operations):
        if kind not in axes:
            raise SearchError(f"recipe: got the operation {kind}, but {REFUSALS[kind]}")
    if any(operation["op"] != "cfg" for operation in operations):
        positive = positive_as(guider.original_conds["positive"], operations)
        # whoever remembers what they made of a cond goes by its uuid
        positive = [{**cond, "uuid": uuid.uuid4()} for cond in positive]
        made.original_conds = {**guider.original_conds, "positive": positive}
    for operation in operations:
        if operation["op"] == "cfg":
            made.set_cfg(float(operation["scale"]))
    return made


def positive_as(conds: Sequence[dict[str, Any]], operations: Sequence[Operation]) -> list[dict[str, Any]]:
    """Positive conds, as a guider holds them, with the guidance and the noise of a recipe's operations."""
    made = [dict(cond) for cond in conds]
    for operation in operations:
        if operation["op"] == "guidance":
            made = [{**cond, "guidance": float(operation["scale"])} for cond in made]
        elif operation["op"] == "conditioning":
            for index, cond in enumerate(made):
                embeddings, seed = _text(cond), child_seed(int(operation["seed"]), "cond", index)
                if embeddings is not None:
                    cond["cross_attn"] = noised(embeddings, seed, float(operation["strength"]))
    return made


def noised(embeddings: torch.Tensor, seed: int, strength: float) -> torch.Tensor:
    """Text embeddings [B, T, D] with Gaussian noise of `seed`, `strength` times each feature's deviation over tokens.

    Per feature, because text encoders have some that are a hundred times larger than the others: measured by all of
    them together, noise would drown the rest. A single token goes by the deviation of its features.
    """
    values = embeddings.float()
    spread = values.std(dim=1 if values.shape[1] > 1 else 2, keepdim=True)
    noise = gaussian(torch.empty(values.shape), seed).to(values.device)
    return (values + strength * spread * noise).to(embeddings.dtype)


def _text(cond: dict[str, Any]) -> torch.Tensor | None:
    embeddings = cond.get("cross_attn")
    return embeddings if isinstance(embeddings, torch.Tensor) and embeddings.ndim == 3 else None
