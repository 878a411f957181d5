"""Rows in lockstep: several stock samplers, each suspended where it calls the model, share one forward.

Every row runs ComfyUI's own sampler function at the batch size of one candidate, in a thread of its own, so its
numbers, its step noise and its history are what stock makes for it alone. Only one thread runs at a time. Calls
that wait at the same sigma are gathered into one forward and handed back row by row.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import comfy.model_management
import torch

#: The states of the global generators of the CPU and of the device.
RandomStates = tuple[torch.Tensor, torch.Tensor | None]


@dataclass
class Call:
    """One suspended model call, with the arguments that a guider is called with."""

    x: torch.Tensor
    sigma: torch.Tensor
    model_options: dict[str, Any]
    seed: int | None
    random: RandomStates | None = None  # where the caller is in the global generators, from where the model goes on

    @property
    def key(self) -> tuple[Any, ...]:
        """Calls with equal keys may share a forward: rows of one forward share one sigma."""
        return float(self.sigma.flatten()[0]), tuple(self.x.shape[1:]), self.x.dtype


@dataclass
class _Finished:
    result: Any


@dataclass
class _Raised:
    error: BaseException


class _Abandoned(BaseException):
    """Unwinds a suspended row whose search has ended."""


class SuspendedModel:
    """What a stock sampler takes for its guider: a call goes to `call`, everything else to the guider."""

    def __init__(self, guider: Any, call: Callable[[Call], torch.Tensor]) -> None:
        self._guider = guider
        self._call = call

    def __getattr__(self, name: str) -> Any:
        return getattr(self._guider, name)

    def __call__(
        self, x: torch.Tensor, sigma: torch.Tensor, model_options: dict[str, Any] | None = None, seed: int | None = None
    ) -> torch.Tensor:
        return self._call(Call(x, sigma, model_options or {}, seed))


class _Row:
    """One suspended sampler. `resume` lets it run up to its next call, its end or its error."""

    def __init__(self, job: Callable[[Any], Any], guider: Any, device: torch.device) -> None:
        self._job, self._guider, self._device = job, guider, device
        self._inbox: SimpleQueue[Any] = SimpleQueue()
        self._outbox: SimpleQueue[Any] = SimpleQueue()
        self._inference = torch.is_inference_mode_enabled()
        # the host knows the executing node by a context variable, which a new thread would not have
        self._thread = threading.Thread(target=contextvars.copy_context().run, args=(self._main,), daemon=True)
        self._thread.start()

    def resume(self, value: Any) -> Call | _Finished | _Raised:
        self._inbox.put(value)
        return self._outbox.get()

    def abandon(self) -> None:
        if self._thread.is_alive():
            self._inbox.put(_Abandoned())
            self._thread.join()

    def _receive(self) -> Any:
        value = self._inbox.get()
        if isinstance(value, _Abandoned):
            raise value
        return value

    def _pause(self, call: Call) -> torch.Tensor:
        # some samplers draw from the global generator: each row keeps its own place in it
        call.random = random_states(self._device)
        self._outbox.put(call)
        out = self._receive()
        restore_random(self._device, call.random)
        return out

    def _main(self) -> None:
        try:
            self._receive()
            with torch.inference_mode(self._inference), comfy.model_management.cuda_device_context(self._device):
                event: _Finished | _Raised = _Finished(self._job(SuspendedModel(self._guider, self._pause)))
        except BaseException as error:  # handed to the thread that waits for this row, which raises it
            event = _Raised(error)
        self._outbox.put(event)


def random_states(device: torch.device) -> RandomStates:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def restore_random(device: torch.device, states: RandomStates) -> None:
    torch.set_rng_state(states[0])
    if states[1] is not None:
        torch.cuda.set_rng_state(states[1], device)


def seed_random(device: torch.device, seed: int, state: torch.Tensor | None) -> None:
    """Put the device's generator at a seed, and the CPU's at `state`, or at the seed too.

    torch.manual_seed does the latter, but what it prepares for devices that are not there takes a millisecond.
    """
    if device.type == "cuda":
        torch.cuda.manual_seed_all(seed)
    elif device.type != "cpu":
        torch.manual_seed(seed)
    if state is None:
        torch.default_generator.manual_seed(seed)
    else:
        torch.set_rng_state(state)


def run_in_lockstep(
    guider: Any, jobs: Sequence[Callable[[Any], Any]], forward: Callable[[list[Call]], list[torch.Tensor]]
) -> list[Any]:
    """Run every job (called with a model that it may call) and return their results in order.

    `forward` answers the calls of one group. Whatever a job or `forward` raises is raised here, after all other
    rows are unwound.
    """
    device = guider.model_patcher.load_device
    rows = [_Row(job, guider, device) for job in jobs]
    results: list[Any] = [None] * len(rows)
    waiting: dict[int, Call] = {}

    def take(index: int, value: Any) -> None:
        event = rows[index].resume(value)
        if isinstance(event, _Raised):
            raise event.error
        if isinstance(event, _Finished):
            results[index] = event.result
        else:
            waiting[index] = event

    try:
        for index in range(len(rows)):
            take(index, None)
        while waiting:
            key = max((call.key for call in waiting.values()), key=lambda k: k[0])
            group = [index for index, call in waiting.items() if call.key == key]
            for index, out in zip(group, forward([waiting.pop(index) for index in group]), strict=True):
                take(index, out)
    finally:
        for row in rows:
            row.abandon()
    return results


def merged_options(calls: Sequence[Call]) -> dict[str, Any] | None:
    """Model options that serve several calls at once, or None when they cannot share a forward.

    Guidance functions may mix the rows that they see, and samplers of the CFG++ kind hang one of their own on every
    call: each sees the rows of its own call only, as if that were alone.
    """
    first = calls[0].model_options
    for call in calls[1:]:
        options = call.model_options
        if options is first:
            continue
        shared = options.keys() - {"sampler_post_cfg_function", "disable_cfg1_optimization"}
        if options.keys() != first.keys() or any(options[k] is not first[k] for k in shared):
            return None
    divided: dict[str, Any] = {
        name: [_divided(calls, name, result)]
        for name, result in (("sampler_pre_cfg_function", "conds_out"), ("sampler_post_cfg_function", "denoised"))
        if any(call.model_options.get(name) for call in calls)
    }
    if "sampler_cfg_function" in first:
        divided["sampler_cfg_function"] = _divided(calls, "sampler_cfg_function", "cond")
    return {**first, **divided} if divided else first


def _divided(calls: Sequence[Call], name: str, result: str) -> Callable[[dict[str, Any]], Any]:
    """A function that hands each call's own functions of a name its own rows, and joins what they make of them.

    What one function makes is the next one's argument `result`.
    """
    sizes = [call.x.shape[0] for call in calls]

    def divide(args: dict[str, Any]) -> Any:
        outs = []
        for start, size, call in zip(_starts(sizes), sizes, calls, strict=True):
            mine = {key: _rows(value, start, size, sum(sizes)) for key, value in args.items()}
            mine["model_options"] = call.model_options
            functions = call.model_options[name]
            for function in functions if isinstance(functions, list) else [functions]:
                mine[result] = function(mine)
            outs.append(mine[result])
        return _joined(outs)

    return divide


def _starts(sizes: Sequence[int]) -> list[int]:
    return [sum(sizes[:i]) for i in range(len(sizes))]


def _joined(outs: Sequence[Any]) -> Any:
    if isinstance(outs[0], torch.Tensor):
        return torch.cat(outs)
    return [torch.cat(parts) for parts in zip(*outs, strict=True)]


def _rows(value: Any, start: int, size: int, total: int) -> Any:
    if isinstance(value, list):
        return [_rows(each, start, size, total) for each in value]
    batched = isinstance(value, torch.Tensor) and value.ndim > 0 and value.shape[0] == total
    return value[start : start + size] if batched else value
