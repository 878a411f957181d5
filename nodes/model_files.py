"""The files that a verifier can be loaded from, in ComfyUI's own model folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import folder_paths

from ..search.errors import SearchError
from ..verifiers.files import PICKLES, SAFETENSORS

DEMO_MODELS = Path(__file__).resolve().parents[1] / "demo" / "models"
NONE = "none"


def register_folders() -> None:
    """Tell ComfyUI about models/verifiers, and about the demo world's models, which come with the pack."""
    folder_paths.add_model_folder_path("verifiers", str(Path(folder_paths.models_dir) / "verifiers"))
    for kind in ("diffusion_models", "vae", "verifiers"):
        folder_paths.add_model_folder_path(kind, str(DEMO_MODELS / kind))
    folder_paths.add_model_folder_path("verifiers", str(DEMO_MODELS / "clip"))


def models_in(folders: Sequence[str]) -> dict[str, Path]:
    """Name -> path of the weight files in some of ComfyUI's model folders.

    Names in the first folder are relative to it; those in the others start with the folder's own name.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        prefix = "" if folder == folders[0] else f"{folder}/"
        for root in map(Path, folder_paths.get_folder_paths(folder)):
            files = sorted(root.rglob("*")) if root.is_dir() else []
            for file in (f for f in files if f.suffix in (SAFETENSORS, *PICKLES)):
                found.setdefault(prefix + file.relative_to(root).as_posix(), file)
    return found


def choices(folders: Sequence[str], default: str = "", optional: bool = False) -> list[str]:
    """What a file drop-down shows. The default is there even before the user has the file: choosing it says where
    to get it."""
    models = list(models_in(folders))
    missing = [default] if default and default not in models else []
    return [*([NONE] if optional else []), *models, *missing]


def path_of(folders: Sequence[str], name: str | None) -> str:
    """The path of a choice, "" for none; where a missing file belongs, so that the verifier can say how to get it."""
    if not name or name == NONE:
        return ""
    models, missing = models_in(folders), Path(folder_paths.get_folder_paths(folders[0])[0]) / name
    if name not in models and ".." in missing.parts:
        raise SearchError(f"file: got {name!r}; expected one of {', '.join(models)}")
    return str(models.get(name, missing))
