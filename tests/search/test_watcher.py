"""What a watcher is told: who leads, with the latent, and while nothing can win, what came nearest."""

from __future__ import annotations

import math

import pytest
import torch

from pack.search import Budget, SearchError
from pack.search.report import Kept
from pack.search.watcher import Watcher
from pack.tests.search.worlds import Counting, Scorer, first, search
from pack.verifiers import VerifierEnsemble


class Told(Watcher):
    """Remembers who led, and who came nearest."""

    def __init__(self) -> None:
        self.led: list[Kept] = []
        self.near: list[Kept] = []

    def leads(self, kept: Kept) -> None:
        self.led.append(kept)

    def nearest(self, kept: Kept) -> str | None:
        self.near.append(kept)
        return f"{len(self.near)}.png"


@pytest.mark.parametrize("name", ["random", "zero_order", "paths"])
def test_every_new_best_comes_with_its_latent(name: str) -> None:
    told, sampler = Told(), Counting()
    report = search(name, sampler, Budget(candidates=8), watcher=told)
    assert [kept.evaluation for kept in told.led] == report.leads() and told.near == []
    assert report.best is not None and report.best.row.x is not None and told.led[-1].row.x is not None
    assert torch.equal(told.led[-1].row.x, report.best.row.x)
    assert all(torch.equal(sampler.decode([kept.row])[0], kept.images) for kept in told.led)


@pytest.mark.parametrize("method", ["z_score", "rank_mean"])
def test_where_all_are_vetoed_the_nearest_would_have_led_without_the_veto(method: str) -> None:
    free, told = Told(), Told()
    search("random", Counting(), Budget(candidates=8), first(), watcher=free)
    vetoing = VerifierEnsemble([first()], method, vetoes={"first": 1000.0})
    with pytest.raises(SearchError, match=rf"vetoed 8; .*nearest is in {len(free.led)}\.png"):
        search("random", Counting(), Budget(candidates=8), vetoing, watcher=told)
    assert told.led == [] and all(kept.evaluation.verdict == "vetoed" for kept in told.near)
    assert [kept.evaluation.candidate for kept in told.near] == [kept.evaluation.candidate for kept in free.led]


@pytest.mark.parametrize("method", ["z_score", "rank_mean"])
def test_of_those_that_nobody_can_judge_the_first_is_the_nearest(method: str) -> None:
    told, blind = Told(), Scorer("blind", lambda clean: torch.full((len(clean),), math.nan))
    with pytest.raises(SearchError, match=r"1\.png"):
        search("random", Counting(), Budget(candidates=4), VerifierEnsemble([blind], method), watcher=told)
    assert [kept.evaluation.candidate for kept in told.near] == [0]
