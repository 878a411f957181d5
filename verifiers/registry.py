"""The verifiers of this pack, by key."""

from __future__ import annotations

from . import (
    aesthetic,
    aesthetic_v25,
    clip_class,
    clip_iqa,
    clip_score,
    demo_classifier,
    dists,
    endpoint_judge,
    exact_judge,
    guards,
    hps,
    image_classifier,
    image_reward,
    lpips,
    open_clip_model,
    oracle_fid,
    pick_score,
    reference_similarity,
    self_supervised,
    siglip,
    vlm_judge,
)
from .kinds import VerifierKind

_KINDS = (
    clip_score.KIND,
    demo_classifier.KIND,
    exact_judge.KIND,
    pick_score.KIND,
    hps.KIND,
    aesthetic.KIND,
    aesthetic_v25.KIND,
    clip_class.KIND,
    clip_iqa.KIND,
    open_clip_model.KIND,
    image_reward.KIND,
    siglip.KIND,
    image_classifier.KIND,
    reference_similarity.KIND,
    self_supervised.KIND,
    vlm_judge.KIND,
    endpoint_judge.KIND,
    lpips.KIND,
    dists.KIND,
    guards.KIND,
    oracle_fid.FID,
    oracle_fid.INCEPTION_SCORE,
)

#: Every verifier by key, in the order of the drop-down. Iterated by the tests, so a new one is tested on arrival.
VERIFIERS: dict[str, VerifierKind] = {kind.key: kind for kind in _KINDS}
