"""Region Verifier in a search: the winner is the best of the region, and the host finds the network behind it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pack.nodes.region_node import RegionVerifierNode
from pack.search import SearchError
from pack.tests.nodes import tiny


def test_the_winner_is_the_one_whose_region_scores_best() -> None:
    model, painted = tiny.sd3(), torch.zeros(1, 8, 8)
    painted[:, :4, 4:] = 1
    [verifier] = tiny.execute(RegionVerifierNode, verifier=tiny.Mean("brightness"), mask=painted, margin=0.0).args
    outputs = tiny.search(model, max_candidates=6, top_k=6, verifier=verifier).args
    images, report = outputs[1], outputs[5]
    height, width = images.shape[1:3]
    regions = images[:, : height // 2, width // 2 :].mean(dim=(1, 2, 3))
    assert len(images) == 6 and regions.tolist() == sorted(regions.tolist(), reverse=True)
    assert report.best.evaluation.parts["brightness (region)"] == pytest.approx(float(regions[0]), abs=1e-6)
    whole = tiny.search(model, max_candidates=6, top_k=6, verifier=tiny.Mean("brightness")).args
    assert whole[5].best.evaluation.score != report.best.evaluation.score


def test_the_host_finds_the_network_of_the_verifier_behind_it() -> None:
    class Held(tiny.Mean):
        patcher = "the patcher"

    [verifier] = tiny.execute(RegionVerifierNode, verifier=Held("held"), mask=torch.ones(1, 4, 4)).args
    assert verifier.patcher == "the patcher"


@pytest.mark.parametrize("verifier", [None, 3])
def test_what_is_no_verifier_is_refused(verifier: Any) -> None:
    with pytest.raises(SearchError, match="verifier: got .*wire a Verifier node"):
        tiny.execute(RegionVerifierNode, verifier=verifier, mask=torch.ones(1, 4, 4))
