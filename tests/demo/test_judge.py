"""The exact judge on drawn pictures."""

import random

import pytest
import torch

from pack.demo import judge, scenes


def drawn(count: int, seed: int) -> tuple[list[scenes.Scene], torch.Tensor]:
    rng = random.Random(seed)
    listed = [scenes.random_scene(rng) for _ in range(count)]
    return listed, torch.stack([scenes.draw(scene, rng) for scene in listed])


def test_drawn_pictures_pass_and_mismatched_prompts_fail() -> None:
    listed, images = drawn(400, 3)
    right = [float(judge.judge(images[i : i + 1], scene)) for i, scene in enumerate(listed)]
    wrong = [float(judge.judge(images[i : i + 1], listed[i - 1])) for i in range(len(listed))]
    assert sum(score == 1.0 for score in right) >= 398
    assert sum(score == 1.0 for score in wrong) <= 2


def test_the_score_is_the_share_of_clauses_met() -> None:
    image = scenes.draw(scenes.parse("a red circle left of a blue square"), random.Random(4))[None]
    assert float(judge.judge(image, "a red circle left of a blue square")) == 1.0
    assert float(judge.judge(image, "a red circle right of a blue square")) == pytest.approx(3 / 4)
    assert float(judge.judge(image, "two red circles left of a blue square")) == pytest.approx(3 / 4)
    assert float(judge.judge(image, "a red circle")) == pytest.approx(1 / 2)


def test_a_light_blur_and_other_sizes_do_not_change_the_verdict() -> None:
    listed, images = drawn(100, 5)
    larger = torch.nn.functional.interpolate(images.permute(0, 3, 1, 2), scale_factor=2, mode="nearest")
    for changed in (larger.permute(0, 2, 3, 1), (images * 0.97 + 0.01)):
        passed = [float(judge.judge(changed[i : i + 1], scene)) == 1.0 for i, scene in enumerate(listed)]
        assert sum(passed) >= 99


def test_a_row_that_is_not_finite_scores_nan_and_leaves_the_others_alone() -> None:
    listed, images = drawn(3, 6)
    alone = judge.judge(images[2:], listed[2])
    images[0, 3, 3, 0] = float("nan")
    images[1, 3, 3, 0] = float("inf")
    scores = judge.judge(images, listed[2])
    assert scores.dtype == torch.float32
    assert scores.isnan().tolist() == [True, True, False]
    assert torch.equal(scores[2:], alone)


def test_images_of_another_rank_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[B, H, W, 3\]"):
        judge.judge(torch.zeros(64, 64, 3), "a red circle")
