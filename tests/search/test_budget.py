"""Budget: limits, what is refused, and which limit is reported."""

import pytest

from pack.search import Budget, SearchError
from pack.tests.search.worlds import Counting, search

NOTHING = {"candidates": 0, "nfe": 0, "seconds": 0.0, "best": None, "since_best": 0}


def test_a_budget_without_a_limit_is_refused_and_names_every_widget() -> None:
    with pytest.raises(SearchError, match="every limit at 0.*max_candidates, max_nfe, max_seconds or patience"):
        Budget()


def test_a_target_alone_is_refused_because_it_may_never_be_reached() -> None:
    with pytest.raises(SearchError, match=r"only a target score of 0\.5.*never end"):
        Budget(target=0.5)


@pytest.mark.parametrize("name", ["candidates", "nfe", "seconds", "patience"])
@pytest.mark.parametrize("value", [-1, float("nan")])
def test_a_negative_limit_or_nan_is_refused_by_name(name: str, value: float) -> None:
    widget = name if name == "patience" else f"max_{name}"
    with pytest.raises(SearchError, match=f"got {widget}={value}"):
        Budget(**{"nfe": 100, name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("limit", [{"candidates": 3}, {"nfe": 3}, {"seconds": 3.0}])
def test_each_limit_is_reached_at_its_value_and_not_before(limit: dict[str, float]) -> None:
    [(name, value)] = limit.items()
    budget = Budget(**limit)  # type: ignore[arg-type]
    assert budget.reached(**{**NOTHING, name: value - 0.01}) == {}
    assert budget.reached(**{**NOTHING, name: value}) == limit
    assert budget.reached(**{**NOTHING, name: value + 1}) == limit


def test_patience_and_target_are_reached_at_their_values() -> None:
    budget = Budget(patience=4, target=-0.5)
    assert budget.reached(**{**NOTHING, "since_best": 3, "best": -0.51}) == {}
    assert budget.reached(**{**NOTHING, "since_best": 4}) == {"patience": 4}
    assert budget.reached(**{**NOTHING, "best": -0.5}) == {"target": -0.5}
    assert budget.reached(**{**NOTHING, "since_best": 5, "best": 1.0}) == {"patience": 4, "target": -0.5}


def test_limits_that_are_off_are_never_reached() -> None:
    most = {"candidates": 10**9, "nfe": 10**9, "seconds": 1e9, "best": 1e9, "since_best": 10**9}
    assert Budget(nfe=10**10).reached(**most) == {}  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["random", "zero_order", "paths"])
@pytest.mark.parametrize("order, cost", [(1, 6), (2, 11)])
def test_nfe_below_one_candidate_is_refused_before_any_forward(name: str, order: int, cost: int) -> None:
    sampler = Counting(order=order)
    with pytest.raises(SearchError, match=f"nfe={cost - 1}; one candidate takes {cost}"):
        search(name, sampler, Budget(nfe=cost - 1))
    assert sampler.rows == 0
    assert search(name, sampler, Budget(nfe=cost)).nfe == cost == sampler.rows
