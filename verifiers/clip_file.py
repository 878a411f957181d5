"""Read a CLIP from a folder or from one or two weight files, without the transformers library.

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
from .clip_names import hugging_face_names
from .clip_network import ACTIVATIONS, CLIPNetwork, Sizes, Tower
from .files import Download, Source, read_json, read_tensors, weights_at
from .fill import filled

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


def _openai(name: str, weights: str, size: str) -> Source:
    files = (weights, "config.json", "preprocessor_config.json", "vocab.json", "merges.txt")
    at = f"https://huggingface.co/openai/{name}"
    return Source(
        file=f"{weights} with config.json, preprocessor_config.json, vocab.json and merges.txt",
        address=at,
        size=size,
        licence="MIT",
        put=f"ComfyUI's models/verifiers/{name}",
        downloads=tuple(Download(f"{at}/resolve/main/{file}", f"{name}/{file}") for file in files),
    )


# The official repository of the small one has no safetensors.
SOURCE = _openai("clip-vit-base-patch32", "pytorch_model.bin", "605 MB")
LARGE = _openai("clip-vit-large-patch14", "model.safetensors", "1.71 GB")
_NEEDS = (
    "a CLIP needs an image tower, a text tower and both their projections, under the names of Hugging Face's "
    "CLIPModel or of OpenCLIP"
)
_LAYER = "encoder.layers."


@dataclass(frozen=True)
class CLIPFile:
    """A network in float32 on the CPU, and what goes with it.

    `text_folder` is where the text tower lies, maybe with a tokenizer. `logit_scale` is the logarithm of what
    multiplies cosines, None for a file without one.
    """

    network: CLIPNetwork
    mean: tuple[float, ...]
    std: tuple[float, ...]
    text_folder: Path
    logit_scale: float | None = None
    notes: list[str] = field(default_factory=list)


def read_clip(
    file: str, activation: str = "auto", *, text_file: str = "", texts: bool = True, source: Source = SOURCE
) -> CLIPFile:
    """Load the CLIP that `file` names: a folder, or a weights file with or without its JSON files beside it.

    A file with an image tower alone, as ComfyUI has them under clip_vision, gets its text tower from `text_file`. With
    `texts` false no text tower is read or needed. `activation` overrides what the JSON file says or the size suggests.
    Raises SearchError, naming the file and `source`, when a file is missing, damaged, or anything but a CLIP.
    """
    path = weights_at(file, source)
    # Tensors made inside ComfyUI's inference mode could never take part in a gradient.
    with torch.inference_mode(False):
        image = _Part(path, hugging_face_names(read_tensors(path, source)), source)
        text = image
        if not texts:
            image.keep("vision_model.", "visual_projection.")
        elif text_file:
            text = _text_part(image, text_file)
        elif not image.has("text_model.") and image.has("vision_model."):
            raise SearchError(
                f"file: {path.name} has an image tower alone; choose the text tower that belongs to it in text_file, "
                f"or a file with both; {source}"
            )
        scale = text.tensors.pop("logit_scale", image.tensors.pop("logit_scale", None))
        tensors = {**image.tensors, **text.tensors} if texts else image.tensors
        sizes = _sizes(image, text if texts else None, activation)
        with torch.device("meta"):
            network = CLIPNetwork(sizes)
        filled(network, tensors, path, "CLIP", source, f"; {_NEEDS}")
    notes = _notes(image, text, sizes)
    mean, std = _statistics(path.parent)
    return CLIPFile(network, mean, std, text.path.parent, None if scale is None else float(scale), notes)


class _Part:
    """The tensors of one file under Hugging Face's names, and what the JSON file beside them tells."""

    def __init__(self, path: Path, tensors: dict[str, Tensor], source: Source) -> None:
        self.path, self.tensors, self.source = path, tensors, source
        self.config = read_json(path.parent / "config.json")
        if not any(_told(self.config, kind) for kind in ("text", "vision")):
            self.config = _from_open_clip(read_json(path.parent / "open_clip_config.json").get("model_cfg", {}))

    def keep(self, *prefixes: str) -> None:
        """Forget all tensors but those whose names start so, and logit_scale."""
        self.tensors = {k: v for k, v in self.tensors.items() if k.startswith((*prefixes, "logit_scale"))}

    def has(self, prefix: str) -> bool:
        return any(name.startswith(prefix) for name in self.tensors)

    def shape(self, name: str, rank: int) -> tuple[int, ...]:
        if name not in self.tensors or self.tensors[name].ndim != rank:
            raise SearchError(f"file: {self.path.name} has no usable {name}; {_NEEDS}; {self.source}")
        return tuple(self.tensors[name].shape)

    def tower(self, kind: str, width: int, vision_width: int, activation: str) -> Tower:
        """The sizes of its text or vision tower, whose tokens or patches are `width` numbers each."""
        prefix, name = f"{kind}_model.{_LAYER}", self.path.name
        mlp, _ = self.shape(f"{prefix}0.mlp.fc1.weight", 2)
        layers = len({key[len(prefix) :].split(".")[0] for key in self.tensors if key.startswith(prefix)})
        # Heads have 64 numbers in every published text tower; image towers from L/14 on keep 16 heads as they widen.
        heads = 16 if kind == "vision" and width >= 1024 else max(1, width // 64)
        # OpenAI's weights stop at L/14; what is wider is LAION's, made with the exact GELU.
        function = "gelu" if vision_width >= 1280 else "quick_gelu"
        epsilon = 1e-5
        if told := _told(self.config, kind):
            # What a file leaves out is the library's default.
            expected = told.get("hidden_size", 512 if kind == "text" else 768)
            if expected != width:
                raise SearchError(
                    f"file: the JSON file beside {name} describes a {kind} tower of width {expected}, the tensors have "
                    f"{width}; give {name} a folder of its own"
                )
            heads = told.get("num_attention_heads", 8 if kind == "text" else 12)
            function = told.get("hidden_act", "quick_gelu")
            epsilon = told.get("layer_norm_eps", 1e-5)
        if activation != "auto":
            function = activation
        if function not in ACTIVATIONS:
            raise SearchError(f"activation: got {function!r} for {name}; expected one of {', '.join(ACTIVATIONS)}")
        if width % heads:
            raise SearchError(f"file: {name} has a {kind} tower of width {width}, not divisible by {heads} heads")
        return Tower(width, layers, heads, mlp, function, epsilon)


def _text_part(image: _Part, text_file: str) -> _Part:
    path = weights_at(text_file, image.source)
    if image.has("text_model."):
        raise SearchError(
            f"text_file: got {path.name}, but {image.path.name} has a text tower itself; choose none in text_file"
        )
    text = _Part(path, hugging_face_names(read_tensors(path, image.source)), image.source)
    text.keep("text_model.", "text_projection.")
    here, there = image.shape("visual_projection.weight", 2)[0], text.shape("text_projection.weight", 2)[0]
    if here != there:
        raise SearchError(
            f"text_file: {path.name} has embeddings of {there} numbers, {image.path.name} of {here}: they belong to "
            "different CLIPs; choose two that were trained together"
        )
    return text


def _told(config: dict[str, Any], kind: str) -> dict[str, Any]:
    """What a config.json of the transformers library says of one tower; empty when it says nothing."""
    if config.get("model_type") == f"clip_{kind}_model":
        return config  # a file of one tower alone
    # Old files hold a second copy under *_config_dict, which wins.
    return {**(config.get(f"{kind}_config") or {}), **(config.get(f"{kind}_config_dict") or {})}


def _from_open_clip(told: dict[str, Any]) -> dict[str, Any]:
    """The same of OpenCLIP's JSON file. Towers from other libraries are for the OpenCLIP verifier."""
    vision, text = told.get("vision_cfg", {}), told.get("text_cfg", {})
    if not {"width", "layers"} <= vision.keys() or not {"width", "heads"} <= text.keys():
        return {}
    activation = "quick_gelu" if told.get("quick_gelu") else "gelu"
    return {
        "vision_config": {
            "hidden_size": vision["width"], "num_attention_heads": vision["width"] // vision.get("head_width", 64),
            "hidden_act": activation,
        },
        "text_config": {
            "hidden_size": text["width"], "num_attention_heads": text["heads"], "hidden_act": activation
        },
    }  # fmt: skip


def _sizes(image: _Part, text: _Part | None, activation: str) -> Sizes:
    embedding, _ = image.shape("visual_projection.weight", 2)
    tokens = context = text_width = 0
    if text is not None:
        text.shape("text_projection.weight", 2)
        tokens, text_width = text.shape("text_model.embeddings.token_embedding.weight", 2)
        context, _ = text.shape("text_model.embeddings.position_embedding.weight", 2)
    width, _, patch, _ = image.shape("vision_model.embeddings.patch_embedding.weight", 4)
    positions, _ = image.shape("vision_model.embeddings.position_embedding.weight", 2)
    return Sizes(
        text=None if text is None else text.tower("text", text_width, width, activation),
        vision=image.tower("vision", width, width, activation),
        tokens=tokens,
        context=context,
        patch=patch,
        grid=isqrt(positions - 1),
        embedding=embedding,
    )


def _notes(image: _Part, text: _Part, sizes: Sizes) -> list[str]:
    """What was guessed about a CLIP and could be wrong."""
    notes = []
    if not image.config:
        words = f" and {sizes.text.heads} for text" if sizes.text else ""
        notes.append(
            f"{image.path.name} has no config.json beside it: it was read with {sizes.vision.activation}, "
            f"{sizes.vision.heads} heads for images{words}, as published models of its size"
        )
    if text is not image:
        notes.append(
            f"the images are read by {image.path.name} and the prompts by {text.path.name}: scores mean something only "
            "if these two towers were trained together"
        )
    return notes


def _statistics(folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, from the folder's image processor or OpenAI's."""
    told = read_json(folder / "open_clip_config.json").get("preprocess_cfg", {})
    told = {"image_mean": told.get("mean", OPENAI_MEAN), "image_std": told.get("std", OPENAI_STD)}
    told |= read_json(folder / "processor_config.json").get("image_processor", {})
    told |= read_json(folder / "preprocessor_config.json")
    return tuple(told["image_mean"]), tuple(told["image_std"])
