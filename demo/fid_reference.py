"""Statistics of the demo world's true pictures, as the reference of Oracle FID.

`python load_pack.py pack.demo.fid_reference FILE.npz` draws random scenes, as the models were trained on, and writes
mean and covariance of what the demo classifier (or any other feature file) sees in them.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

import torch

from ..search.errors import SearchError
from ..verifiers.feature_sources import load_features
from ..verifiers.fid_statistics import Statistics, statistics_of, write_statistics
from . import scenes
from .paths import CLASSIFIER

_BATCH = 256


def pictures(count: int, seed: int) -> torch.Tensor:
    """`count` random pictures of random scenes, float32 [count, 64, 64, 3] in 0..1."""
    rng = random.Random(seed)
    return scenes.render([scenes.layout(scenes.random_scene(rng), rng) for _ in range(count)])


def demo_statistics(count: int = 10000, seed: int = 0, features: str = str(CLASSIFIER)) -> Statistics:
    """Statistics of `count` pictures of `pictures(count, seed)`, by the network in the file `features`."""
    source = load_features(features)
    with torch.no_grad():
        rows = [source.features(batch.movedim(-1, 1)) for batch in torch.split(pictures(count, seed), _BATCH)]
    return statistics_of(torch.cat(rows))


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="load_pack.py pack.demo.fid_reference", description=__doc__)
    parser.add_argument("file", type=Path, help="the .npz to write")
    parser.add_argument("--count", type=int, default=10000, help="pictures (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the scenes (default: %(default)s)")
    parser.add_argument("--features", default=str(CLASSIFIER), help="the network (default: the demo classifier)")
    options = parser.parse_args()
    try:
        write_statistics(options.file, demo_statistics(options.count, options.seed, options.features))
    except SearchError as error:
        print(error, file=sys.stderr)
        return 1
    print(options.file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
