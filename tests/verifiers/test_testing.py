"""The contract check finds what it says it finds."""

import random
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from pack.verifiers.testing import check_verifier

IMAGES = torch.rand(4, 8, 8, 3, generator=torch.Generator().manual_seed(0))


def brightness(images: Tensor) -> Tensor:
    return images.mean(dim=(1, 2, 3))


def made(score: Callable[[Tensor], Tensor], **facts: object) -> SimpleNamespace:
    """A verifier from one function."""
    return SimpleNamespace(**{"name": "x", "differentiable": True, "score": lambda images, _: score(images), **facts})


def counting() -> Callable[[Tensor], Tensor]:
    calls: list[int] = []
    return lambda images: brightness(images) + len(calls.append(1) or calls)


def darkened(images: Tensor) -> Tensor:
    scores = brightness(images)
    images.detach().mul_(0.5)
    return scores


def with_random(draw: Callable[[], object]) -> Callable[[Tensor], Tensor]:
    return lambda images: brightness(images) + 0 * bool(draw())


def test_a_good_verifier_passes_and_its_scores_come_back() -> None:
    assert torch.equal(check_verifier(made(brightness), IMAGES, ""), brightness(IMAGES))
    check_verifier(made(lambda images: brightness(images.detach()), differentiable=False), IMAGES, "")
    check_verifier(made(lambda images: brightness(images) - brightness(images).mean(), pooled=True), IMAGES, "")


def test_features_are_checked_where_there_are_any() -> None:
    good = made(brightness, features=lambda images: images.flatten(1))
    check_verifier(good, IMAGES, "")
    for wrong, said in [
        (lambda images: brightness(images), r"got features \(4,\) of 4"),
        (lambda images: images.flatten(1) / 0, "a feature is not finite"),
        (lambda images: images.flatten(1) - images.mean(), "features of an image depend on the others"),
        (lambda images: images.flatten(1).clone().requires_grad_(), "features hold on to a gradient"),
    ]:
        with pytest.raises(AssertionError, match=said):
            check_verifier(made(brightness, features=wrong), IMAGES, "")


def test_one_that_wants_x0_predictions_is_given_faded_images_and_is_nan_without() -> None:
    def score(images: Tensor, prompt: str, early: tuple[Tensor, ...] | None = None) -> Tensor:
        if early is None:
            return torch.full([len(images)], float("nan"))
        assert len(early) == 2
        return (images - early[0]).abs().mean(dim=(1, 2, 3)).detach()

    wants = SimpleNamespace(name="x", differentiable=False, early=(0.4, 0.6), score=score)
    scores = check_verifier(wants, IMAGES, "")  # type: ignore[arg-type]
    expected = (IMAGES - IMAGES.mean(dim=(1, 2), keepdim=True)).abs().mean(dim=(1, 2, 3)) / 2
    assert torch.allclose(scores, expected, atol=1e-6)
    wants.score = lambda images, prompt, early=(0, 0): brightness(images).detach()
    with pytest.raises(AssertionError, match="without the x0 predictions"):
        check_verifier(wants, IMAGES, "")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "bad, said",
    [
        (made(brightness, name=""), "empty string"),
        (made(lambda images: brightness(images)[:, None]), r"got scores \(4, 1\)"),
        (made(lambda images: brightness(images).detach().long()), "expected floats"),
        (made(lambda images: brightness(images) / 0), "infinite"),
        (made(darkened), "changed the images"),
        (made(with_random(lambda: torch.rand(1))), "global random"),
        (made(with_random(random.random)), "global random"),
        (made(counting()), "asked again"),
        (made(lambda images: brightness(images) + torch.arange(len(images))), "reverse order"),
        (made(lambda images: brightness(images) - brightness(images).mean()), "image 0 alone"),
        (made(lambda images: brightness(images.detach())), "differentiable is True"),
        (made(brightness, differentiable=False), "differentiable is False"),
        (made(lambda images: brightness(images.round())), "rounds"),
        (made(lambda images: brightness((images * 0).sqrt())), "not finite"),
    ],
)
def test_a_bad_verifier_is_told_what_is_wrong(bad: SimpleNamespace, said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        check_verifier(bad, IMAGES.clone(), "")
