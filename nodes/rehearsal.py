"""What a stock sampler does, found out by running it on a scalar with a model that costs nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import cached_property, wraps
from typing import Any, ParamSpec, TypeVar

import comfy.model_management
import comfy.samplers
import torch

from ..search.differentiable import differentiable, gradient_of
from .lockstep import Call, SuspendedModel

Given, Found = ParamSpec("Given"), TypeVar("Found")


def or_else(unknown: Any) -> Callable[[Callable[Given, Found]], Callable[Given, Found]]:
    """What a rehearsal finds out, or `unknown` where the sampler fails in it, for whatever reason of its own.

    Some look at the shape of the image or into the network, and do well with the real ones. If not, the search raises
    their own complaint. Cancel, which is no Exception, and memory that runs out are raised here.
    """

    def guarded(find: Callable[Given, Found]) -> Callable[Given, Found]:
        @wraps(find)
        def found(*args: Given.args, **kwargs: Given.kwargs) -> Found:
            try:
                return find(*args, **kwargs)
            except Exception as error:
                if isinstance(error, MemoryError) or comfy.model_management.is_oom(error):
                    raise
                return unknown

        return found

    return guarded


class Rehearsal:
    """Runs of a SAMPLER without the network. `scale` is the size of noise at the first of its sigmas."""

    def __init__(self, guider: Any, sampler: Any, schedule: torch.Tensor, scale: float) -> None:
        self.guider, self.sampler, self.schedule, self.scale = guider, sampler, schedule, scale
        self.model_sampling = guider.model_patcher.get_model_object("model_sampling")

    @cached_property
    @or_else(False)
    def works(self) -> bool:
        """Whether the sampler can be rehearsed: not if it looks at more of the model than its answers."""
        self._calls(self.schedule, 0.0)
        return True

    @cached_property
    def whole_cost(self) -> int | None:
        """The cost of the whole schedule."""
        return self.cost(self.schedule)

    @or_else(None)
    def cost(self, sigmas: torch.Tensor) -> int | None:
        """Forwards of one row along sigmas; None where that depends on the image, or the SAMPLER is not stock's or
        cannot be rehearsed.
        """
        if not isinstance(self.sampler, comfy.samplers.KSAMPLER):
            return None
        still, wiggly = (len(self._calls(sigmas, wave)) for wave in (0.0, 1.0))
        return still if still == wiggly else None

    def asked_at(self, sigmas: torch.Tensor) -> torch.Tensor:
        """The sigmas at which the sampler asks the model along these, which may lie between them."""
        return torch.stack([call.sigma.flatten()[0] for call in self._calls(sigmas, 0.0)])

    @or_else(False)
    def pauses_exactly(self) -> bool:
        """Whether a row that stops in the middle and goes on ends as if it had not: not where a sampler remembers steps
        or draws noise.
        """
        middle = len(self.schedule) // 2
        whole = self._end([self.schedule])
        return torch.equal(whole, self._end([self.schedule[: middle + 1], self.schedule[middle:]]))

    @or_else(True)
    def draws_noise(self) -> bool:
        """Whether the seed of its steps may decide where it ends."""
        one, other = (self._end([self.schedule], seed) for seed in (1, 2))
        return not torch.equal(one, other)

    @or_else(False)  # also where it writes into what autograd needs, or mixes precisions
    def passes_gradient(self) -> bool:
        """Whether autograd agrees with finite differences on where the sampler takes a scalar."""
        if any(call.model_options for call in self._calls(self.schedule, 0.0)):
            return False  # a function of the sampler's own sees more of the model than its answer

        def answer(call: Call) -> torch.Tensor:
            torch.set_grad_enabled(True)
            return 0.3 * torch.sin(3 * call.x)

        def end(x: torch.Tensor) -> torch.Tensor:
            torch.manual_seed(0)
            args = {"model_options": {}, "seed": 0}
            out: torch.Tensor = self.sampler.sample(model, self.schedule.double(), args, None, x, 0 * x, None, True)
            return out

        model = self._answering(answer)
        with torch.random.fork_rng(devices=[]), differentiable():
            x, step = torch.full([1, 1, 1, 1], 0.5, dtype=torch.float64, requires_grad=True), 1e-5
            [slope] = gradient_of(end(x), [x])
            expected = (end(x.detach() + step) - end(x.detach() - step)) / (2 * step)
        return bool(torch.allclose(slope, expected, rtol=1e-2, atol=1e-6))

    def _calls(self, sigmas: torch.Tensor, wave: float) -> list[Call]:
        """The model calls that the sampler makes on a scalar."""
        calls: list[Call] = []
        x = torch.full([1, 1, 1, 1], 0.5)
        extra_args = {"model_options": {}, "seed": 0}
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            model = self._scalar(wave, calls)
            self.sampler.sample(model, sigmas.clone(), extra_args, None, x, 0 * x, None, True)
        return calls

    def _scalar(self, wave: float, calls: list[Call]) -> SuspendedModel:
        """A scalar model: 0, or a wiggly function that makes adaptive samplers take other steps. Notes its calls."""

        def answer(call: Call) -> torch.Tensor:
            calls.append(call)
            out = wave * torch.sin(10 * wave * call.x)
            for function in call.model_options.get("sampler_post_cfg_function", []):
                function(_ScalarArgs(call, out))
            return out

        return self._answering(answer)

    def _answering(self, answer: Callable[[Call], torch.Tensor]) -> SuspendedModel:
        """What a sampler takes for the guided model, and gets such answers from."""
        probe = copy.copy(self.guider)
        probe.inner_model = _ScalarModel(self.model_sampling)
        return SuspendedModel(probe, answer)

    def _end(self, pieces: Sequence[torch.Tensor], first_seed: int = 0) -> torch.Tensor:
        """Where the sampler takes a scalar along pieces of the schedule, as a search moves rows: one seed a piece."""
        model = self._scalar(1.0, [])
        x = torch.full([1, 1, 1, 1], 0.5 * self.scale)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            for seed, sigmas in enumerate(pieces, first_seed):
                torch.manual_seed(seed)
                masked = comfy.samplers.KSamplerX0Inpaint(model, sigmas)
                masked.latent_image, masked.noise = 0 * x, x
                x = self.sampler.sampler_function(
                    masked, x, sigmas.clone(), extra_args={"model_options": {}, "seed": seed, "denoise_mask": None},
                    callback=None, disable=True, **self.sampler.extra_options,
                )  # fmt: skip
        return x


class _ScalarModel:
    """The parts of a model that samplers look at, without the network."""

    def __init__(self, model_sampling: Any) -> None:
        self.model_sampling = model_sampling


class _ScalarArgs(dict):  # type: ignore[type-arg]
    """What a sampler's own post-CFG function may read of a dry run: every estimate is the scalar model's."""

    def __init__(self, call: Call, out: torch.Tensor) -> None:
        names = ("denoised", "cond_denoised", "uncond_denoised")
        super().__init__(dict.fromkeys(names, out), input=call.x, sigma=call.sigma, cond_scale=1.0)
        self["model_options"] = call.model_options
