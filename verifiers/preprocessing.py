"""What a Hugging Face image processor does to a picture, torch only: resize, cut, mean and standard deviation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..search.errors import SearchError
from .files import read_json
from .images import normalised, square, squashed

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
FILE = "preprocessor_config.json"
_MODES = {2: "bilinear", 3: "bicubic"}  # PIL's numbers; its other filters are seldom used and have no torch twin
_UNKNOWN = ("rescale_offset", "include_top", "do_flip_channel_order", "do_pad", "do_color_quantize")


@dataclass(frozen=True)
class Preprocessing:
    """From pixels of any shape to what a network takes: `size` x `size`, less `mean`, divided by `std`.

    `short` is the short side before the middle is cut out; None squashes the whole picture, whatever that does to its
    proportions.
    """

    size: int
    short: int | None
    mode: str = "bicubic"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def fit(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, H, W] in 0..1 -> [B, 3, size, size] in 0..1."""
        if self.short is None:
            return squashed(pixels, self.size, self.mode)
        edge = (self.short - self.size) // 2
        return square(pixels, self.short, self.mode)[..., edge : edge + self.size, edge : edge + self.size]

    def normalise(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, size, size] in 0..1 -> the numbers that the network was trained on."""
        return normalised(pixels, self.mean, self.std)


def read_preprocessing(folder: Path, default: Preprocessing) -> Preprocessing:
    """What the image processor's file in `folder` says, and `default` for what it leaves out.

    Raises SearchError when it asks for a step that is not done here, or is damaged.
    """
    told = {**read_json(folder / "processor_config.json").get("image_processor", {}), **read_json(folder / FILE)}
    if not told:
        return default
    wanted = [name for name in _UNKNOWN if told.get(name)]
    if wanted:
        raise SearchError(f"file: {FILE} in {folder} asks for {wanted[0]}, which is not done here; use another model")
    made = replace(default, mode=_MODES.get(told.get("resample", -1), default.mode))
    if told.get("do_normalize") is False:
        made = replace(made, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    else:
        mean, std = tuple(told.get("image_mean") or made.mean), tuple(told.get("image_std") or made.std)
        if len(mean) != 3 or len(std) != 3:
            raise SearchError(f"file: {FILE} in {folder} has {len(mean)} channels; expected 3: use a model for RGB")
        made = replace(made, mean=mean, std=std)
    resized = _side(told.get("size"))
    cut = _side(told.get("crop_size")) if told.get("do_center_crop", "crop_size" in told) else None
    if resized is None:
        return made if cut is None else replace(made, size=cut, short=max(cut, made.short or cut))
    if "crop_pct" in told:
        # ConvNeXt's: small sizes are cut out of a larger picture, large ones squashed.
        share = told["crop_pct"] or 0.875
        return replace(made, size=resized, short=int(resized / share) if resized < 384 else None)
    if cut is not None:
        return replace(made, size=cut, short=max(resized, cut))
    keeps = isinstance(told["size"], dict) and "shortest_edge" in told["size"]
    return replace(made, size=resized, short=resized if keeps else None)


def _side(size: Any) -> int | None:
    """The side of a square that a processor's file states in one of the ways that there have been."""
    if isinstance(size, dict):
        sides = {size[name] for name in ("shortest_edge", "height", "width") if isinstance(size.get(name), int)}
        size = next(iter(sides)) if len(sides) == 1 else None
    return size if isinstance(size, int) and size > 0 else None
