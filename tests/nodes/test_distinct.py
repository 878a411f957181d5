"""Distinct top k in the nodes: off unless asked for, and by the features that a user wires."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import pytest
import torch
from comfy_api.latest import io
from torch.nn import functional

from pack.demo import paths
from pack.nodes.memory import ManagedEnsemble, managed
from pack.nodes.search_sampler import SearchSampler, SearchSamplerAdvanced
from pack.search import SearchError
from pack.search.distinct import thumbnail
from pack.tests.nodes import tiny
from pack.verifiers import VERIFIERS


def clip_score() -> Any:
    return managed(VERIFIERS["clip_score"].load(file=str(paths.CLIP / "model.safetensors")))


def greedy(features: torch.Tensor, count: int, threshold: float) -> list[int]:
    """Of features [N, D], best first, the places of those that are taken, pair by pair."""
    taken: list[int] = []
    for i in range(len(features)):
        cosines = [float(functional.cosine_similarity(features[i], features[j], dim=0)) for j in taken]
        if len(taken) < count and all(cosine < threshold for cosine in cosines):
            taken.append(i)
    return taken


def middle(features: torch.Tensor) -> float:
    """A threshold in the gap of the middle of all cosines, so that rounding cannot matter."""
    unit = functional.normalize(features, dim=1)
    rows, columns = torch.triu_indices(len(unit), len(unit), 1)
    cosines = (unit @ unit.T)[rows, columns].sort().values
    cosines = cosines[(cosines > 0) & (cosines < 1)]
    gaps = cosines.diff()
    wide = len(gaps) // 4 + int(gaps[len(gaps) // 4 : 3 * len(gaps) // 4].argmax())
    return float((cosines[wide] + cosines[wide + 1]) / 2)


@pytest.mark.parametrize("by", ["thumbnails", "verifier", "member", "wired"])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_images_are_the_greedy_choice_from_all_candidates(by: str, batch_size: int) -> None:
    embeds = clip_score()
    look = thumbnail if by == "thumbnails" else embeds.features
    verifier: Any = {
        "thumbnails": tiny.Mean(), "wired": tiny.Mean(), "verifier": embeds,
        "member": ManagedEnsemble([tiny.Mean(), embeds], method="rank_mean"),
    }[by]  # fmt: skip
    settings: dict[str, Any] = {
        "prompt": "a red circle", "max_candidates": 10, "latent_image": tiny.latent(16, 16), "batch_size": batch_size,
    }  # fmt: skip
    model = tiny.sd3()
    everything = tiny.search(model, verifier=verifier, top_k=10, **settings).args
    threshold = middle(look(everything[1]))
    expected = greedy(look(everything[1]), 4, threshold)
    wired = {"distinct_by": embeds} if by == "wired" else {}
    out = tiny.search(model, verifier=verifier, top_k=4, distinct=threshold, **wired, **settings).args
    assert 1 < len(expected) and expected != list(range(len(expected)))
    assert (out[1] - everything[1][expected]).abs().max() <= (0.0 if batch_size == 1 else 1e-5)
    assert torch.equal(out[0]["samples"], everything[0]["samples"]) and out[4] == everything[4]
    assert out[5].settings["distinct"]["by"] == ("thumbnails" if by == "thumbnails" else "CLIPScore")


def test_off_is_as_before_and_what_is_wired_is_never_asked() -> None:
    class Asked(tiny.Mean):
        def features(self, images: torch.Tensor) -> torch.Tensor:
            raise AssertionError("nothing is to be embedded")

    plain = tiny.search(tiny.sd3(), max_candidates=5).args
    off = tiny.search(tiny.sd3(), max_candidates=5, distinct=1.0, distinct_by=Asked(), verifier=Asked()).args
    assert torch.equal(plain[1], off[1]) and "distinct" not in off[5].settings


def test_advanced_and_search_sampler_agree() -> None:
    model = tiny.sd3()
    settings: dict[str, Any] = {"max_candidates": 8, "distinct": 0.5, "top_k": 3}
    plain = tiny.search(model, 5, steps=4, **settings).args
    from comfy.samplers import sampler_object

    advanced = tiny.search_custom(
        5, tiny.guider(model), sampler_object("euler"), tiny.sigmas(model, 4), **settings
    ).args
    assert torch.equal(plain[1], advanced[1])


def test_a_verifier_under_the_memory_manager_embeds_exactly_where_its_own_does() -> None:
    embeds = clip_score()
    comfy.model_management.unload_all_models()
    images = torch.rand(3, 64, 64, 3, generator=torch.Generator().manual_seed(1))
    assert embeds.features(images).shape[0] == 3  # loaded by being asked
    assert any(m.model is embeds.patcher for m in comfy.model_management.current_loaded_models)
    judge = managed(VERIFIERS["demo_classifier"].load(file=str(paths.CLASSIFIER)))
    assert judge.patcher is not None and not hasattr(judge, "features")


def test_a_schedule_that_does_not_end_at_zero_has_distinct_images_too() -> None:
    model = tiny.sd3()
    from comfy.samplers import sampler_object

    sigmas = tiny.sigmas(model, 6)[:5]
    out = tiny.search_custom(
        5, tiny.guider(model), sampler_object("euler"), sigmas, max_candidates=12, distinct=0.4, top_k=4, batch_size=1
    ).args
    assert len(out[1]) == len(out[5].top) and torch.isfinite(out[1]).all()


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"distinct": 0.9, "distinct_by": tiny.Mean("plain")}, "distinct_by: plain has no features"),
        ({"distinct_by": 7}, "distinct_by: got a int"),
        ({"distinct": 1.5}, "distinct: got 1.5; expected 0 to 1"),
    ],
)
def test_what_cannot_tell_images_apart_is_refused(settings: dict[str, Any], said: str) -> None:
    counted = tiny.Counted(tiny.sd3())
    with pytest.raises(SearchError, match=said):
        tiny.search(counted.model, **settings)
    assert counted.rows == 0


@pytest.mark.parametrize("node", [SearchSampler, SearchSamplerAdvanced])
def test_graphs_that_were_saved_before_keep_their_values_because_the_new_inputs_are_last_and_optional(
    node: type[io.ComfyNode],
) -> None:
    inputs = node.define_schema().inputs
    assert [each.id for each in inputs][-3:] == ["distinct", "distinct_by", "preview_vae"]
    assert all(each.optional for each in inputs[-3:])
    widgets = [each.id for each in inputs if isinstance(each, io.WidgetInput)]
    assert widgets[-2:] == ["top_k", "distinct"]
