"""Gradients through networks that were made for inference: nothing about them has to be changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


@contextmanager
def differentiable() -> Iterator[None]:
    """In here a gradient passes from what requires one, whatever was made in inference mode or without a gradient.

    Works inside torch.inference_mode() and torch.no_grad(). Tensors made in inference mode (weights, conditioning) are
    seen by every operation as plain tensors that share their memory, and so are weights that require a gradient: they
    get none. The tensors themselves stay as they are.
    """
    with torch.inference_mode(False), torch.enable_grad(), _Plain():
        yield


class _Plain(TorchFunctionMode):
    """Hands tensors that autograd cannot save, and parameters, to every operation as plain ones."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return func(*_plain(args), **_plain(kwargs or {}))


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        if type(value) not in (Tensor, torch.nn.Parameter):
            return value  # quantised weights and the like know themselves how to pass a gradient
        if value.is_inference():
            return torch.empty(0, dtype=value.dtype, device=value.device).set_(
                value.untyped_storage(), value.storage_offset(), value.size(), value.stride()
            )
        return value.detach() if isinstance(value, torch.nn.Parameter) and value.requires_grad else value
    if type(value) in (tuple, list):
        return type(value)(map(_plain, value))
    if type(value) is dict:
        return {key: _plain(item) for key, item in value.items()}
    return value


def gradient_of(
    outcome: Tensor, inputs: Sequence[Tensor], weights: Tensor | None = None, keep: bool = False
) -> list[Tensor]:
    """Gradients of `outcome` (weighted by `weights` of its shape; 1 for a single number) by each of `inputs`.

    0 for an input that it does not depend on. `keep` what is needed to ask again.
    """
    if not outcome.requires_grad:
        return [torch.zeros_like(each) for each in inputs]
    found = torch.autograd.grad(outcome, list(inputs), weights, retain_graph=keep, allow_unused=True)
    return [torch.zeros_like(each) if g is None else g for each, g in zip(inputs, found, strict=True)]
