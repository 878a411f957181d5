"""Find and open the weight files of verifiers, and say what to do when one is missing or broken."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from ..search.errors import SearchError

SAFETENSORS = ".safetensors"
PICKLES = (".pt", ".pth", ".bin")


@dataclass(frozen=True)
class Download:
    """One file on the internet and where it goes, below ComfyUI's models/verifiers; its SHA-256 where it is known."""

    address: str
    path: str
    sha256: str = ""


@dataclass(frozen=True)
class Source:
    """Where the official copy of a file is: said to the user who lacks it."""

    file: str
    address: str
    size: str
    licence: str
    put: str  # where the user puts it
    downloads: tuple[Download, ...] = ()  # what the download node fetches when it is asked to

    def __str__(self) -> str:
        return f"get {self.file} ({self.size}, licence {self.licence}) from {self.address} and put it into {self.put}"


def weights_at(file: str, source: Source) -> Path:
    """The weights that `file` names: the file itself, or model.safetensors (else another kind) in a folder.

    Raises SearchError when there is none, or when it is of a kind that is not opened here.
    """
    if not file:
        raise SearchError(f"file: none is chosen; {source}")
    path = Path(file)
    if path.is_dir():
        there = [path / name for name in ("model.safetensors", "pytorch_model.bin") if (path / name).is_file()]
        path = there[0] if there else path / "model.safetensors"
    if path.suffix not in (SAFETENSORS, *PICKLES):
        raise SearchError(
            f"file: got {path.name}; expected {SAFETENSORS}, or one of {', '.join(PICKLES)} with nothing but tensors "
            f"in it; {source}"
        )
    if not path.is_file():
        raise SearchError(f"file: {path.name} is not in {path.parent}; {source}")
    return path


def read_tensors(path: Path, source: Source) -> dict[str, Tensor]:
    """All tensors of a weights file by name, on the CPU. Raises SearchError when it is damaged or holds other things.

    A .pt, .pth or .bin file is a pickle, which could run code: it is opened with torch's weights_only=True, which
    refuses everything but tensors and plain containers. Tensors one level down, under "state_dict" or "model", are
    found too.
    """
    return _read_safetensors(path, source) if path.suffix == SAFETENSORS else _read_pickle(path, source)


def _read_safetensors(path: Path, source: Source) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise SearchError(f"file: {path.name} is cut off or is no safetensors file ({error}); {source}") from error
    return tensors


def _read_pickle(path: Path, source: Source) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise SearchError(
            f"file: {path.name} holds more than tensors, and opening it could run code: it was not opened; {source}"
        ) from error
    except (RuntimeError, EOFError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SearchError(f"file: {path.name} is cut off or is no torch file ({reason}); {source}") from error
    for inner in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(inner), dict):
            content = content[inner]
    tensors = {k: v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, dict) else {}
    if not tensors:
        raise SearchError(f"file: {path.name} holds no tensors by name; {source}")
    return tensors


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty when there is no such file. Raises SearchError when it holds anything else."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SearchError(f"file: {path} is not JSON ({error}); download it again") from error
    if not isinstance(content, dict):
        raise SearchError(f"file: {path} holds a {type(content).__name__}; expected a JSON object; download it again")
    return content
