"""The files that a verifier can be loaded from, in ComfyUI's own model folders."""

from __future__ import annotations

from pathlib import Path

import folder_paths

from ..search.errors import SearchError

DEMO_MODELS = Path(__file__).resolve().parents[1] / "demo" / "models"
NONE_FOUND = "none found"


def register_folders() -> None:
    """Tell ComfyUI about models/verifiers, and about the demo world's models, which come with the pack."""
    folder_paths.add_model_folder_path("verifiers", str(Path(folder_paths.models_dir) / "verifiers"))
    for kind in ("diffusion_models", "vae", "verifiers"):
        folder_paths.add_model_folder_path(kind, str(DEMO_MODELS / kind))
    folder_paths.add_model_folder_path("verifiers", str(DEMO_MODELS / "clip"))


def models_in(folder: str) -> dict[str, Path]:
    """Name -> path of the .safetensors files in one of ComfyUI's model folders."""
    found: dict[str, Path] = {}
    for root in map(Path, folder_paths.get_folder_paths(folder)):
        for file in sorted(root.rglob("*.safetensors")) if root.is_dir() else []:
            found.setdefault(file.relative_to(root).as_posix(), file)
    return found


def choices(folder: str) -> list[str]:
    """What a file drop-down shows."""
    return list(models_in(folder)) or [NONE_FOUND]


def path_of(folder: str, name: str | None) -> str:
    """The path of a choice. Raises SearchError that says where to put a missing file."""
    models = models_in(folder)
    if name not in models:
        where = Path(folder_paths.get_folder_paths(folder)[0])
        raise SearchError(
            f"file: got {name!r}; expected one of {', '.join(models) or 'none'}: put the model into {where} "
            "and reload the page"
        )
    return str(models[name])
