"""Broken Image: flat and clipped pictures, and sharpness as SciPy measures it."""

from __future__ import annotations

import pytest
import torch

from pack.search import SearchError
from pack.verifiers import VerifierEnsemble
from pack.verifiers.guards import MEASURES, load_broken_image
from pack.verifiers.testing import check_verifier

NOISE = torch.rand(3, 24, 40, 3, generator=torch.Generator().manual_seed(1))


def flat(*colour: float) -> torch.Tensor:
    return torch.tensor(colour, dtype=torch.float32).expand(1, 24, 40, 3).clone()


def test_flat_black_and_burnt_images_are_broken_and_pictures_are_not() -> None:
    nearly = flat(0.9, 0.1, 0.1) + 0.005 * torch.randn(1, 24, 40, 3, generator=torch.Generator().manual_seed(2))
    burnt = (NOISE[:1] > 0.5).float()
    images = torch.cat([NOISE, flat(0, 0, 0), flat(0.9, 0.1, 0.1), nearly, burnt, 0.1 * NOISE[:1] + 0.4])
    assert load_broken_image().score(images, "").tolist() == [1, 1, 1, 0, 0, 0, 0, 1]


def test_the_limits_are_the_users() -> None:
    half_clipped = NOISE[:1].clone()
    half_clipped[:, :12] = 1.0
    assert load_broken_image(min_unclipped=0.45).score(half_clipped, "") == 1
    assert load_broken_image(min_unclipped=0.55).score(half_clipped, "") == 0
    assert load_broken_image(min_contrast=0.3).score(NOISE[:1], "") == 0
    assert load_broken_image(min_contrast=0.0).score(flat(0.5, 0.5, 0.5), "") == 1


def test_a_pixel_that_is_no_number_is_not_judged_and_cannot_win() -> None:
    images = NOISE.clone()
    images[1, 0, 0, 0] = float("nan")
    assert load_broken_image().score(images, "").isnan().tolist() == [False, True, False]


def test_the_numbers_behind_it() -> None:
    half = torch.cat([flat(0, 0, 0)[:, :, :20], flat(1, 1, 1)[:, :, :20]], dim=2)
    assert load_broken_image("contrast").score(half, "") == 0.5
    assert load_broken_image("contrast").score(flat(0.2, 0.9, 0.4), "") < 1e-6
    assert load_broken_image("unclipped share").score(half, "") == 0
    quarter = half.clone()
    quarter[:, :, :10] = 0.5
    assert load_broken_image("unclipped share").score(quarter, "") == pytest.approx(0.25)


def test_sharpness_is_the_variance_of_scipys_laplacian_and_falls_with_blur() -> None:
    import numpy
    from scipy import ndimage

    grey = NOISE[0].double().numpy() @ numpy.array([0.299, 0.587, 0.114]) * 255
    expected = ndimage.laplace(grey, mode="nearest").var()
    sharpness = load_broken_image("sharpness")
    assert float(sharpness.score(NOISE[:1], "")) == pytest.approx(expected, rel=1e-4)
    blurred = torch.nn.functional.avg_pool2d(NOISE.movedim(-1, 1), 3, stride=1).movedim(1, -1)
    assert (sharpness.score(blurred, "") < 0.1 * sharpness.score(NOISE, "")).all()


@pytest.mark.parametrize("measure", MEASURES)
def test_every_measure_keeps_the_contract(measure: str) -> None:
    check_verifier(load_broken_image(measure), torch.cat([NOISE, flat(0, 0, 0)]), "", tolerance=1e-2)


def test_an_unknown_measure_is_refused() -> None:
    with pytest.raises(SearchError, match="measure: got 'beauty'; expected one of broken or not"):
        load_broken_image("beauty")


def test_as_a_veto_with_weight_0_it_only_keeps_broken_images_from_winning() -> None:
    class Dark:
        name, notes, scale, differentiable, needs_prompt, module = "dark", [], (0.0, 1.0), False, False, None

        def score(self, images: torch.Tensor, prompt: str) -> torch.Tensor:
            return -images.mean(dim=(1, 2, 3))

    ensemble = VerifierEnsemble([Dark(), load_broken_image()], weights=[1, 0], vetoes={"Broken Image": 0.5})
    scores = ensemble.score(torch.cat([NOISE, flat(0, 0, 0)]), "")
    assert scores[3] == float("-inf") and torch.allclose(scores[:3], -NOISE.mean(dim=(1, 2, 3)))
    assert ensemble.notes == []
