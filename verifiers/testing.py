"""The contract of a verifier as one function that anybody who writes a verifier can call in a test."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from ..search.types import Verifier


def asked(verifier: Verifier, images: Tensor, prompt: str) -> Tensor:
    """What a verifier scores images [B, H, W, 3], [B].

    One with `early` is given an x0 prediction of every image for each of its noise shares: the image, faded halfway to
    its mean colour.
    """
    shares = getattr(verifier, "early", ())
    if not shares:
        return verifier.score(images, prompt)
    faded = (images + images.mean(dim=(1, 2), keepdim=True)) / 2
    scores: Tensor = verifier.score(images, prompt, early=(faded,) * len(shares))  # type: ignore[call-arg]
    return scores


def check_verifier(verifier: Verifier, images: Tensor, prompt: str, tolerance: float = 1e-5) -> Tensor:
    """Hold a verifier to its contract on images [B, H, W, 3], B of at least 3; returns the scores [B].

    It must have a name, score [B] floats that are finite or NaN, the same each time, in inference mode too, leave
    images and all random generators alone, and judge each image alone: in any order and any split of the batch it
    scores the same within `tolerance`. `pooled` verifiers judge the batch together, so only their order is checked.
    One with `early` noise shares is given faded images as x0 predictions, and must score NaN without any.
    Features, where it has any, must be finite [B, D], and those of an image must not depend on the others either.
    A gradient must reach the images exactly when `differentiable` is true: give images and a prompt where the score
    is not on a flat part. Raises AssertionError saying what failed.
    """
    _require(isinstance(verifier.name, str) and verifier.name != "", "its name is an empty string")
    _require(len(images) >= 3, "the check needs at least 3 images")
    before, randomness = images.clone(), _randomness()
    scores = asked(verifier, images, prompt).detach()
    _require(scores.shape == (len(images),), f"got scores {tuple(scores.shape)} for {len(images)} images")
    _require(scores.is_floating_point(), f"got scores of {scores.dtype}; expected floats")
    _require(not bool(scores.isinf().any()), f"got an infinite score: {scores.tolist()}")
    _require(_equal(images, before, 0.0), "it changed the images")
    _require(_randomness() == randomness, "it used the global random generators")

    def same(images: Tensor, expected: Tensor, what: str) -> None:
        got = asked(verifier, images, prompt).detach()
        _require(_equal(got, expected, tolerance), f"{what}: got {got.tolist()}; expected {expected.tolist()}")

    same(images, scores, "asked again")
    same(images.flip(0), scores.flip(0), "asked in reverse order")
    with torch.inference_mode():
        same(images, scores, "asked in inference mode")
    if not getattr(verifier, "pooled", False):
        for i in range(len(images)):
            same(images[i : i + 1], scores[i : i + 1], f"image {i} alone")
        same(images[1:], scores[1:], "asked without the first image")
    if getattr(verifier, "early", ()):
        _require(bool(verifier.score(images, prompt).isnan().all()), "it scored without the x0 predictions it wants")
    _check_gradient(verifier, images, prompt)
    _check_features(verifier, images, tolerance)
    return scores


def _check_features(verifier: Verifier, images: Tensor, tolerance: float) -> None:
    embed = getattr(verifier, "features", None)
    if callable(embed):
        seen = embed(images)
        _require(seen.ndim == 2 and len(seen) == len(images), f"got features {tuple(seen.shape)} of {len(images)}")
        _require(bool(seen.isfinite().all()), "a feature is not finite")
        _require(not seen.requires_grad, "its features hold on to a gradient")
        _require(_equal(embed(images[1:2]), seen[1:2], tolerance), "features of an image depend on the others")


def _check_gradient(verifier: Verifier, images: Tensor, prompt: str) -> None:
    declared = bool(getattr(verifier, "differentiable", False))
    with torch.inference_mode(False), torch.enable_grad():
        pixels = images.clone().requires_grad_()
        scores = asked(verifier, pixels, prompt)
        _require(scores.requires_grad == declared, f"differentiable is {declared}, but the scores say otherwise")
        if declared:
            judged = scores[scores.isfinite()]
            # Weighted differently, because scores that are measured from their mean have a constant sum.
            (gradient,) = torch.autograd.grad((judged * torch.arange(1, 1 + len(judged)).to(judged)).sum(), pixels)
            _require(bool(gradient.isfinite().all()), "the gradient is not finite")
            _require(bool(gradient.any()), "the gradient is zero everywhere: something on the way rounds")


def _randomness() -> tuple[object, ...]:
    return bytes(torch.get_rng_state().tolist()), random.getstate()


def _equal(got: Tensor, expected: Tensor, tolerance: float) -> bool:
    return got.shape == expected.shape and torch.allclose(got, expected, rtol=0, atol=tolerance, equal_nan=True)


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise AssertionError(otherwise)
