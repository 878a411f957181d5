"""Verifiers that compare a finished image with its x0 predictions on the way."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pack.search import Budget, SearchError
from pack.search.recipe import Recipe
from pack.search.types import Row
from pack.tests.search.worlds import Counting, Scorer, first, search, values
from pack.verifiers import VerifierEnsemble


class Steady(Scorer):
    """How near the x0 prediction at noise share 0.4 is to the finished image: 0 is equal."""

    early = (0.4,)

    def __init__(self, name: str = "steady") -> None:
        super().__init__(name, lambda clean: clean[:, 0])
        self.seen: list[Any] = []

    def score(self, images: Any, prompt: str, early: Any = None) -> Any:
        self.seen.append(early)
        if early is None:
            return torch.full([len(images)], float("nan"))
        return -(values(images) - values(early[0])).abs().mean(dim=1)


@pytest.mark.parametrize("flow", [True, False])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_verifier_that_wants_early_images_gets_the_nearest_x0_prediction(flow: bool, batch: int) -> None:
    sampler = Counting(flow=flow, steps=10)
    report = search("random", sampler, Budget(candidates=5), verifier=Steady(), batch=batch)
    assert report.nfe == sampler.rows == 5 * 10  # the early estimates cost no forward
    nearest = min(sampler.sigmas[:-1], key=lambda sigma: abs(sampler.time(sigma) - 0.4))
    for e in report.finished:
        row = Row(Recipe(e.recipe), sampler.sigmas[0])
        way = sampler.sigmas[: sampler.sigmas.index(nearest) + 1]
        meter = Free()
        at = sampler.advance([row], way, meter)[0] if len(way) > 1 else row
        expected = sampler.predict([at], meter)[0].x0
        end = sampler.advance([row], sampler.sigmas, meter)[0].x
        assert e.score == pytest.approx(-float((end - expected).abs().mean()), abs=1e-5)


class Free:
    """A meter that counts nothing."""

    def forward(self, rows: int) -> None: ...

    def model_rows(self, rows: int) -> None: ...


def test_early_images_reach_a_held_out_verifier_and_a_member_of_an_ensemble() -> None:
    both = VerifierEnsemble([first(), Steady()], scales={"first": (0, 1), "steady": (0, 1)})
    alone = search("random", Counting(), Budget(candidates=4), verifier=first(), held_out=Steady())
    together = search("random", Counting(), Budget(candidates=4), verifier=both)
    held_out = [e.held_out["steady"] for e in alone.finished]
    assert held_out == [e.parts["steady"] for e in together.finished] and all(s == s for s in held_out)


def test_a_verifier_of_finished_images_is_refused_where_an_algorithm_judges_on_the_way() -> None:
    with pytest.raises(SearchError, match="judges finished images only"):
        search("paths", Counting(steps=10), Budget(nfe=200), verifier=Steady())
    held_out = Steady()
    report = search("paths", Counting(steps=10), Budget(nfe=200), verifier=first(), held_out=held_out)
    on_the_way = [e for e in report.evaluations if e.candidate is None]
    assert on_the_way and all(e.held_out == {} for e in on_the_way)
    assert all(e.held_out["steady"] == e.held_out["steady"] for e in report.finished)
