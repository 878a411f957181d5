"""Save FID Statistics: the reference that Oracle FID measures from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import folder_paths
import torch
from comfy_api.latest import io

from ..search.errors import SearchError
from ..verifiers.feature_sources import load_features
from ..verifiers.fid_statistics import STATISTICS, Statistics, statistics_of, write_statistics
from ..verifiers.images import CHUNK
from ..verifiers.oracle_fid import FEATURES
from . import sockets
from .memory import ManagedVerifier
from .model_files import path_of
from .verifier_nodes import widget


class SaveFIDStatistics(io.ComfyNode):
    """Mean and covariance of the features of images, as a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NoiseSearchSaveFIDStatistics",
            display_name="Save FID Statistics",
            category=sockets.CATEGORY,
            description="Writes mean and covariance of the features of images to models/verifiers, where Oracle FID "
            "finds them. Give it thousands of the pictures that generated ones should resemble.",
            inputs=[
                io.Image.Input("images", tooltip="Batches and lists of any sizes; all are taken together."),
                widget(FEATURES),
                io.String.Input("name", default="fid_statistics", optional=True,
                                tooltip="Name of the file; a number is added, and nothing is overwritten."),
            ],
            outputs=[io.String.Output(display_name="file", tooltip="The name to choose in Oracle FID.")],
            is_input_list=True,
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def execute(
        cls, images: Any = (), features: Any = (FEATURES.default,), name: Any = ("fid_statistics",)
    ) -> io.NodeOutput:
        if not re.fullmatch(r"[\w-][\w .-]*", name[0]):
            raise SearchError(f"name: got {name[0]!r}; expected letters, digits, spaces and .-_ alone")
        made = statistics_of_images(list(images), path_of(FEATURES.folders, features[0]))
        path = free_path(Path(folder_paths.get_folder_paths(FEATURES.folders[0])[0]), name[0])
        write_statistics(path, made)
        return io.NodeOutput(path.name, ui={"text": [path.name]})


def statistics_of_images(batches: list[torch.Tensor], file: str) -> Statistics:
    """Statistics of the features, by the network in `file`, of all images in some batches [B, H, W, 3] in 0..1."""
    source = load_features(file)
    held = ManagedVerifier(source)
    rows = []
    for batch in batches:
        for chunk in batch[..., :3].movedim(-1, 1).float().split(CHUNK):
            held.load()
            with torch.no_grad():
                rows.append(source.features(chunk).double().cpu())
    return statistics_of(torch.cat(rows) if rows else torch.zeros(0, 1))


def free_path(folder: Path, name: str) -> Path:
    """A path in `folder` that no file has: `name`.npz, or with the lowest free number from 2 up."""
    path, number = folder / (name + STATISTICS), 1
    while path.exists():
        number += 1
        path = folder / f"{name}_{number}{STATISTICS}"
    return path
