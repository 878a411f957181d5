"""The files that a verifier can be loaded from, in ComfyUI's own model folders."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PureWindowsPath

import folder_paths

from ..search.errors import SearchError
from ..verifiers.files import PICKLES, SAFETENSORS

DEMO_MODELS = Path(__file__).resolve().parents[1] / "demo" / "models"
NONE = "none"
WEIGHTS = (SAFETENSORS, *PICKLES)
#: Pieces of a model, and what a training leaves beside one.
_PIECE = re.compile(
    r"(.*-\d{5}-of-\d{5}|(optimizer|scheduler|scaler|rng_state|random_states|training_args)[\w-]*)\.\w+", re.IGNORECASE
)


def register_folders() -> None:
    """Tell ComfyUI about models/verifiers, and about the demo world's models, which come with the pack."""
    folder_paths.add_model_folder_path("verifiers", str(Path(folder_paths.models_dir) / "verifiers"))
    for kind in ("diffusion_models", "vae", "verifiers"):
        folder_paths.add_model_folder_path(kind, str(DEMO_MODELS / kind))
    folder_paths.add_model_folder_path("verifiers", str(DEMO_MODELS / "clip"))


def models_in(folders: Sequence[str], suffixes: Sequence[str] = WEIGHTS) -> list[str]:
    """The names of all files of some kinds in some of ComfyUI's model folders, as ComfyUI finds and remembers them.

    Names in the first folder are relative to it; those in the others start with the folder's own name. They have
    forward slashes on every system, so that a workflow runs on another one.
    """
    names = [
        _prefix(folder, folders) + Path(name).as_posix()
        for folder in folders
        for name in folder_paths.get_filename_list(folder)
        if Path(name).suffix.lower() in suffixes
    ]
    return list(dict.fromkeys(names))


def _prefix(folder: str, folders: Sequence[str]) -> str:
    return "" if folder == folders[0] else f"{folder}/"


def choices(folders: Sequence[str], default: str = "", optional: bool = False) -> list[str]:
    """What a file drop-down shows: files of the default's kind, each model once, and no pieces.

    The default is there even before the user has the file: choosing it says where to get it.
    """
    suffix = Path(default).suffix
    names = models_in(folders, WEIGHTS if suffix in ("", *WEIGHTS) else (suffix,))
    safe = {_stem(name) for name in names if name.endswith(SAFETENSORS)}
    models = [name for name in names if not _hidden(name) and (name.endswith(SAFETENSORS) or _stem(name) not in safe)]
    missing = [default] if default and default not in models else []
    return [*([NONE] if optional else []), *models, *missing]


def _stem(name: str) -> str:
    """What the two formats of one model have in common: Hugging Face's pytorch_model.bin is model.safetensors too."""
    return name.rsplit(".", 1)[0].replace("pytorch_", "")


def _hidden(name: str) -> bool:
    *parents, file = name.split("/")
    return bool(_PIECE.fullmatch(file)) or any(part.startswith(".") for part in (*parents, file))


def path_of(folders: Sequence[str], name: str | None) -> str:
    """The path of a choice, "" for none; where a missing file belongs, so that the verifier can say how to get it."""
    if not name or name == NONE:
        return ""
    parts = PureWindowsPath(name)  # which knows every kind of separator, and drives
    if parts.anchor or ".." in parts.parts:
        raise SearchError(f"file: got {name!r}; expected one of {', '.join(models_in(folders))}")
    for folder in folders:
        prefix = _prefix(folder, folders)
        found = folder_paths.get_full_path(folder, name.removeprefix(prefix)) if name.startswith(prefix) else None
        if found:
            return str(found)
    return str(Path(folder_paths.get_folder_paths(folders[0])[0]) / name)
