"""Searches side by side: what goes through a network together, and that nobody notices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pack.benchmarks.side_by_side import share, shared, side_by_side


class Counted(nn.Module):
    """Doubles its rows and says how many there were."""

    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        self.sizes = sizes

    def forward(self, x: Tensor, more: Tensor | None = None, scale: float = 2.0) -> Tensor:
        self.sizes.append(len(x))
        return scale * x if more is None else scale * x + more


def of_two(works: int, calls: int, rows: int = 3) -> tuple[list[int], list[list[Tensor]]]:
    """Works that each ask a network of their own several times; what the networks saw, and what the works got."""
    sizes: list[int] = []
    answers: list[list[Tensor]] = [[] for _ in range(works)]

    def work(index: int) -> None:
        network = Counted(sizes)
        share(network, "counted")
        for call in range(calls):
            x = torch.full((rows, 2), float(10 * index + call))
            answers[index].append(network(x, more=torch.ones(rows, 2) * index))

    side_by_side([lambda index=index: work(index) for index in range(works)])
    return sizes, answers


def test_calls_that_wait_share_one_forward_and_every_work_gets_its_own_rows() -> None:
    sizes, answers = of_two(works=4, calls=3)
    assert sizes == [12, 12, 12]
    for index, got in enumerate(answers):
        assert [each.tolist() for each in got] == [[[20.0 * index + 2 * c + index] * 2] * 3 for c in range(3)]


def test_only_like_calls_are_joined() -> None:
    seen: list[Any] = []

    def network(x: Tensor) -> Tensor:
        seen.append(tuple(x.shape))
        return x

    ask, other = shared("a", network), shared("b", network)
    works = [lambda: ask(torch.ones(1, 2)), lambda: ask(torch.ones(2, 2)), lambda: ask(torch.ones(1, 5)),
             lambda: other(torch.ones(1, 2)), lambda: ask(torch.ones(1, 2).double())]  # fmt: skip
    side_by_side(works)
    assert sorted(seen) == [(1, 2), (1, 2), (1, 5), (3, 2)]


def test_every_work_keeps_its_place_in_the_global_random_numbers() -> None:
    drawn: dict[int, list[Tensor]] = {0: [], 1: []}
    ask = shared("a", lambda x: x + torch.rand(1) * 0)

    def work(index: int) -> None:
        torch.manual_seed(index)
        for _ in range(3):
            drawn[index].append(torch.rand(2))
            ask(torch.zeros(1, 1))

    side_by_side([lambda: work(0), lambda: work(1)])
    for index, got in drawn.items():
        torch.manual_seed(index)
        assert all(torch.equal(each, torch.rand(2)) for each in got)


def test_a_call_with_a_gradient_or_from_elsewhere_goes_straight_through() -> None:
    sizes: list[int] = []
    network = Counted(sizes)
    share(network, "counted")
    assert network(torch.ones(2, 2)).tolist() == [[2.0, 2.0]] * 2

    def work() -> None:
        x = torch.ones(1, 2, requires_grad=True)
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(network(x).sum(), x)
        assert slope.tolist() == [[2.0, 2.0]]

    side_by_side([work, work])
    assert sizes == [2, 1, 1]


@pytest.mark.parametrize("inference", [False, True])
def test_answers_are_of_the_mode_that_they_are_asked_in(inference: bool) -> None:
    got: list[Tensor] = []
    ask = shared("a", lambda x: 2 * x)

    def work() -> None:
        with torch.inference_mode(inference):
            got.append(ask(torch.ones(1)))

    side_by_side([work, work])
    assert [each.is_inference() for each in got] == [inference] * 2


def test_an_error_of_a_work_or_a_network_is_raised() -> None:
    def broken(x: Tensor) -> Tensor:
        raise ValueError("no network")

    ask = shared("a", broken)
    with pytest.raises(ValueError, match="no network"):
        side_by_side([lambda: ask(torch.ones(1)), lambda: ask(torch.ones(1))])
    with pytest.raises(ZeroDivisionError):
        side_by_side([lambda: 1 / 0])
