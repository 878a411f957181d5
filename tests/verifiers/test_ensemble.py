"""Ensembles by hand: z-scores, ranks with ties, NaN, vetoes, weights and names."""

import math
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from pack.search import SearchError, judging
from pack.verifiers import METHODS, SCALES, VerifierEnsemble, measured_scale

NAN, INF = float("nan"), float("inf")
IMAGES = torch.rand(4, 8, 8, 3, generator=torch.Generator().manual_seed(0))


@dataclass
class Channel:
    """The mean of one colour channel, times `times`."""

    name: str
    channel: int = 0
    times: float = 1.0
    scale: tuple[float, float] | None = None
    differentiable: bool = True
    notes: list[str] = field(default_factory=list)

    def score(self, images: Tensor, prompt: str) -> Tensor:
        return images[..., self.channel].mean(dim=(1, 2)) * self.times


@dataclass
class Given:
    """A verifier that says what it was told to say."""

    name: str
    scores: list[float]

    def score(self, images: Tensor, prompt: str) -> Tensor:
        return torch.tensor(self.scores)


def pool(*rows: tuple[float, ...]) -> list[dict[str, float]]:
    """Rows of scores of members A, B, C."""
    return [dict(zip("ABC", row, strict=False)) for row in rows]


def ab(**settings: object) -> VerifierEnsemble:
    return VerifierEnsemble([Channel("A"), Channel("B", 1)], **settings)


def same(got: list[float], expected: list[float]) -> bool:
    return torch.allclose(torch.tensor(got), torch.tensor(expected), rtol=0, atol=1e-6, equal_nan=True)


def test_z_scores_by_hand() -> None:
    ensemble = ab(scales={"A": (10.0, 2.0), "B": (0.5, 0.1)}, weights=[3, 1])
    # A: (14 - 10) / 2 = 2, (10 - 10) / 2 = 0; B: (0.4 - 0.5) / 0.1 = -1, (0.7 - 0.5) / 0.1 = 2
    assert same(ensemble.combine(pool((14, 0.4), (10, 0.7))), [(3 * 2 - 1) / 4, (0 + 2) / 4])
    assert not ensemble.pooled and ensemble.notes == []


def test_a_z_score_does_not_depend_on_the_pool() -> None:
    ensemble = ab(scales={"A": (1.0, 2.0), "B": (0.5, 0.1)})
    rows = pool((1, 2), (3, 4), (5, NAN))
    assert same(ensemble.combine(rows)[:1], ensemble.combine(rows[:1]))


def test_the_scale_of_the_verifier_is_used_unless_another_is_given() -> None:
    members = [Channel("A", scale=(1.0, 4.0)), Channel("B", scale=(0.0, 1.0))]
    assert same(VerifierEnsemble(members).combine(pool((5, 1))), [1.0])
    assert same(VerifierEnsemble(members, scales={"A": (5.0, 1.0)}).combine(pool((5, 1))), [0.5])


def test_a_verifier_without_a_scale_counts_as_it_is_and_the_user_is_told() -> None:
    ensemble = VerifierEnsemble([Channel("A"), Channel("B", scale=(0.0, 1.0), notes=["B says"])])
    assert same(ensemble.combine(pool((3, 5))), [4.0])
    assert len(ensemble.notes) == 2 and ensemble.notes[0].startswith("A has no measured scale")
    assert ensemble.notes[1] == "B says"
    assert ab(method="rank_mean").notes == []


def test_ranks_by_hand_with_ties() -> None:
    # A: 1, 2, 2, 5 -> ranks 0, 1.5, 1.5, 3 of 3; B: 9, 7, 8, 6 -> 3, 1, 2, 0 of 3
    got = ab(method="rank_mean").combine(pool((1, 9), (2, 7), (2, 8), (5, 6)))
    assert same(got, [(0 + 3) / 6, (1.5 + 1) / 6, (1.5 + 2) / 6, (3 + 0) / 6])


