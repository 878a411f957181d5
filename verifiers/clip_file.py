"""Read a CLIP from a Hugging Face folder or from one .safetensors file, without the transformers library.

All sizes come from the tensors. What tensors cannot say (heads, activation, image statistics) comes from the JSON
files beside them, and, for a file that lies alone, from what the published models of that size have.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..search.errors import SearchError
from .clip_network import ACTIVATIONS, CLIPNetwork, Sizes, Tower
from .files import Source, read_json, read_tensors, weights_at

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
SOURCE = Source(
    file="model.safetensors with config.json, preprocessor_config.json, vocab.json and merges.txt",
    address="https://huggingface.co/openai/clip-vit-base-patch32",
    size="605 MB",
    licence="MIT",
    put="ComfyUI's models/verifiers/clip-vit-base-patch32",
)
_NEEDS = "CLIPScore needs both towers and both projections under the names of Hugging Face's CLIPModel"
_LAYER = "encoder.layers."


@dataclass(frozen=True)
class CLIPFile:
    """A network in float32 on the CPU, and what goes with it. `folder` holds the JSON files and maybe a tokenizer."""

    network: CLIPNetwork
    mean: tuple[float, ...]
    std: tuple[float, ...]
    folder: Path
    notes: list[str] = field(default_factory=list)


def read_clip(file: str, activation: str = "auto") -> CLIPFile:
    """Load the CLIP that `file` names: a folder, or a .safetensors file with or without its JSON files beside it.

    `activation` overrides what the JSON file says or the size suggests. Raises SearchError, naming the file, when it
    is missing, damaged, or anything but a whole CLIP in Hugging Face's naming.
    """
    path = weights_at(file, SOURCE)
    # Tensors made inside ComfyUI's inference mode could never take part in a gradient.
    with torch.inference_mode(False):
        tensors = read_tensors(path, SOURCE)
        # Temperature is no part of a cosine, and positions are counted by the network itself.
        tensors = {k: v for k, v in tensors.items() if k != "logit_scale" and not k.endswith(".position_ids")}
        config = read_json(path.parent / "config.json")
        sizes = _sizes(path, tensors, config, activation)
        with torch.device("meta"):
            network = CLIPNetwork(sizes)
        _refuse_other_tensors(path, network, tensors)
        network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
    network.eval().requires_grad_(False)
    notes = []
    if not config:
        notes.append(
            f"{path.name} has no config.json beside it: it was read with {sizes.vision.activation}, "
            f"{sizes.vision.heads} heads for images and {sizes.text.heads} for text, as published models of its size"
        )
    mean, std = _statistics(path.parent)
    return CLIPFile(network, mean, std, path.parent, notes)


def _sizes(path: Path, tensors: dict[str, Tensor], config: dict[str, Any], activation: str) -> Sizes:
    def shape(name: str, rank: int) -> tuple[int, ...]:
        if "visual.conv1.weight" in tensors:
            raise SearchError(f"file: {path.name} has OpenCLIP's names; {_NEEDS}; {SOURCE}")
        if name not in tensors or tensors[name].ndim != rank:
            raise SearchError(f"file: {path.name} has no usable {name}; {_NEEDS}; {SOURCE}")
        return tuple(tensors[name].shape)

    embedding, _ = shape("visual_projection.weight", 2)
    shape("text_projection.weight", 2)
    tokens, text_width = shape("text_model.embeddings.token_embedding.weight", 2)
    context, _ = shape("text_model.embeddings.position_embedding.weight", 2)
    vision_width, _, patch, _ = shape("vision_model.embeddings.patch_embedding.weight", 4)
    positions, _ = shape("vision_model.embeddings.position_embedding.weight", 2)
    text_mlp, _ = shape(f"text_model.{_LAYER}0.mlp.fc1.weight", 2)
    vision_mlp, _ = shape(f"vision_model.{_LAYER}0.mlp.fc1.weight", 2)
    return Sizes(
        text=_tower(path, tensors, config, activation, "text", text_width, text_mlp, vision_width),
        vision=_tower(path, tensors, config, activation, "vision", vision_width, vision_mlp, vision_width),
        tokens=tokens,
        context=context,
        patch=patch,
        grid=isqrt(positions - 1),
        embedding=embedding,
    )


def _tower(
    path: Path,
    tensors: dict[str, Tensor],
    config: dict[str, Any],
    activation: str,
    kind: str,
    width: int,
    mlp: int,
    vision_width: int,
) -> Tower:
    prefix = f"{kind}_model.{_LAYER}"
    layers = len({name[len(prefix) :].split(".")[0] for name in tensors if name.startswith(prefix)})
    # Heads have 64 numbers in every published text tower; image towers from L/14 on keep 16 heads as they grow wider.
    heads = 16 if kind == "vision" and width >= 1024 else max(1, width // 64)
    # OpenAI's weights stop at L/14; what is wider is LAION's, made with the exact GELU.
    function = "gelu" if vision_width >= 1280 else "quick_gelu"
    epsilon = 1e-5
    if config:
        # Old files hold a second copy under *_config_dict, which wins; what a file leaves out is the library's default.
        told = {**(config.get(f"{kind}_config") or {}), **(config.get(f"{kind}_config_dict") or {})}
        expected = told.get("hidden_size", 512 if kind == "text" else 768)
        if expected != width:
            raise SearchError(
                f"file: config.json beside {path.name} describes a {kind} tower of width {expected}, the tensors have "
                f"{width}; give {path.name} a folder of its own"
            )
        heads = told.get("num_attention_heads", 8 if kind == "text" else 12)
        function = told.get("hidden_act", "quick_gelu")
        epsilon = told.get("layer_norm_eps", 1e-5)
    if activation != "auto":
        function = activation
    if function not in ACTIVATIONS:
        raise SearchError(f"activation: got {function!r} for {path.name}; expected one of {', '.join(ACTIVATIONS)}")
    if width % heads:
        raise SearchError(f"file: {path.name} has a {kind} tower of width {width}, not divisible by {heads} heads")
    return Tower(width, layers, heads, mlp, function, epsilon)


def _refuse_other_tensors(path: Path, network: CLIPNetwork, tensors: dict[str, Tensor]) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    got = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    wrong = sorted(name for name in expected.keys() | got.keys() if expected.get(name) != got.get(name))
    if wrong:
        first = wrong[0]
        raise SearchError(
            f"file: {path.name} is no CLIP: {len(wrong)} of its tensors do not fit, first {first}: got "
            f"{got.get(first, 'nothing')}; expected {expected.get(first, 'nothing')}; {_NEEDS}; {SOURCE}"
        )


def _statistics(folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, from the folder's image processor or OpenAI's."""
    told = read_json(folder / "processor_config.json").get("image_processor", {})
    told = {**told, **read_json(folder / "preprocessor_config.json")}
    return tuple(told.get("image_mean", OPENAI_MEAN)), tuple(told.get("image_std", OPENAI_STD))
