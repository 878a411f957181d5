"""Import this folder as the package `pack`, whatever the folder itself is called, and ComfyUI from where it lies.

ComfyUI loads a node pack under its full path, and a folder name such as `ComfyUI-NoiseSearch` is no Python name, so
tests, the demo and the benchmarks need one that is. From the shell, `python load_pack.py pack.benchmarks.NAME
[arguments]` runs one module of the pack as a program.
"""

import importlib.util
import os
import runpy
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent


def load_pack() -> ModuleType:
    """Return the package `pack`, loaded from this folder on the first call; what its `__init__.py` raises goes on."""
    if "pack" in sys.modules:
        return sys.modules["pack"]
    spec = importlib.util.spec_from_file_location("pack", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    if spec is None or spec.loader is None:
        raise ImportError(f"{ROOT} cannot be loaded as a package")
    module = importlib.util.module_from_spec(spec)
    sys.modules["pack"] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules["pack"]
        raise
    return module


def hide_root() -> None:
    """Take this folder off sys.path, where Python and pytest put it: our nodes/ would hide ComfyUI's nodes.py."""
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]


def import_host(base: Path | None = None, cpu: bool = True) -> Path:
    """Make the ComfyUI named by the environment variable COMFYUI_PATH importable in this process; return its folder.

    Afterwards `comfy.*`, `comfy_api.*`, `folder_paths` and `nodes` are ComfyUI's. `base` replaces ComfyUI's own folder
    as the home of models, input, output, temp and user; None keeps it. Call this before any import of `comfy`; raises
    FileNotFoundError when COMFYUI_PATH is unset or names no ComfyUI.
    """
    named = os.environ.get("COMFYUI_PATH")
    if not named:
        raise FileNotFoundError("COMFYUI_PATH is not set: set it to a ComfyUI folder, or start through `python run.py`")
    host = Path(named).resolve()
    if not (host / "comfyui_version.py").is_file():
        raise FileNotFoundError(f"COMFYUI_PATH names {host}, which has no comfyui_version.py: it is not a ComfyUI")
    hide_root()
    sys.path[:] = [str(host), *(entry for entry in sys.path if Path(entry or ".").resolve() != host)]
    from comfy.cli_args import args  # ComfyUI reads no command line unless asked to, so these are its defaults

    args.cpu = cpu
    args.database_url = "sqlite:///:memory:"
    if base is not None:
        args.base_directory = str(base)
    # ComfyUI's nodes.py may put comfy/ first on sys.path, where utils.py would be taken for this package.
    importlib.import_module("utils")
    return host


def main() -> None:
    """Run the module named on the command line as `__main__`, with the arguments that follow its name."""
    if len(sys.argv) < 2:
        raise SystemExit("usage: python load_pack.py pack.benchmarks.NAME [arguments]")
    hide_root()
    load_pack()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
