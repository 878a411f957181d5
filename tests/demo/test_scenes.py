"""The demo world's scenes, prompts and pictures."""

import random

import pytest
import torch

from pack.demo import scenes


def test_every_wording_of_a_random_scene_parses_back_to_it() -> None:
    rng = random.Random(1)
    for _ in range(500):
        scene = scenes.random_scene(rng)
        assert all(scenes.parse(text) == scene for text in scenes.prompts(scene))


def test_case_white_space_and_punctuation_do_not_matter() -> None:
    expected = scenes.Scene((scenes.Group(2, "red", "circle"), scenes.Group(1, "blue", "cross")), "left of")
    assert scenes.parse("  Two RED   circles, to the left of a blue cross. ") == expected


@pytest.mark.parametrize(
    "text", ["", "a red dog", "seven red circles", "a red circle near a blue square", "a red circle and a red circle"]
)
def test_a_prompt_outside_the_world_is_refused_with_the_known_words(text: str) -> None:
    with pytest.raises(ValueError, match=r"Known words: .*purple.*triangle"):
        scenes.parse(text)


def test_mirrored_wordings_have_one_canonical_scene() -> None:
    one = scenes.parse("a red circle left of two blue squares")
    other = scenes.parse("two blue squares right of a red circle")
    assert one != other
    assert one.canonical() == other.canonical()


def test_the_same_seed_draws_the_same_picture_and_another_seed_another() -> None:
    scene = scenes.parse("three green triangles above a yellow cross")
    first, again, other = (scenes.draw(scene, random.Random(seed)) for seed in (5, 5, 6))
    assert first.shape == (64, 64, 3)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert 0 <= float(first.min()) and float(first.max()) <= 1


def test_the_frozen_prompts_all_parse_and_differ() -> None:
    from pack.demo.measure import frozen_prompts

    listed = frozen_prompts()
    assert len(listed) == 240
    assert len({scenes.parse(text).canonical() for text in listed}) == 240
