"""What a user installs: imports that cost nothing, requirements that change nothing, and folders that keep apart."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pack import run

ROOT = Path(run.__file__).parent
HOST_MODULES = ("comfy", "comfy_api", "comfy_execution", "comfy_extras", "folder_paths", "nodes", "server")
HOST_PACKAGES = {"torch", "torchvision", "torchaudio", "torchsde", "transformers", "safetensors", "kornia", "numpy"}


def tracked_files(suffix: str) -> list[Path]:
    """Return this checkout's own files with this suffix, what run.py makes and hidden folders left out."""
    return [
        path
        for path in sorted(ROOT.rglob(f"*{suffix}"))
        if not any(part.startswith(".") or part in ("__pycache__", "output") for part in path.relative_to(ROOT).parts)
    ]


def in_fresh_python(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a new process that has no host and no pack on its path, from a folder that is not the repository."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "COMFYUI_PATH")}
    prelude = f"import sys\nsys.path.append({str(ROOT)!r})\nimport load_pack\nload_pack.hide_root()\n"
    return subprocess.run(
        [sys.executable, "-c", prelude + code],
        capture_output=True,
        text=True,
        env=environment,
        cwd=Path(sys.executable).parent,
        timeout=300,
        check=False,
    )


def imported_names(path: Path) -> set[str]:
    """Return the first parts of all absolute imports of a file, wherever in it they stand."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found


def test_importing_the_pack_imports_nothing_but_the_standard_library() -> None:
    done = in_fresh_python(
        "before = set(sys.modules)\n"
        "load_pack.load_pack()\n"
        "import json\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before} - {'pack'}\n"
        "print(json.dumps(sorted(new - set(sys.stdlib_module_names))))\n"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []


def test_the_nodes_folder_of_the_pack_does_not_hide_comfyuis_nodes(host: Path) -> None:
    import nodes

    assert Path(nodes.__file__).resolve() == host / "nodes.py"
    assert ROOT.resolve() not in {Path(entry or ".").resolve() for entry in sys.path}


def test_load_pack_runs_a_module_of_the_pack_with_its_arguments() -> None:
    command = [sys.executable, str(ROOT / "load_pack.py"), "pack.tests.host_matrix", "9.9.9"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("hosts: no ComfyUI 9.9.9 here: choose from 0.16.3")


@pytest.mark.parametrize("folder", ["search", "verifiers"])
def test_search_and_verifiers_import_with_comfyui_blocked(folder: str) -> None:
    modules = [
        "pack." + ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted((ROOT / folder).rglob("*.py"))
    ]
    assert f"pack.{folder}" in modules
    done = in_fresh_python(
        "import importlib\n"
        f"sys.modules.update(dict.fromkeys({HOST_MODULES!r}))\n"
        "load_pack.load_pack()\n"
        f"for name in {modules!r}:\n"
        "    importlib.import_module(name)\n"
        "heavy = {'transformers', 'open_clip', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, f'imported before any model is loaded: {heavy}'\n"
    )
    assert done.returncode == 0, done.stderr


def test_only_nodes_tests_and_benchmarks_import_comfyui() -> None:
    allowed = {"nodes", "tests", "benchmarks"}
    offenders = {
        str(path.relative_to(ROOT)): sorted(imported_names(path) & set(HOST_MODULES))
        for path in tracked_files(".py")
        if path.relative_to(ROOT).parts[0] not in allowed and path.name != "load_pack.py"
    }
    assert {path: names for path, names in offenders.items() if names} == {}


def test_run_py_needs_the_standard_library_only() -> None:
    assert imported_names(ROOT / "run.py") <= set(sys.stdlib_module_names)


def test_requirements_are_few_lower_bounds_that_leave_the_hosts_packages_alone() -> None:
    lines = run.requirement_lines(ROOT / "requirements.txt")
    assert lines
    for line in lines:
        assert re.fullmatch(r"[A-Za-z0-9_.-]+>=[0-9.]+", line), f"{line} is not a plain lower bound"
    names = {line.split(">=")[0].lower() for line in lines}
    assert not names & HOST_PACKAGES


def test_requirements_txt_and_pyproject_name_the_same_requirements() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r"^dependencies = \[(.*?)\]", text, re.MULTILINE | re.DOTALL)
    assert found is not None
    assert re.findall(r'"([^"]+)"', found[1]) == run.requirement_lines(ROOT / "requirements.txt")


def test_the_registry_accepts_the_name_and_the_version() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    name = re.search(r'^name = "([^"]+)"', text, re.MULTILINE)
    version = re.search(r'^version = "([^"]+)"', text, re.MULTILINE)
    host = re.search(r'^requires-comfyui = ">=([^"]+)"', text, re.MULTILINE)
    assert name and version and host
    assert re.fullmatch(r"[a-z][a-z0-9._-]{0,98}", name[1]) and "comfyui" not in name[1]
    assert re.fullmatch(r"\d+\.\d+\.\d+", version[1]) and re.fullmatch(r"\d+\.\d+\.\d+", host[1])


def test_the_development_list_is_read_from_pyproject() -> None:
    names = {re.split("[<>=]", line)[0] for line in run.optional_requirements(ROOT / "pyproject.toml", "dev")}
    assert {"mypy", "pytest", "ruff"} <= names


def test_no_file_calls_what_the_registry_forbids() -> None:
    forbidden = {"exec", "eval"}
    for path in tracked_files(".py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        called = {
            node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert not called & forbidden, path


def test_the_licence_is_the_full_apache_text() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text and "END OF TERMS AND CONDITIONS" in text and len(text) > 11000
