"""Memory that runs out costs time, never the search: batches are halved and the result stays the same."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch

from pack.search import SearchError
from pack.tests.nodes import tiny


def failing(at: set[int]) -> Callable[[], None]:
    """A hook that runs out of memory at the given calls."""
    calls = 0

    def hook() -> None:
        nonlocal calls
        calls += 1
        if calls - 1 in at:
            raise torch.OutOfMemoryError("injected")

    return hook


class FailingVAE(tiny.PictureVAE):
    """A VAE with a hook before every decoding."""

    def __init__(self, hook: Callable[[], None]) -> None:
        self.hook = hook

    def decode(self, samples: torch.Tensor) -> torch.Tensor:
        self.hook()
        return super().decode(samples)


SETTINGS = {"max_candidates": 6, "batch_size": 4, "sampler_name": "euler_ancestral", "steps": 3, "cfg": 1.0}


@pytest.fixture(scope="module")
def expected() -> object:
    return tiny.search(tiny.model_of("flow"), **SETTINGS).args


@pytest.mark.parametrize("trial", range(10))
@pytest.mark.parametrize("where", ["model", "VAE", "verifier"])
def test_out_of_memory_at_a_random_call_changes_nothing(where: str, trial: int, expected: tuple) -> None:
    chance = random.Random(f"{where} {trial}")
    at = {chance.randrange(6 if where == "model" else 2)}
    hook = failing(at)
    counted = tiny.Counted(tiny.model_of("flow"), hook if where == "model" else None)
    vae = FailingVAE(hook) if where == "VAE" else tiny.PictureVAE()
    verifier = tiny.Mean(before=hook if where == "verifier" else None)
    out = tiny.search(counted.model, vae=vae, verifier=verifier, **SETTINGS)
    report = out.args[5]
    assert report.best.evaluation.recipe == expected[5].best.evaluation.recipe
    assert tiny.difference(out.args[0], expected[0]) <= 1e-5
    assert [e.recipe for e in report.finished] == [e.recipe for e in expected[5].finished]
    assert any(note.startswith(f"{where}: out of memory") for note in report.notes), report.notes
    assert report.nfe == expected[5].nfe
    if where == "model":
        assert report.lost_nfe > 0
        assert report.nfe == report.model_rows
    else:
        assert report.lost_nfe == 0 and report.nfe == counted.rows


def test_out_of_memory_at_many_calls_halves_down_to_one() -> None:
    counted = tiny.Counted(tiny.model_of("flow"), failing({0, 1, 2, 4}))
    report = tiny.search(counted.model, **{**SETTINGS, "batch_size": 8, "max_candidates": 8}).args[5]
    assert len(report.finished) == 8 and sum("batch" in note for note in report.notes) == 3


def test_memory_that_never_suffices_ends_with_a_sentence() -> None:
    counted = tiny.Counted(tiny.model_of("flow"), failing(set(range(1000))))
    with pytest.raises(SearchError, match="out of memory on a single candidate"):
        tiny.search(counted.model, **SETTINGS)
    assert counted.sizes == []


def test_stock_sampling_works_after_running_out_of_memory() -> None:
    model = tiny.model_of("flow")
    expected = tiny.stock(model, 5)
    counted = tiny.Counted(model, failing(set(range(1000))))
    with pytest.raises(SearchError):
        tiny.search(counted.model, **SETTINGS)
    assert tiny.difference(tiny.stock(model, 5), expected) == 0.0