def test_ranks_are_those_of_scipy() -> None:
    rankdata = pytest.importorskip("scipy.stats").rankdata
    table = torch.randint(0, 12, (50, 2), generator=torch.Generator().manual_seed(4)).double()
    expected = (rankdata(table.numpy(), axis=0) - 1).mean(axis=1) / 49
    assert same(ab(method="rank_mean").combine(pool(*map(tuple, table.tolist()))), expected.tolist())


def test_ranks_know_no_units_and_lie_in_zero_to_one() -> None:
    rows = [(1.0, 3.0), (2.0, 9.0), (7.0, 1.0), (7.5, 10.0)]
    plain = ab(method="rank_mean").combine(pool(*rows))
    assert same(plain, ab(method="rank_mean").combine(pool(*[(1000 * a - 7, math.exp(b)) for a, b in rows])))
    assert max(plain) == plain[3] == 1.0 and min(plain) >= 0


def test_a_lone_candidate_and_equal_candidates_rank_in_the_middle() -> None:
    assert ab(method="rank_mean").combine(pool((3, 4))) == [0.5]
    assert ab(method="rank_mean").combine(pool((3, 4), (3, 4), (3, 4))) == [0.5, 0.5, 0.5]
    assert ab(method="rank_mean").combine([]) == []


def test_weighted_ranks() -> None:
    got = ab(method="rank_mean", weights=[3, 1]).combine(pool((1, 2), (2, 1)))
    assert same(got, [0.25, 0.75])


@pytest.mark.parametrize("method", ["z_score", "rank_mean"])
def test_a_row_that_a_member_cannot_judge_is_nan_and_changes_no_other(method: str) -> None:
    ensemble = ab(method=method)
    judged = pool((1, 5), (2, 4), (4, 1))
    got = ensemble.combine([judged[0], *pool((NAN, 9)), judged[1], *pool((9, NAN)), judged[2]])
    assert math.isnan(got[1]) and math.isnan(got[3])
    assert same([got[0], got[2], got[4]], ensemble.combine(judged))


@pytest.mark.parametrize("method", ["z_score", "rank_mean"])
def test_a_row_below_a_minimum_never_wins(method: str) -> None:
    ensemble = ab(method=method, vetoes={"B": 2.0})
    got = ensemble.combine(pool((100, 1.9), (1, 2.0), (2, 3.0)))
    assert got[0] == -INF
    assert same(got[1:], ab(method=method).combine(pool((1, 2.0), (2, 3.0))))


def test_nan_comes_before_a_veto() -> None:
    assert math.isnan(ab(vetoes={"B": 2.0}).combine(pool((NAN, 1.0)))[0])


def test_all_rows_vetoed_or_unjudged() -> None:
    got = ab(method="rank_mean", vetoes={"A": 5.0}).combine(pool((1, 1), (NAN, 1)))
    assert got[0] == -INF and math.isnan(got[1])


@pytest.mark.parametrize("method", ["z_score", "rank_mean"])
def test_weight_zero_is_recorded_and_has_no_say(method: str) -> None:
    ensemble = ab(method=method, weights=[1, 0])
    assert same(
        ensemble.combine(pool((1, NAN), (2, -5), (3, 7))),
        VerifierEnsemble([Channel("A")], method=method).combine(pool((1,), (2,), (3,))),
    )
    assert set(judging.ask(ensemble, IMAGES, "")[0]) == {"A", "B"}


def test_weight_zero_with_a_veto_still_bars() -> None:
    got = ab(weights=[1, 0], vetoes={"B": 2.0}).combine(pool((1, 1), (2, 3), (3, NAN)))
    assert got[:2] == [-INF, 2.0] and math.isnan(got[2])


