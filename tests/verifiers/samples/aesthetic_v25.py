"""Aesthetic Predictor V2.5 with random weights: the head's file is a pickle of tensors by name."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pack.tests.verifiers.samples import towers


def head(width: int = 64) -> "OrderedDict[str, Tensor]":
    """The five layers of a head, with their real widths but the first."""
    generator = torch.Generator().manual_seed(61)
    widths, made = (width, 1024, 128, 64, 16, 1), OrderedDict()
    for number, ins, outs in zip((0, 2, 4, 6, 8), widths[:-1], widths[1:], strict=True):
        made[f"scoring_head.{number}.weight"] = torch.randn(outs, ins, generator=generator) / ins**0.5
        made[f"scoring_head.{number}.bias"] = torch.randn(outs, generator=generator) * 0.1
    return made


def settings(folder: Path) -> dict[str, Any]:
    towers.siglip(folder)
    torch.save(head(), folder / "aesthetic_predictor_v2_5.pth")
    return {"file": str(folder / "model.safetensors"), "head": str(folder / "aesthetic_predictor_v2_5.pth")}
