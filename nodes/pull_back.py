"""The way back: a gradient by the end of a stock sampler's way becomes one by its start noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import comfy.model_management
import comfy.samplers
import torch

from ..search.differentiable import gradient_of
from .lockstep import Call


class Replay:
    """A sampler's own arithmetic with gradients, around a model that answers from memory.

    The network enters only on the way back, one forward at a time, so that what it needs to remember for its gradient
    is held for one forward and not for the whole way (gradient checkpointing, with the answers as checkpoints).
    """

    def __init__(self, answers: Sequence[torch.Tensor]) -> None:
        self._memory = list(answers)
        self.calls: list[Call] = []
        self.answers: list[torch.Tensor] = []

    def answer(self, call: Call) -> torch.Tensor:
        """What the model answered to this call before, as a leaf of the gradient."""
        answer = self._memory[len(self.calls)].to(call.x).clone().requires_grad_()
        self.calls.append(call)
        self.answers.append(answer)
        return answer.clone()  # samplers may write into it

    def back(
        self,
        end: torch.Tensor,
        gradient: torch.Tensor,
        noise: torch.Tensor,
        through: Callable[[Call, torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        """The gradient by `noise`. `through` takes one by an answer to one by the x of its call."""
        inputs = [*self.answers, noise]
        found = gradient_of(end, inputs, gradient, keep=True)
        for place in reversed(range(len(self.calls))):
            call = self.calls[place]
            before = [*self.answers[:place], noise]
            more = gradient_of(call.x, before, through(call, found[place]), keep=True)
            found = [a + b for a, b in zip([*found[:place], found[-1]], more, strict=True)]
        return found[-1]


class TracedInpaint(comfy.samplers.KSamplerX0Inpaint):
    """What the host puts between a sampler and the model, followed by autograd.

    The host's samplers are decorated with torch.no_grad. The first call of the model is the first thing that they do
    with x (who asks whether a sampler passes a gradient makes sure of that), and from there on it is switched on again.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        torch.set_grad_enabled(True)
        return super().__call__(*args, **kwargs)


@contextmanager
def unfused(model: torch.nn.Module) -> Iterator[None]:
    """In here the host leaves out what it has faster and without a gradient, and multiplies with weights that are
    quantised as if they were not: what it has for their gradient takes none that were loaded in inference mode.
    """
    layers = [layer for layer in model.modules() if hasattr(layer, "comfy_cast_weights")]
    before = [getattr(layer, "comfy_force_cast_weights", False) for layer in layers]
    trained = getattr(comfy.model_management, "in_training", False)
    comfy.model_management.in_training = True
    for layer in layers:
        layer.comfy_force_cast_weights = True
    try:
        yield
    finally:
        comfy.model_management.in_training = trained
        for layer, was in zip(layers, before, strict=True):
            layer.comfy_force_cast_weights = was


@contextmanager
def kept_weights(patcher: Any) -> Iterator[None]:
    """In here autograd keeps copies of what it saves, where the host may fill a layer's memory with the next layer's.

    That is where it pages weights on demand, or has loaded a model in part.
    """
    dynamic = getattr(patcher, "is_dynamic", bool)()
    if dynamic or getattr(getattr(patcher, "model", None), "model_lowvram", False):
        with torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda tensor: tensor):
            yield
    else:
        yield