def test_members_of_one_name_are_told_apart_and_left_as_they_are() -> None:
    members = [Channel("A"), Channel("A", 1), Channel("A 2", 2), Channel("A", 0, 5.0)]
    ensemble = VerifierEnsemble(members)
    assert [member.name for member in ensemble.members] == ["A", "A 3", "A 2", "A 4"]
    assert [verifier.name for verifier in members] == ["A", "A", "A 2", "A"]
    plain = VerifierEnsemble([Channel("CLIPScore"), Channel("CLIPScore", 1)])
    assert [member.name for member in plain.members] == ["CLIPScore", "CLIPScore 2"]
    parts = judging.ask(plain, IMAGES, "")
    assert parts[2]["CLIPScore 2"] == pytest.approx(float(IMAGES[2, ..., 1].mean()))


@pytest.mark.parametrize("method", ["z_score", "rank_mean"])
def test_score_says_what_asking_the_members_and_combining_says(method: str) -> None:
    settings = {"scales": {"A": (0.5, 0.03), "B": (0.4, 0.1)}, "weights": [2, 1], "vetoes": {"A": 0.49}}
    ensemble = ab(method=method, **settings)
    scores = ensemble.score(IMAGES, "")
    assert scores.dtype == torch.float32
    assert same(scores.tolist(), judging.combine(ensemble, judging.ask(ensemble, IMAGES, "")))


def test_a_gradient_flows_through_z_scores_where_all_members_let_it() -> None:
    assert ab().differentiable and not ab(method="rank_mean").differentiable
    stiff = [Channel("A"), Channel("B", 1, differentiable=False)]
    assert not VerifierEnsemble(stiff).differentiable
    assert VerifierEnsemble(stiff, weights=[1, 0]).differentiable
    images = IMAGES.clone().requires_grad_()
    ab(scales={"A": (0.0, 2.0), "B": (0.0, 1.0)}, weights=[1, 3]).score(images, "").sum().backward()
    assert torch.allclose(images.grad[0, 0, 0] * 64, torch.tensor([0.125, 0.75, 0.0]))


