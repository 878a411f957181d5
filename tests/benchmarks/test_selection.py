"""Selection after the fact: what the driver would have taken, and where curves turn."""

import math
import random

import pytest
import torch

from pack.benchmarks.replay import Played
from pack.benchmarks.selection import Known, by_prompt, curves, ensembles, looked_at, picks, standardised, turn
from pack.search import Budget, Candidates, algorithm, run
from pack.verifiers.ensemble import VerifierEnsemble

A, B = Known("a", (0.0, 1.0)), Known("b", (0.0, 2.0))


class Column:
    """A verifier that looks scores up by the number of the candidate, which the picture shows."""

    def __init__(self, known: Known, scores: list[float]) -> None:
        self.name, self.scale, self.scores = known.name, known.scale, torch.tensor(scores)

    def score(self, images: torch.Tensor, prompt: str) -> torch.Tensor:
        return self.scores[images[:, 0, 0, 0].long()]


def pool(seed: int, size: int = 24) -> list[dict[str, float]]:
    rng = random.Random(seed)
    return [{"a": rng.gauss(0, 1), "b": rng.gauss(0, 2)} for _ in range(size)]


@pytest.mark.parametrize("method", ["z_score", "rank_mean", "worst_case"])
def test_picks_are_those_of_a_real_search(method: str) -> None:
    parts = pool(3)
    columns = [Column(known, [each[known.name] for each in parts]) for known in (A, B)]
    [selector] = ensembles((A, B), (method,))
    for count in (1, 2, 7, 24):
        report = run(
            algorithm("random"), Played(1, range(24)), VerifierEnsemble(columns, method), Budget(candidates=count),
            candidates=Candidates.of_seed(1),
        )  # fmt: skip
        assert report.best is not None
        assert picks(selector, parts, [count], range(24)) == [report.best.evaluation.candidate]


def test_the_earliest_of_equals_is_taken_and_what_could_not_be_judged_never() -> None:
    parts = [{"a": x} for x in (1.0, math.nan, 2.0, 2.0)]
    assert picks(A, parts, [1, 2, 4], [0, 1, 2, 3]) == [0, 0, 2]
    assert picks(A, parts, [1, 4], [3, 1, 0, 2]) == [3, 3]


def test_a_selector_goes_by_its_members_or_by_itself() -> None:
    assert looked_at(A) == {"a"}
    assert looked_at(ensembles((A, B))[0]) == {"a", "b"}


def test_scores_are_standardised_within_their_prompt() -> None:
    values = torch.tensor(standardised([3.0, 5.0, 10.0]))
    torch.testing.assert_close(values.mean(), torch.tensor(0.0), atol=1e-6, rtol=0)
    torch.testing.assert_close(values.std(), torch.tensor(1.0))
    assert standardised([2.0, 2.0]) == [0.0, 0.0]


def test_the_curve_of_best_of_n_follows_the_expected_maximum() -> None:
    pools = [pool(seed, 50) for seed in range(40)]
    values = [{"a": [each["a"] for each in parts], "b": [each["b"] for each in parts]} for parts in pools]
    found = curves(A, pools, values, (1, 2, 8), orders=20)
    # expected maxima of 1, 2 and 8 unit Gaussians
    torch.testing.assert_close(found["a"].mean(dim=0).float(), torch.tensor([0.0, 0.564, 1.424]), atol=0.12, rtol=0)
    assert found["b"].mean(dim=0).abs().max() < 0.35  # what was not looked at stays where it was


def test_a_curve_that_rises_does_not_turn_and_one_that_falls_does() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = 0.3 * torch.randn(60, 5, generator=generator, dtype=torch.float64)
    rising = turn(torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0]) + noise)
    assert (rising.at, rising.turned, rising.fall[0]) == (4, False, 0.0)
    turning = turn(torch.tensor([0.0, 1.0, 2.0, 1.5, 1.0]) + noise)
    assert turning.at == 2
    assert turning.turned
    assert turning.fall[1] < 1.0 < turning.fall[2]


def test_a_flat_curve_turns_no_more_often_than_its_interval_allows() -> None:
    # with the place and the fall from the same prompts, nearly every flat curve would seem to turn
    generator = torch.Generator().manual_seed(1)
    turned = sum(turn(torch.randn(50, 6, generator=generator, dtype=torch.float64)).turned for _ in range(200))
    assert turned <= 14


def test_searches_for_one_prompt_count_as_one() -> None:
    rows = torch.tensor([[1.0, 0.0], [5.0, 2.0], [3.0, 4.0]])
    assert by_prompt(["a", "b", "a"], rows).tolist() == [[2.0, 2.0], [5.0, 2.0]]
