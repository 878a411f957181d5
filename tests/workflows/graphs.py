"""The shipped workflows in API form, and the small changes that tests make to them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pack.tests.host_server import PACK, HostServer

WORKFLOWS = PACK / "workflows"
NAMES = sorted(path.stem for path in (WORKFLOWS / "api").glob("*.json"))
#: Those whose models the user fetches; the others run with what comes with the pack.
REAL = ["flux_dev_30_seconds", "sdxl_30_seconds"]
DEMO = [name for name in NAMES if name not in REAL]
CLOCK = {"seconds"}

Prompt = dict[str, Any]


def shipped(name: str = "first_search") -> Prompt:
    """A fresh copy of one shipped workflow, as `POST /prompt` takes it."""
    return dict(json.loads((WORKFLOWS / "api" / f"{name}.json").read_text(encoding="utf-8")))


def id_of(prompt: Prompt, class_type: str) -> str:
    """The id of the only node of a class."""
    [found] = [key for key, node in prompt.items() if node["class_type"] == class_type]
    return found


def search_id(prompt: Prompt) -> str:
    """The id of the Search Sampler."""
    return id_of(prompt, "NoiseSearchSampler")


def add(prompt: Prompt, class_type: str, /, **inputs: Any) -> str:
    """Add a node and return its id; an input that is a link is [id, slot]."""
    key = str(max(map(int, prompt)) + 1)
    prompt[key] = {"class_type": class_type, "inputs": inputs, "_meta": {"title": class_type}}
    return key


def search_graph(verifier: str = "Exact Judge", save: bool = True, **inputs: Any) -> Prompt:
    """The demo's search without its report nodes: one verifier, few steps, one row at a time unless told otherwise.

    `inputs` go to the Search Sampler. With `save`, the winner's latent is decoded and saved, as stock graphs do.
    """
    prompt = shipped()
    sampler = prompt[search_id(prompt)]["inputs"]
    for name in ("verifier", "held_out", "candidates"):
        sampler.pop(name)
    kept = {"NoiseSearchSampler", "UNETLoader", "VAELoader", "NoiseSearchLoadDemoTextEncoder", "CLIPTextEncode"}
    prompt = {k: n for k, n in prompt.items() if n["class_type"] in kept or n["class_type"].startswith("Empty")}
    sampler |= {"steps": 4, "max_candidates": 4, "batch_size": 1, "top_k": 2}
    demo = {"verifier.file": "noise_search_demo_clip/model.safetensors", "verifier.weight": 2.5, "verifier.prefix": "",
            "verifier.long_prompts": "chunk", "verifier.activation": "auto"}  # fmt: skip
    settings = demo if verifier == "CLIPScore" else {}
    sampler["verifier"] = [add(prompt, "NoiseSearchVerifier", verifier=verifier, **settings), 0]
    sampler |= inputs
    if save:
        save_latent(prompt, [search_id(prompt), 0])
    return prompt


def save_latent(prompt: Prompt, latent: list[Any]) -> str:
    """Decode and save a latent; returns the id of the Save Image node."""
    decoded = add(prompt, "VAEDecode", samples=latent, vae=[id_of(prompt, "VAELoader"), 0])
    return add(prompt, "SaveImage", images=[decoded, 0], filename_prefix="test")


def pictures(server: HostServer, entry: dict[str, Any], node: str) -> list[np.ndarray]:
    """The pixels of the images that an output node of a finished prompt shows."""
    return [
        np.asarray(Image.open(io.BytesIO(server.view(image))).convert("RGB"))
        for image in entry["outputs"][node]["images"]
    ]


def folder_of(server: HostServer, prompt_id: str, node: str) -> Path:
    """Where a search keeps its ledger and its best image."""
    return server.output_dir / "noise_search" / f"{prompt_id}-{node}"


def strict(text: str) -> Any:
    """Parse JSON as a browser does: NaN and Infinity are errors."""

    def refuse(constant: str) -> Any:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def ledger(folder: Path) -> list[dict[str, Any]]:
    """The lines of a ledger: the settings first, then one per evaluation."""
    return [strict(line) for line in (folder / "ledger.jsonl").read_text(encoding="utf-8").splitlines()]


def without_clock(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A ledger without the columns that may differ between two equal searches."""
    return [{key: value for key, value in line.items() if key not in CLOCK} for line in lines]


def report_of(server: HostServer, prompt_id: str, node: str) -> dict[str, Any]:
    """The report that a finished search left beside its ledger."""
    return dict(strict((folder_of(server, prompt_id, node) / "report.json").read_text(encoding="utf-8")))
