"""A verifier on a region: which pixels it sees, and that all else is the verifier's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pack.search import SearchError
from pack.verifiers import VerifierEnsemble
from pack.verifiers.guards import load_broken_image
from pack.verifiers.region import RegionVerifier
from pack.verifiers.testing import check_verifier

IMAGES = torch.rand(4, 40, 80, 3, generator=torch.Generator().manual_seed(3))


class Brightness:
    name, scale, needs_prompt, differentiable = "Brightness", (0.5, 0.1), False, True
    early: tuple[float, ...] = ()

    def score(self, images: Tensor, prompt: str, early: tuple[Tensor, ...] | None = None) -> Tensor:
        scores = images.mean(dim=(1, 2, 3))
        return scores if not self.early else scores + early[0].mean(dim=(1, 2, 3)) if early else scores * torch.nan


def mask(top: int, bottom: int, left: int, right: int, height: int = 40, width: int = 80) -> Tensor:
    painted = torch.zeros(1, height, width)
    painted[:, top:bottom, left:right] = 1
    return painted


@pytest.mark.parametrize(
    "painted, margin, box",
    [
        ((10, 20, 30, 40), 0.0, (10, 20, 30, 40)),
        ((10, 20, 30, 40), 0.5, (5, 25, 25, 45)),  # half of 10 on every side
        ((10, 20, 30, 50), 0.0, (5, 25, 30, 50)),  # square: as tall as it is wide
        ((0, 10, 0, 20), 0.0, (0, 20, 0, 20)),  # moved inside at the corner
        ((30, 40, 60, 80), 0.0, (20, 40, 60, 80)),
        ((10, 20, 10, 70), 0.0, (0, 40, 10, 70)),  # as square as the picture allows
        ((0, 40, 0, 80), 1.0, (0, 40, 0, 80)),
    ],
)  # fmt: skip
def test_it_sees_the_bounding_box_with_its_margin_and_as_square_as_can_be(
    painted: tuple[int, int, int, int], margin: float, box: tuple[int, int, int, int]
) -> None:
    top, bottom, left, right = box
    region = RegionVerifier(Brightness(), mask(*painted), margin)
    assert region.box(40, 80) == box
    expected = IMAGES[:, top:bottom, left:right].mean(dim=(1, 2, 3))
    assert torch.allclose(region.score(IMAGES, ""), expected, rtol=0, atol=1e-6)


def test_the_mask_may_have_another_size_than_the_picture_and_several_layers() -> None:
    small = torch.cat([mask(2, 3, 2, 4, 10, 20), mask(4, 5, 6, 7, 10, 20)])
    region = RegionVerifier(Brightness(), small, 0.0)
    assert region.bounds == (0.2, 0.5, 0.1, 0.35)
    assert region.box(40, 80) == (4, 24, 8, 28)  # 12 tall and 20 wide, so 20 x 20
    assert RegionVerifier(Brightness(), small[0], 0.0).box(40, 80) == (6, 14, 8, 16)


def test_faint_edges_of_a_feathered_mask_do_not_count() -> None:
    feathered = 0.4 * mask(5, 35, 5, 75) + 0.6 * mask(10, 20, 30, 40)
    assert RegionVerifier(Brightness(), feathered, 0.0).box(40, 80) == (10, 20, 30, 40)


def test_all_else_is_the_verifiers_own() -> None:
    region = RegionVerifier(Brightness(), mask(10, 20, 30, 40))
    assert region.name == "Brightness (region)" and region.scale == (0.5, 0.1) and region.differentiable
    assert not hasattr(region, "features") and not hasattr(region, "module")
    check_verifier(region, IMAGES, "")
    check_verifier(RegionVerifier(load_broken_image("contrast"), mask(10, 20, 30, 40)), IMAGES, "")
    ensemble = VerifierEnsemble([Brightness(), region])
    assert [member.name for member in ensemble.members] == ["Brightness", "Brightness (region)"]


def test_it_shows_the_region_of_early_predictions_and_embeds_the_region() -> None:
    class Early(Brightness):
        early = (0.4,)

        def features(self, images: Tensor) -> Tensor:
            return images.mean(dim=(1, 2))

    region = RegionVerifier(Early(), mask(10, 20, 30, 40), 0.0)
    seen = IMAGES[:, 10:20, 30:40]
    expected = Early().score(seen, "", (seen.flip(0),))
    assert torch.allclose(region.score(IMAGES, "", early=(IMAGES.flip(0),)), expected, rtol=0, atol=1e-6)
    assert torch.allclose(region.features(IMAGES), seen.mean(dim=(1, 2)), rtol=0, atol=1e-6)
    check_verifier(region, IMAGES, "")


def test_what_makes_no_region_is_refused() -> None:
    with pytest.raises(SearchError, match="mask: got one with nothing in it"):
        RegionVerifier(Brightness(), torch.zeros(1, 8, 8))
    with pytest.raises(SearchError, match="margin: got -1"):
        RegionVerifier(Brightness(), mask(1, 2, 1, 2), -1.0)
    pooled = Brightness()
    pooled.pooled = True  # type: ignore[attr-defined]
    with pytest.raises(SearchError, match="verifier: got Brightness, which judges all pictures together"):
        RegionVerifier(pooled, mask(1, 2, 1, 2))
    with pytest.raises(SearchError, match="verifier: got the ensemble .*between each Verifier"):
        RegionVerifier(VerifierEnsemble([Brightness(), load_broken_image()]), mask(1, 2, 1, 2))
