"""Several searches side by side in one process: whatever waits for the same network goes through it together.

A network of the demo's size is fast only with many rows at once, and most searches ask for a few at a time. Every
search runs in a thread of its own, one at a time, up to where it needs a network; when all of them wait, the largest
group of like calls is joined, answered and handed back. A search keeps its own place in the global random numbers, so
its result is that of the search alone, up to the rounding of another batch size.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import torch
from torch import Tensor


@dataclass
class _Call:
    """A call of a network that waits for those of other searches."""

    name: str
    network: Callable[..., Tensor]
    args: tuple[Any, ...]
    named: dict[str, Any]
    inference: bool

    @property
    def key(self) -> tuple[Any, ...]:
        """Calls with equal keys share a forward."""
        values = (*self.args, *(self.named[name] for name in sorted(self.named)))
        shapes = tuple((each.shape[1:], each.dtype) if isinstance(each, Tensor) else None for each in values)
        return self.name, tuple(sorted(self.named)), shapes, self.inference

    @property
    def rows(self) -> int:
        """Its number of rows."""
        return len(self.args[0])


@dataclass
class _Ended:
    error: BaseException | None


class _Lane:
    """One thread. `resume` lets it run up to its next call or its end."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._inbox: SimpleQueue[Tensor | None] = SimpleQueue()
        self._outbox: SimpleQueue[_Call | _Ended] = SimpleQueue()
        self._work = work
        threading.Thread(target=self._main, daemon=True).start()

    def resume(self, answer: Tensor | None) -> _Call | _Ended:
        self._inbox.put(answer)
        return self._outbox.get()

    def ask(self, call: _Call) -> Tensor:
        state = torch.get_rng_state()
        self._outbox.put(call)
        answer = self._inbox.get()
        torch.set_rng_state(state)
        assert answer is not None
        return answer

    def _main(self) -> None:
        self._inbox.get()
        _HERE.lane = self
        try:
            with torch.no_grad():
                self._work()
        except BaseException as error:  # raised again by the thread that waits
            self._outbox.put(_Ended(error))
        else:
            self._outbox.put(_Ended(None))


_HERE = threading.local()


def shared(name: str, network: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A network whose calls from different searches are joined with those of the same name.

    Tensors have rows, one for each row of the first argument; of everything else the first call's is taken. A call
    that is to have a gradient, or comes from elsewhere, goes straight to the network.
    """

    def ask(*args: Any, **named: Any) -> Tensor:
        lane: _Lane | None = getattr(_HERE, "lane", None)
        if lane is None or torch.is_grad_enabled():
            return network(*args, **named)
        return lane.ask(_Call(name, network, args, named, torch.is_inference_mode_enabled()))

    return ask


def share(network: Any, name: str, method: str = "forward") -> None:
    """Let the calls of a network be joined with those of its like in other searches."""
    setattr(network, method, shared(name, getattr(network, method)))


def _joined(values: Sequence[Any]) -> Any:
    return torch.cat(list(values)) if isinstance(values[0], Tensor) else values[0]


def _answers(calls: Sequence[_Call]) -> list[Tensor]:
    """One forward for all calls of a key."""
    first = calls[0]
    with torch.inference_mode(first.inference), torch.no_grad():
        args = [_joined(values) for values in zip(*(call.args for call in calls), strict=True)]
        named = {name: _joined([call.named[name] for call in calls]) for name in first.named}
        return list(first.network(*args, **named).split([call.rows for call in calls]))


def side_by_side(works: Sequence[Callable[[], None]]) -> None:
    """Run all works, each in a thread of its own, with the calls of their `shared` networks joined.

    The first error of a work or of a network is raised here; what others were at is given up.
    """
    lanes = [_Lane(work) for work in works]
    waiting: dict[int, _Call] = {}

    def resume(index: int, answer: Tensor | None) -> None:
        event = lanes[index].resume(answer)
        if isinstance(event, _Call):
            waiting[index] = event
        elif event.error is not None:
            raise event.error

    for index in range(len(lanes)):
        resume(index, None)
    while waiting:
        rows: Counter[tuple[Any, ...]] = Counter()
        for call in waiting.values():
            rows[call.key] += call.rows
        [(key, _)] = rows.most_common(1)
        group = [index for index, call in waiting.items() if call.key == key]
        for index, answer in zip(group, _answers([waiting.pop(index) for index in group]), strict=True):
            resume(index, answer)
