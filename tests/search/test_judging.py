"""What the driver makes of a verifier's answers."""

import pytest
import torch
from torch import Tensor

from pack.search import Budget, SearchError
from pack.search.judging import VerifierFailed, ask, combine, is_pooled, mean, scale_of
from pack.search.probe import collapse
from pack.tests.search.worlds import Counting, Pairs, RankMean, Scorer, Veto, first, search, second
from pack.verifiers import VerifierEnsemble

IMAGES = torch.rand(3, 1, 4, 3, generator=torch.Generator().manual_seed(1))
INF = float("inf")


def answering(answer: object) -> Scorer:
    return Scorer("odd", lambda clean: answer)  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize(
    "answer, got",
    [
        (torch.zeros(3, 1), r"\(3, 1\)"),
        (torch.zeros(2), r"\(2,\)"),
        (torch.tensor(0.5), r"\(\)"),
        ([0.1, 0.2, 0.3], "list"),
        (0.5, "float"),
        (None, "NoneType"),
    ],
)
def test_an_answer_of_the_wrong_shape_or_type_is_refused_by_name(answer: object, got: str) -> None:
    with pytest.raises(VerifierFailed, match=f"verifier odd failed.*got {got} for 3 images; expected"):
        ask(answering(answer), IMAGES, "")


def test_what_a_verifier_raises_is_named_and_kept_as_the_cause() -> None:
    def broken(clean: Tensor) -> Tensor:
        raise KeyError("weights")

    with pytest.raises(VerifierFailed, match="verifier broken failed: KeyError: 'weights'") as failed:
        ask(Scorer("broken", broken), IMAGES, "")
    assert isinstance(failed.value.__cause__, KeyError)
    with pytest.raises(VerifierFailed, match="verifier broken failed"):
        ask(RankMean(first(), Scorer("broken", broken)), IMAGES, "")


def test_an_interrupt_in_a_verifier_passes_through() -> None:
    def interrupted(clean: Tensor) -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ask(Scorer("slow", interrupted), IMAGES, "")


@pytest.mark.parametrize(
    "shipped, known",
    [
        ((0.2, 0.05), (0.2, 0.05)),
        ([1, 2], (1.0, 2.0)),
        (100.0, None),
        ((0.0, 0.0), None),
        ((0.0, -1.0), None),
        ((float("nan"), 1.0), None),
        ((0.0, INF), None),
        ((1.0, 2.0, 3.0), None),
        ("12", None),
        (torch.ones(2, 2), None),
        (lambda: None, None),
        (None, None),
    ],
)
def test_a_scale_is_a_mean_and_a_deviation_and_all_else_is_the_verifiers_own(shipped: object, known: object) -> None:
    verifier = first()
    verifier.scale = shipped  # type: ignore[attr-defined]
    assert scale_of(verifier) == known
    report = search("random", Counting(), Budget(candidates=5), verifier)
    assert report.settings["scales"] == ({"first": known[1]} if isinstance(known, tuple) else {})
    assert isinstance(collapse(report), list)  # which divides by it
    ensemble = VerifierEnsemble([verifier])
    assert ensemble.members[0].scale == (known or (0.0, 1.0)) and bool(ensemble.notes) == (known is None)


def test_infinite_answers_judge_nothing() -> None:
    parts = ask(answering(torch.tensor([INF, -INF, 0.5])), IMAGES, "")
    assert [p["odd"] == p["odd"] for p in parts] == [False, False, True]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64])
def test_scores_of_any_type_become_plain_numbers(dtype: torch.dtype) -> None:
    parts = ask(answering(torch.tensor([1, 2, 3], dtype=dtype)), IMAGES, "")
    assert [p["odd"] for p in parts] == [1.0, 2.0, 3.0] and type(parts[0]["odd"]) is float


def test_scores_with_a_gradient_are_detached() -> None:
    assert ask(answering(torch.ones(3, requires_grad=True)), IMAGES, "") == [{"odd": 1.0}] * 3


def test_the_parts_of_every_member_are_recorded_even_of_an_ensemble_in_an_ensemble() -> None:
    inner = RankMean(first("a"), second("b"))
    outer = RankMean(inner, first("c"))  # type: ignore[arg-type]
    parts = ask(outer, IMAGES, "")
    assert [sorted(p) for p in parts] == [["a", "b", "c"]] * 3
    assert all(p["a"] == p["c"] for p in parts)


def test_combine_takes_the_verifiers_own_score_or_the_ensembles() -> None:
    assert combine(first(), [{"first": 2.0}, {"first": 1.0}]) == [2.0, 1.0]
    pool = [{"first": 1.0, "second": 0.0}, {"first": 2.0, "second": -1.0}]
    assert combine(Veto(-0.5), pool) == [1.0, -INF]
    assert combine(RankMean(first(), second()), pool) == [0.75, 0.75]
    assert is_pooled(RankMean(first())) and not is_pooled(first()) and not is_pooled(Veto(0))


def test_the_mean_over_images_is_taken_part_by_part_and_nan_stays_nan() -> None:
    assert mean([{"a": 1.0, "b": 4.0}, {"a": 3.0, "b": -4.0}]) == {"a": 2.0, "b": 0.0}
    [odd] = mean([{"a": 1.0}, {"a": float("nan")}]).values()
    assert odd != odd


def test_the_score_of_a_latent_batch_is_the_mean_over_its_rows() -> None:
    sampler = Pairs()
    report = search("random", sampler, Budget(candidates=5), top_k=5, batch=3)
    assert report.top[0].images.shape == (2, 1, 4, 3)
    for kept in report.top:
        [images] = sampler.decode([kept.row])
        each = [ask(first(), image[None], "")[0]["first"] for image in images]
        assert kept.evaluation.score == pytest.approx(sum(each) / 2, abs=1e-12)


@pytest.mark.parametrize("answer", [lambda n: torch.zeros(n, 1), lambda n: torch.zeros(n + 1), lambda n: 0.5])
def test_a_search_with_a_verifier_of_the_wrong_shape_ends_in_one_sentence(answer: object) -> None:
    odd = Scorer("odd", lambda clean: answer(len(clean)))  # type: ignore[operator]
    with pytest.raises(SearchError, match="verifier odd failed.*candidate 0, seed 7") as failed:
        search("random", Counting(), Budget(candidates=5), odd)
    assert "\n" not in str(failed.value)


def test_a_search_with_infinite_scores_lets_the_finite_ones_win() -> None:
    spiky = Scorer("spiky", lambda clean: torch.where(clean[:, 0] > 0.2, INF, clean[:, 0]))
    report = search("random", Counting(), Budget(candidates=30), spiky)
    assert {e.verdict for e in report.finished} == {"judged", "not judged"}
    assert report.best is not None
    assert report.best.evaluation.score == max(e.score for e in report.finished if e.verdict == "judged")
