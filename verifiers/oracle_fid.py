"""Oracle FID and Inception Score (Ma et al. 2025, arXiv 2501.09732, sec. 3): the benchmark's own measure as verifier.

They bound what search can reach and are for experiments over many prompts: each prompt's winner is the candidate that
does most for the set of winners so far.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..search.errors import SearchError
from .feature_sources import FeatureSource, load_features
from .fid_statistics import read_statistics, square_root
from .growing_sets import FrechetSet, GrowingSet, InceptionSet
from .images import CHUNK, scored
from .inception import INCEPTION
from .kinds import Setting, VerifierKind


class OracleVerifier:
    """Scores an image by what it does to the set of images accepted so far; scoring never changes the set.

    `score` gives sign * measure(set + image i) for every image alone, so rows are independent as everywhere, and
    scores of one prompt (equal set) compare. `accept` adds the winner of a prompt, `reset` empties the set:
    search.series does both.
    """

    differentiable = False
    needs_prompt = False
    half = False  # a distance of features to the third digit
    scale: tuple[float, float] | None = None  # it shrinks as the set grows

    def __init__(
        self,
        name: str,
        source: FeatureSource,
        read: Callable[[Tensor], Tensor],
        empty: Callable[[], GrowingSet],
        sign: float,
    ) -> None:
        self.name, self.module = name, source.module
        self.notes: list[str] = []
        self._read, self._empty, self._sign = read, empty, sign
        self.set = empty()

    def score(self, images: Tensor, prompt: str) -> Tensor:
        """images [B, H, W, 3] in 0..1 -> scores float32 [B] on the CPU. The prompt is not looked at."""

        def of(pixels: Tensor) -> Tensor:
            rows = self._rows(pixels)
            measured = torch.full((len(rows),), float("nan"), dtype=torch.float64)
            judged = rows.isfinite().all(dim=1)
            measured[judged] = self._sign * self.set.with_each(rows[judged])
            return measured

        return scored(images, of)

    def accept(self, images: Tensor) -> None:
        """Add images [B, H, W, 3] in 0..1 to the set; those whose features are not finite are left out."""
        for chunk in torch.split(images.movedim(-1, 1).float(), CHUNK):
            rows = self._rows(chunk)
            self.set.add(rows[rows.isfinite().all(dim=1)])

    def reset(self) -> None:
        """Empty the set."""
        self.set = self._empty()

    def _rows(self, pixels: Tensor) -> Tensor:
        with torch.no_grad():
            return self._read(pixels).detach().double().cpu()


def load_oracle_fid(features: str, statistics: str) -> OracleVerifier:
    """Minus the FID of the accepted images with one more, from reference `statistics` (.npz), by the network in
    `features`. Raises SearchError when a file is missing, damaged, or the two do not belong together.
    """
    source, reference = load_features(features), read_statistics(statistics)
    with torch.no_grad():
        width = source.features(torch.zeros(1, 3, 64, 64)).shape[1]
    if width != len(reference.mu):
        raise SearchError(
            f"statistics: got a mean of {len(reference.mu)} numbers, but {source.name} gives {width} features; "
            "use statistics that were made with the same features file"
        )
    root = square_root(reference.sigma)
    return OracleVerifier("Oracle FID", source, source.features, lambda: FrechetSet(reference, root), -1.0)


def load_inception_score(features: str) -> OracleVerifier:
    """The Inception Score of the accepted images with one more, by the classifier in `features`.

    Raises SearchError when the file is missing, damaged or no classifier.
    """
    source = load_features(features)
    if source.logits is None:
        raise SearchError(f"features: {source.name} is no classifier, and a score of classes needs one; {INCEPTION}")
    return OracleVerifier("Inception Score", source, source.logits, lambda: InceptionSet(source.classes), 1.0)


#: The setting that says which network is counted with.
FEATURES = Setting(
    "features", "file", "pt_inception-2015-12-05-6726825d.pth", "The network whose numbers are counted: FID's "
    "Inception, or another (CLIP, DINO, the demo classifier), which makes a distance of its own.",
    folders=("verifiers",),
)  # fmt: skip
FID = VerifierKind(
    key="oracle_fid",
    name="Oracle FID",
    description="What an image does to the FID of the winners so far, for Search Prompts. For experiments.",
    load=load_oracle_fid,
    settings=(
        FEATURES,
        Setting(
            "statistics", "file", "fid_statistics.npz", "mu and sigma of the pictures to come close to, made with the "
            "same features: by Save FID Statistics or pytorch-fid.", folders=("verifiers",),
        ),
    ),
    use_for="The upper bound of what search can do for a published FID, over hundreds of prompts.",
    fooled_by="It is the benchmark itself, so a good FID proves nothing here; single images may be poor. Below some "
    "2,000 images FID is biased upwards: compare at equal numbers only.",
    sources=(INCEPTION,),
)  # fmt: skip
INCEPTION_SCORE = VerifierKind(
    key="inception_score",
    name="Inception Score",
    description="What an image does to the Inception Score of the winners so far, for Search Prompts. For experiments.",
    load=load_inception_score,
    settings=(FEATURES,),
    use_for="The upper bound of what search can do for a published Inception Score, over hundreds of prompts.",
    fooled_by="Images that show one class as clearly as a sign, and a different class each: no prompt is looked at.",
    sources=(INCEPTION,),
)
