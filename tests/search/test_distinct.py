"""Distinct top k: what is returned is what a greedy choice from all candidates returns, whatever was forgotten."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from pack.search import Budget, SearchError, SearchReport, algorithm
from pack.search.distinct import SIDE, Likeness, distinct, likeness_of, reach, thumbnail
from pack.search.podium import Podium
from pack.search.report import Kept
from pack.tests.search.worlds import Counting, Pairs, RankMean, Scorer, Seen, first, search, second, values
from pack.verifiers import VerifierEnsemble


class Embeds(Scorer):
    """A verifier that offers features: the first `size` numbers of the clean vector."""

    def __init__(self, size: int = 3, name: str = "embeds") -> None:
        super().__init__(name, lambda clean: clean[:, 0])
        self.size = size
        self.embedded = 0

    def features(self, images: Tensor) -> Tensor:
        self.embedded += len(images)
        return values(images)[:, : self.size]


class Pictures(Seen):
    """Remembers every picture."""

    def __init__(self) -> None:
        super().__init__()
        self.images: dict[int, Tensor] = {}

    def evaluated(self, evaluation: Any, images: Tensor, best: bool) -> None:
        super().evaluated(evaluation, images, best)
        self.images[evaluation.id] = images


def by_hand(report: SearchReport, pictures: Pictures, look: Any, count: int, threshold: float) -> list[int]:
    """The greedy choice from all candidates of a report, pair by pair."""
    order = sorted((e for e in report.evaluations if e.can_win), key=lambda e: (-e.score, e.id))
    taken: list[int] = []
    for e in order:
        alike = False
        for other in taken:
            pairs = zip(look(pictures.images[e.id]), look(pictures.images[other]), strict=True)
            cosines = [float(functional.cosine_similarity(a.double(), b.double(), dim=0)) for a, b in pairs]
            alike = alike or sum(cosines) / len(cosines) >= threshold
        if not alike and len(taken) < count:
            taken.append(e.id)
    return taken


def ids(top: Sequence[Kept]) -> list[int]:
    return [kept.evaluation.id for kept in top]


def unit(count: int, size: int, seed: int) -> Tensor:
    drawn = torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return functional.normalize(drawn, dim=1)


@pytest.mark.parametrize("threshold", [0.0, 0.4, 0.8, 0.95])
@pytest.mark.parametrize("name", ["random", "zero_order", "evolution"])
def test_a_search_returns_what_the_greedy_choice_from_all_candidates_returns(name: str, threshold: float) -> None:
    fewer = 0
    for seed in range(4):
        verifier, pictures = Embeds(), Pictures()
        report = search(
            name, Counting(), Budget(candidates=60), verifier, first_seed=seed, top_k=5, distinct=threshold,
            watcher=pictures,
        )  # fmt: skip
        expected = by_hand(report, pictures, verifier.features, 5, threshold)
        assert ids(report.top) == expected
        assert all(torch.equal(kept.images, pictures.images[kept.evaluation.id]) for kept in report.top)
        assert all(kept.row.x is not None for kept in report.top)
        fewer += len(expected) < 5
    assert fewer > 0 or threshold >= 0.8  # in three dimensions few are far apart


def test_candidates_that_nothing_remembers_could_not_have_come_in() -> None:
    # the k-th best so far is not enough: these come in the worst order, and a rule that forgot more would fail
    displaced = 0
    for seed in range(60):
        vectors = unit(40, 3, seed)
        vectors = vectors[vectors[:, 0].argsort()]  # later ones are nearer to one pole, and better
        threshold, count = (0.9, 0.8, 0.6)[seed % 3], 2 + seed % 4
        kept: list[int] = []
        for newest in range(len(vectors)):
            before = [kept[i] for i in distinct(vectors[kept], count, threshold)] if kept else []
            kept = [newest, *kept]
            now = [kept[i] for i in distinct(vectors[kept], count, threshold)]
            displaced += bool(set(now) - set(before) - {newest})
            kept = kept[: reach(vectors[kept], count, threshold)]
            everything = list(range(newest, -1, -1))
            assert now == [everything[i] for i in distinct(vectors[everything], count, threshold)]
    assert displaced > 100  # candidates that a better one had kept out did come in later


def test_what_is_far_enough_apart_lets_all_worse_ones_go() -> None:
    vectors = torch.eye(6, dtype=torch.float64)
    assert reach(vectors, 3, 0.8) == 3  # 2 * 0.8 ** 2 - 1 = 0.28 > 0: orthogonal ones have no common neighbour
    assert reach(vectors, 3, 0.7) == 6  # -0.02: one that is alike to two of them may come
    assert reach(torch.cat([vectors[:1], vectors[:1], vectors]), 3, 0.8) == 5


@pytest.mark.parametrize("pooled", [RankMean(first(), second()), None])
def test_ranked_pools_are_chosen_by_their_last_ranks(pooled: Any) -> None:
    for seed in range(5):
        verifier = pooled or VerifierEnsemble([first(), second()], method="rank_mean")
        pictures, features = Pictures(), Embeds(4)
        report = search(
            "random", Counting(), Budget(candidates=40), verifier, first_seed=seed, top_k=4, distinct=0.7,
            distinct_by=features, watcher=pictures,
        )  # fmt: skip
        assert ids(report.top) == by_hand(report, pictures, features.features, 4, 0.7)
        assert all(torch.equal(kept.images, pictures.images[kept.evaluation.id]) for kept in report.top)


@pytest.mark.parametrize("batch", [1, 5, 16])
def test_the_micro_batch_changes_nothing(batch: int) -> None:
    one, other = (
        search("random", Counting(), Budget(nfe=300), Embeds(), batch=b, top_k=4, distinct=0.6) for b in (3, batch)
    )
    assert ids(one.top) == ids(other.top)
    assert all(torch.equal(a.images, b.images) for a, b in zip(one.top, other.top, strict=True))


def test_the_best_is_first_and_the_rest_of_the_report_is_as_without() -> None:
    plain = search("random", Counting(), Budget(candidates=30), Embeds(), top_k=4)
    report = search("random", Counting(), Budget(candidates=30), Embeds(), top_k=4, distinct=0.5)
    assert ids(report.top)[0] == ids(plain.top)[0] and ids(report.top) != ids(plain.top)
    assert [e.score for e in report.evaluations] == [e.score for e in plain.evaluations]
    assert report.nfe == plain.nfe and "distinct" not in plain.settings
    assert report.settings["distinct"] == {"cosine": 0.5, "by": "embeds"}


def test_a_batch_latent_is_alike_by_the_mean_of_its_images() -> None:
    verifier, pictures = Embeds(), Pictures()
    report = search("random", Pairs(), Budget(candidates=40), verifier, top_k=6, distinct=0.5, watcher=pictures)
    assert all(len(images) == 2 for images in pictures.images.values())
    assert ids(report.top) == by_hand(report, pictures, verifier.features, 6, 0.5)


def test_fewer_are_returned_where_fewer_are_distinct_and_the_notes_say_so() -> None:
    report = search("random", Counting(), Budget(candidates=20), Embeds(1), top_k=4, distinct=0.5)
    assert len(report.top) == 2  # one positive number, one negative
    assert [n for n in report.notes if "distinct: 2 of the 4 images asked for" in n and "0.5 by embeds" in n]
    few = search("random", Counting(), Budget(candidates=2), Embeds(), top_k=4, distinct=0.999999)
    assert len(few.top) == 2 and not few.notes  # no more were tried


def test_nothing_is_embedded_without_a_threshold_and_each_finished_candidate_once_with_one() -> None:
    verifier = Embeds()
    search("random", Counting(), Budget(candidates=20), verifier, top_k=4, distinct_by=verifier)
    assert verifier.embedded == 0
    report = search("evolution", Counting(), Budget(nfe=300), verifier, top_k=4, distinct=0.9)
    assert verifier.embedded == len(report.finished)


def test_pictures_in_memory_are_those_of_the_top_k_and_candidates_those_in_reach(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with_picture, remembered = [], []
    let_go = Podium._let_go

    def counted(self: Podium, best: list[Kept]) -> None:
        let_go(self, best)
        with_picture.append(sum(len(kept.images) > 0 for kept in self.kept.values()))
        remembered.append(len(self.kept))
        assert self.likeness is not None and self.likeness.vectors.keys() == self.kept.keys()

    monkeypatch.setattr(Podium, "_let_go", counted)
    wide = Embeds(12)
    search("random", Counting(means=torch.zeros(1, 12)), Budget(candidates=200), wide, top_k=4, distinct=0.9)
    assert max(with_picture) <= 4 and len(remembered) == 200
    assert max(remembered[20:]) <= 30  # most of 200 are let go where candidates differ in many ways


def test_a_picture_that_was_let_go_is_decoded_again() -> None:
    again = 0
    for seed in range(6):
        sampler, pictures = Counting(), Pictures()
        report = search(
            "random", sampler, Budget(candidates=60), Embeds(), first_seed=seed, top_k=5, distinct=0.8, batch=1,
            watcher=pictures,
        )  # fmt: skip
        again += sampler.calls["decode"] - len(report.finished)
        assert all(torch.equal(kept.images, pictures.images[kept.evaluation.id]) for kept in report.top)
    assert again > 0


def test_features_come_from_the_one_that_is_wired_then_the_verifier_then_a_member_then_thumbnails() -> None:
    embeds, other = Embeds(name="mine"), Embeds(name="wired")
    ensemble = VerifierEnsemble([first(), embeds], scales={"first": (0, 1), "mine": (0, 1)})
    for given, verifier, name in [(other, embeds, "wired"), (None, embeds, "mine"), (None, ensemble, "mine"),
                                  (None, first(), "thumbnails")]:  # fmt: skip
        likeness = likeness_of(0.9, given, verifier)
        assert likeness is not None and likeness.name == name
    assert likeness_of(1.0, first(), embeds) is None
    with pytest.raises(SearchError, match="distinct_by: first has no features.*Reference Similarity"):
        likeness_of(0.9, first(), embeds)
    for wrong in (-0.1, 1.5, math.nan):
        with pytest.raises(SearchError, match="distinct: got .*expected 0 to 1"):
            likeness_of(wrong, None, embeds)


def test_features_that_are_no_numbers_make_a_candidate_alike_to_none() -> None:
    def look(images: Tensor) -> Tensor:
        return images.flatten(1).masked_fill(images.flatten(1) < 0, math.nan)

    pictures = [torch.full((1, 2, 2, 3), value) for value in (1.0, -1.0, 2.0, -2.0)]
    vectors = torch.stack(Likeness(0.5, "some", look).seen(pictures))
    assert distinct(vectors, 4, 0.5) == [0, 1, 3]


def test_features_of_a_wrong_shape_name_their_verifier() -> None:
    broken = Embeds(name="broken")
    broken.features = lambda images: torch.zeros(len(images))  # type: ignore[method-assign]
    with pytest.raises(
        SearchError, match=r"verifier broken failed.*got features \(1,\) for 1 images; expected a tensor"
    ):
        search("random", Counting(), Budget(candidates=4), broken, distinct=0.9)


def test_running_out_of_memory_over_features_halves_the_batch() -> None:
    def look(images: Tensor) -> Tensor:
        if len(images) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return images.flatten(1)

    large = Embeds()
    large.features = look  # type: ignore[method-assign]
    report = search("random", Counting(), Budget(candidates=8), large, batch=8, distinct=0.9, top_k=3)
    assert len(report.finished) == 8 and any("verifier: out of memory" in note for note in report.notes)


def test_a_thumbnail_compares_the_places_of_colours() -> None:
    generator = torch.Generator().manual_seed(4)
    coarse = torch.rand(2, 3, 6, 6, generator=generator)
    picture, other = functional.interpolate(coarse, (96, 64), mode="bilinear").movedim(1, -1)
    brighter = picture * 0.8 + 0.15
    grainy = (picture + 0.1 * torch.randn(picture.shape, generator=generator)).clamp(0, 1)
    cosine = lambda a, b: float(functional.cosine_similarity(*thumbnail(torch.stack([a, b])), dim=0))  # noqa: E731
    assert thumbnail(picture[None]).shape == (1, SIDE * SIDE * 3 + 1)
    assert cosine(picture, brighter) > 0.999 and cosine(picture, grainy) > 0.99
    assert cosine(picture, other) < 0.5 and cosine(picture, picture.flip(1)) < 0.5
    black, white = torch.zeros_like(picture), torch.ones_like(picture)
    assert cosine(black, white) == pytest.approx(1.0)  # nothing is in either of them


def test_it_works_for_every_kind_of_pictures() -> None:
    video = [torch.rand(1, 3, 20, 30, 3), torch.rand(1, 3, 20, 30, 3)]
    vectors = Likeness(0.9, "thumbnails", thumbnail).seen(video)
    assert [v.shape for v in vectors] == [(3 * 769,)] * 2
    assert [float(v.norm()) for v in vectors] == pytest.approx([1.0, 1.0])


def test_a_finished_search_says_in_its_settings_by_what_images_are_distinct() -> None:
    report = search(algorithm("random"), Counting(), Budget(candidates=8), first(), distinct=0.9, top_k=2)
    assert report.settings["distinct"] == {"cosine": 0.9, "by": "thumbnails"}
