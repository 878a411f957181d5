"""Find and open the weight files of verifiers, and say what to do when one is missing or broken."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..search.errors import SearchError


@dataclass(frozen=True)
class Source:
    """Where the official copy of a file is: said to the user who lacks it."""

    file: str
    address: str
    size: str
    licence: str
    put: str  # where the user puts it

    def __str__(self) -> str:
        return f"get {self.file} ({self.size}, licence {self.licence}) from {self.address} and put it into {self.put}"


def weights_at(file: str, source: Source) -> Path:
    """The .safetensors file that `file` names: the file itself, or model.safetensors in a Hugging Face folder.

    Raises SearchError when there is none, or when it is of another kind: other formats may run code when opened.
    """
    if not file:
        raise SearchError(f"file: none is chosen; {source}")
    path = Path(file)
    if path.is_dir():
        path = path / "model.safetensors"
    if path.suffix != ".safetensors":
        raise SearchError(f"file: got {path.name}; expected a .safetensors file, the only kind opened here; {source}")
    if not path.is_file():
        raise SearchError(f"file: {path.name} is not in {path.parent}; {source}")
    return path


def read_tensors(path: Path, source: Source) -> dict[str, Tensor]:
    """All tensors of a .safetensors file, on the CPU. Raises SearchError when it is damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise SearchError(f"file: {path.name} is cut off or is no safetensors file ({error}); {source}") from error
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
