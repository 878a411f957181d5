"""What loading this pack does to ComfyUI: it takes no time, imports nothing heavy, and patches nothing."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pack.tests.host_server import PACK, HostServer

PRELUDE = f"""
import asyncio, importlib, json, sys, time
sys.path.append({str(PACK)!r})
import load_pack
load_pack.import_host()
import comfy.samplers, comfy.sample, comfy.sd, comfy.model_management, comfy.utils, comfy_api.latest
import execution, folder_paths, latent_preview, nodes, server
import comfy_extras.nodes_custom_sampler, comfy_extras.nodes_model_advanced
import comfy_execution.progress, comfy_execution.caching
"""

LOADING = """
before = set(sys.modules)
started = time.process_time()
pack = load_pack.load_pack()
extension = asyncio.run(pack.comfy_entrypoint())
seconds = time.process_time() - started
asyncio.run(extension.on_load())
classes = asyncio.run(extension.get_node_list())
for each in classes:
    each.GET_SCHEMA()
new = {name.split(".")[0] for name in set(sys.modules) - before} - {"pack"} - set(sys.stdlib_module_names)
"""

SNAPSHOT = """
def snapshot():
    seen = {}
    for module_name, module in list(sys.modules.items()):
        root = module_name.split(".")[0]
        ours = ("comfy", "comfy_extras", "comfy_api", "comfy_execution", "execution", "nodes", "server", "app",
                "folder_paths", "latent_preview", "torch")
        if root not in ours or module is None:
            continue
        if root == "torch" and module_name not in ("torch", "torch.nn.functional", "torch.nn.modules.module"):
            continue
        for name, value in list(vars(module).items()):
            if callable(value):
                seen[f"{module_name}.{name}"] = id(value)
            if isinstance(value, type) and value.__module__ == module_name:
                for attribute, member in list(vars(value).items()):
                    if callable(member) or isinstance(member, (classmethod, staticmethod, property)):
                        seen[f"{module_name}.{name}.{attribute}"] = id(member)
    return seen

"""

SEARCH = """
import torch
torch.set_grad_enabled(False)
from pack import search
from pack.nodes.demo_world import load_demo_world
from pack.search.run import run
from pack.verifiers import VERIFIERS
world = load_demo_world()  # a first run, so that what the host itself sets up lazily is set up
judge = VERIFIERS["exact_judge"].load()
def once():
    sampler = world.sampler("a red circle", steps=3)
    run(search.algorithm("random"), sampler, judge, search.Budget(candidates=2), prompt="a red circle",
        candidates=search.Candidates.of_seed(1))
"""


def in_fresh_host(host: Path, code: str) -> dict[str, Any]:
    """Run code in a new process that can import ComfyUI; it prints one line of JSON at its end."""
    environment = {"OMP_NUM_THREADS": "1", **os.environ, "COMFYUI_PATH": str(host)}
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + code], capture_output=True, text=True, env=environment,
        cwd=Path(sys.executable).parent, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_loading_the_pack_takes_no_time_and_imports_nothing_heavy(host: Path) -> None:
    told = in_fresh_host(host, LOADING + 'print(json.dumps({"new": sorted(new), "seconds": [started, seconds]}))')
    host_seconds, seconds = told["seconds"]
    print(f"the pack's import: {seconds:.3f} s of processor time, the host's {host_seconds:.3f} s")
    assert told["new"] == []
    assert seconds < 0.05 * host_seconds  # a share, because a busy machine makes both slower


@pytest.mark.slow
def test_neither_loading_the_pack_nor_a_search_patches_the_host(host: Path) -> None:
    code = (
        SNAPSHOT + "before_loading = snapshot()\n" + LOADING + "after_loading = snapshot()\n" + SEARCH
        + "before_search = snapshot()\nonce()\nafter_search = snapshot()\n"
        + "def changed(one, other): return sorted(k for k in one if other.get(k) != one[k])\n"
        + 'print(json.dumps({"loading": changed(before_loading, after_loading), '
        + '"search": changed(before_search, after_search), "watched": len(before_loading)}))'
    )  # fmt: skip
    told = in_fresh_host(host, code)
    assert int(str(told["watched"])) > 5000
    assert told["loading"] == [] and told["search"] == []


def test_the_log_shows_the_pack_without_an_error(server: HostServer) -> None:
    log = re.sub(r"\x1b\[[0-9;]*m", "", server.log())
    [line] = [line for line in log.splitlines() if re.search(rf"seconds.*: .*{re.escape(PACK.name)}$", line)]
    print(line.strip())
    assert "IMPORT FAILED" not in log
    start = log[: log.index("Import times")]
    assert "Traceback" not in start and "Cannot import" not in start