def test_verifiers_that_are_pooled_or_ensembles_are_refused_as_members() -> None:
    with pytest.raises(SearchError, match="z_score of A, B is an ensemble itself"):
        VerifierEnsemble([Channel("C"), ab()])
    pooled = Channel("FID")
    pooled.pooled = True  # type: ignore[attr-defined]
    with pytest.raises(SearchError, match="FID is an ensemble itself or ranks a pool"):
        VerifierEnsemble([pooled])


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"method": "median"}, "method: got 'median'; expected one of z_score, rank_mean"),
        ({"weights": [1]}, "weights: got 1 for 2 members"),
        ({"weights": [1, -1]}, "weight of B: got -1"),
        ({"weights": [NAN, 1]}, "weight of A: got nan"),
        ({"weights": [0, 0]}, "weights: got 0 for every member"),
        ({"vetoes": {"C": 1.0}}, "veto: got one for 'C'; expected one of A, B"),
        ({"scales": {"C": (0.0, 1.0)}}, "scale: got one for 'C'; expected one of A, B"),
        ({"scales": {"A": (0.0, 0.0)}}, "scale of A: got mean 0.0 and sd 0.0"),
        ({"scales": {"A": (NAN, 1.0)}}, "scale of A: got mean nan"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(SearchError, match=said):
        ab(**settings)


def test_an_ensemble_of_nothing_is_refused() -> None:
    with pytest.raises(SearchError, match="got no verifier"):
        VerifierEnsemble([])


def test_an_ensemble_asks_for_a_prompt_when_a_member_does() -> None:
    blind = Channel("A")
    blind.needs_prompt = False  # type: ignore[attr-defined]
    assert not VerifierEnsemble([blind]).needs_prompt
    assert VerifierEnsemble([blind, Channel("B")]).needs_prompt


def test_a_measured_scale_makes_scores_standard() -> None:
    scores = [3.0, 5.0, NAN, 7.0]
    mean, sd = measured_scale(scores)
    assert (mean, sd) == (5.0, 2.0)
    ensemble = VerifierEnsemble([Given("A", scores)], scales={"A": (mean, sd)})
    assert same(ensemble.score(IMAGES, "").tolist(), [-1.0, 0.0, NAN, 1.0])
    with pytest.raises(SearchError, match="got 2 finite scores, all equal"):
        measured_scale(torch.tensor([4.0, NAN, 4.0]))


def test_a_weighted_sum_adds_raw_scores_in_their_own_units() -> None:
    ensemble = ab(method="weighted_sum", weights=[5.0, 0.01])
    assert same(ensemble.combine(pool((0.3, 20.0), (0.2, NAN))), [5.0 * 0.3 + 0.01 * 20.0, NAN])
    assert not ensemble.pooled and ensemble.notes == []  # no scale is needed, so none is missed


def test_the_worst_case_is_the_lowest_z_of_all_members_with_a_weight() -> None:
    scales = {"A": (10.0, 2.0), "B": (0.5, 0.1)}
    rows = pool((14, 0.4), (10, 0.7), (11, NAN))
    # A: 2, 0; B: -1, 2
    assert same(ab(method="worst_case", scales=scales).combine(rows), [-1.0, 0.0, NAN])
    assert same(ab(method="worst_case", scales=scales, weights=[9, 0.1]).combine(rows), [-1.0, 0.0, NAN])
    assert same(ab(method="worst_case", scales=scales, weights=[1, 0]).combine(rows), [2.0, 0.0, 0.5])


@pytest.mark.parametrize("method", ["z_score", "worst_case"])
def test_scales_of_the_pool_are_those_of_the_candidates_so_far(method: str) -> None:
    statistics = pytest.importorskip("scipy.stats")
    rows = [(1.0, 30.0), (2.0, 10.0), (6.0, 20.0), (NAN, 5.0)]
    ensemble = ab(method=method, scale="pool", scales={"A": (100.0, 7.0)})
    judged = statistics.zscore(torch.tensor(rows[:3]).double().numpy(), axis=0, ddof=1)
    expected = judged.min(axis=1) if method == "worst_case" else judged.mean(axis=1)
    assert same(ensemble.combine(pool(*rows)), [*expected.tolist(), NAN])
    assert ensemble.pooled and not ensemble.differentiable and ensemble.notes == []


def test_a_pool_of_one_and_equal_scores_have_no_scale_and_score_zero() -> None:
    ensemble = ab(scale="pool")
    assert same(ensemble.combine(pool((3, 4))), [0.0])
    assert same(ensemble.combine(pool((3, 1), (3, 2))), [-0.5 * math.sqrt(0.5), 0.5 * math.sqrt(0.5)])


def test_only_methods_with_scales_can_have_them_from_the_pool() -> None:
    assert not ab(method="weighted_sum", scale="pool").pooled
    assert ab(method="rank_mean", scale="pool").pooled
    with pytest.raises(SearchError, match="scale: got 'mine'; expected one of fixed, pool"):
        ab(scale="mine")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", SCALES)
def test_whatever_the_method_nan_and_vetoes_never_win_and_the_order_does_not_matter(method: str, scale: str) -> None:
    table = torch.randn(12, 2, generator=torch.Generator().manual_seed(5)).double()
    table[3, 0] = table[5, 1] = NAN
    rows = pool(*map(tuple, table.tolist()))
    ensemble = ab(method=method, scale=scale, vetoes={"A": -0.5}, scales={"A": (0, 1), "B": (0, 1)})
    scores = ensemble.combine(rows)
    assert math.isnan(scores[3]) and math.isnan(scores[5])
    vetoed = [i for i in range(12) if table[i, 0] < -0.5 and not table[i].isnan().any()]
    assert vetoed and all(scores[i] == -INF for i in vetoed)
    assert same(ensemble.combine(rows[::-1]), scores[::-1])


@pytest.mark.parametrize("method", METHODS)
def test_a_candidate_that_is_better_by_every_member_scores_higher(method: str) -> None:
    scores = ab(method=method, scales={"A": (0, 1), "B": (0, 1)}).combine(pool((1, 1), (2, 3), (0, 0)))
    assert scores[1] > scores[0] > scores[2]
