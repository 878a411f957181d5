"""Any architecture of open_clip (LAION, DFN, MetaCLIP, SigLIP, ...) from a file on disk; nothing is fetched."""

from __future__ import annotations

from copy import deepcopy
from difflib import get_close_matches
from functools import partial
from math import exp
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..search.errors import SearchError
from .cosine_verifier import CosineVerifier
from .dual_tower import DualTower, Geometry
from .files import Download, Source, read_json, read_tensors, weights_at
from .images import letterbox, normalised, square, squashed
from .kinds import Setting, VerifierKind
from .notes import note, short
from .pretrained import Held

MEASURES = ("cosine", "logit")
_GEOMETRIES = {"shortest": square, "longest": letterbox, "squash": squashed}
_CONFIG = "open_clip_config.json"


def _source(repository: str, size: str, licence: str, *more: str) -> Source:
    folder, at = repository.split("/")[1], f"https://huggingface.co/{repository}"
    files = ("open_clip_model.safetensors", _CONFIG, *more)
    return Source(
        file=", ".join(files),
        address=at,
        size=size,
        licence=licence,
        put=f"ComfyUI's models/verifiers/{folder}",
        downloads=tuple(Download(f"{at}/resolve/main/{file}", f"{folder}/{file}") for file in files),
    )


SOURCE = _source("laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "605 MB", "MIT")
SIGLIP = _source("timm/ViT-B-16-SigLIP", "813 MB", "Apache-2.0", "tokenizer.json", "tokenizer_config.json")


class OpenCLIPImages:
    """The image tower of an open_clip model, as `ports.ImageTower`."""

    def __init__(self, held: Held, name: str, told: dict[str, Any]) -> None:
        self.name, self.family = name, "siglip" if "siglip" in name.lower() else "clip"
        sides = told["size"] if isinstance(told["size"], tuple | list) else (told["size"],)
        if len(set(sides)) != 1:
            raise SearchError(f"architecture: {name} takes images of {tuple(sides)}; expected squares")
        self.size = int(sides[0])
        self._held, self._mean, self._std = held, tuple(told["mean"]), tuple(told["std"])

    def embed(self, pixels: Tensor) -> Tensor:
        """See ports.ImageTower."""
        model: Any = self._held.model
        out: Tensor = model.encode_image(self._held.here(normalised(pixels, self._mean, self._std)))
        return out.float()


class OpenCLIPTexts:
    """The text tower of an open_clip model with its tokenizer, as `ports.TextTower`. Long texts are cut off."""

    def __init__(self, held: Held, name: str, tokenizer: Any, width: int) -> None:
        self.name, self.width = name, width
        self.notes: list[str] = []
        self._held, self._tokenizer = held, tokenizer

    def embed(self, text: str, long_prompts: str = "truncate") -> Tensor:
        """See ports.TextTower."""
        model: Any = self._held.model
        ids = self._tokenizer([text])
        if (length := self._length(text)) > ids.shape[1]:
            read = f"{self.name} read only {ids.shape[1]} of the {length} tokens of {short(text)}"
            note(self.notes, read, about=text)
        out: Tensor = model.encode_text(self._held.here(ids))
        return out[0].float()

    def _length(self, text: str) -> int:
        """The number of tokens, with those for start and end."""
        if hasattr(self._tokenizer, "encode"):
            return len(self._tokenizer.encode(text)) + 2
        return len(self._tokenizer.tokenizer(self._tokenizer.clean_fn(text))["input_ids"])


def load_open_clip(file: str, architecture: str = "", tag: str = "", measure: str = MEASURES[0]) -> CosineVerifier:
    """The model of `file`, as open_clip builds it: its plain cosine, or the logit exp(scale) * cosine + bias.

    `architecture` is one of open_clip.list_models(), or empty where open_clip_config.json lies beside the file. `tag`
    names the published weights, such as laion2b_s34b_b79k, and with them how images are prepared. Tokenizers of other
    libraries are read from the file's folder. Raises SearchError when something is missing or does not fit.
    """
    if measure not in MEASURES:
        raise SearchError(f"measure: got {measure!r}; expected one of {', '.join(MEASURES)}")
    path = weights_at(file, SOURCE)
    beside = read_json(path.parent / _CONFIG)
    config = _architecture(path, architecture, beside)
    name = architecture or path.parent.name
    tokenizer = _tokenizer(path, config["text_cfg"], name)
    with torch.inference_mode(False):
        model = _model(path, config)
    held = Held(model).eval().requires_grad_(False)
    told, notes = _preprocessing(architecture, tag, beside)
    told["size"] = model.visual.image_size
    mode = told["interpolation"] if told["interpolation"] in ("bicubic", "bilinear") else "bicubic"
    geometry: Geometry = partial(_GEOMETRIES[told["resize_mode"]], mode=mode)
    texts = OpenCLIPTexts(held, name, tokenizer, config["embed_dim"])
    towers = DualTower(OpenCLIPImages(held, name, told), texts, held, geometry, notes=notes)
    times = exp(float(model.logit_scale)) if measure == "logit" else 1.0
    bias = float(model.logit_bias) if measure == "logit" and model.logit_bias is not None else 0.0
    return CosineVerifier("OpenCLIP", towers, times, bias)


def _architecture(path: Path, name: str, beside: dict[str, Any]) -> dict[str, Any]:
    """The sizes of the model, by name or from the JSON file beside the weights."""
    import open_clip

    if name:
        known = open_clip.list_models()
        if name not in known:
            near = get_close_matches(name, known, cutoff=0.3) or known
            raise SearchError(f"architecture: got {name!r}, which open_clip lacks; expected {' or '.join(near[:3])}")
        config = open_clip.get_model_config(name)
    elif "model_cfg" in beside:
        config = deepcopy(beside["model_cfg"])
    else:
        raise SearchError(
            f"architecture: got nothing, and there is no {_CONFIG} beside {path.name}; write the model's name, such as "
            f"ViT-B-32, or get that file too; {SOURCE}"
        )
    if not {"embed_dim", "vision_cfg", "text_cfg"} <= config.keys():
        raise SearchError(f"file: {_CONFIG} beside {path.name} describes no model; download it again")
    if "hf_model_name" in config["text_cfg"]:
        raise SearchError(
            f"architecture: {name or path.parent.name} has a text tower of the transformers library, which open_clip "
            "would download; choose an architecture with a text tower of its own"
        )
    config["vision_cfg"].pop("timm_model_pretrained", None)
    return dict(config)


def _model(path: Path, config: dict[str, Any]) -> Any:
    """The model in float32 on the CPU with the weights of `path`. Raises SearchError when they do not fit."""
    import open_clip
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict

    custom = config.pop("custom_text", False)
    kind = open_clip.CoCa if "multimodal_cfg" in config else open_clip.CustomTextCLIP if custom else open_clip.CLIP
    model = kind(**config)
    tensors = {k.removeprefix("module."): v for k, v in read_tensors(path, SOURCE).items()}
    tensors = {k: v.float() for k, v in tensors.items() if not k.endswith((".position_ids", "attn_mask"))}
    tensors = convert_state_dict(model, tensors)
    if "positional_embedding" in tensors and not hasattr(model, "positional_embedding"):
        tensors = convert_to_custom_text_state_dict(tensors)
    expected = model.state_dict()
    for name in ("logit_scale", "logit_bias"):
        if name in tensors and name in expected:
            tensors[name] = tensors[name].reshape(expected[name].shape)
    wrong = sorted(
        name
        for name in expected.keys() | tensors.keys()
        if name not in expected or name not in tensors or expected[name].shape != tensors[name].shape
    )
    if wrong:
        first = wrong[0]
        got, right = (tuple(t[first].shape) if first in t else "nothing" for t in (tensors, expected))
        raise SearchError(
            f"file: {path.name} is no model of that architecture: {len(wrong)} of its tensors do not fit, first "
            f"{first}: got {got}; expected {right}; choose the architecture that the file was made with"
        )
    model.load_state_dict(tensors)
    return model


def _tokenizer(path: Path, text: dict[str, Any], name: str) -> Any:
    """What turns texts into ids [B, T]; never from the network."""
    from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

    settings = {"context_length": text.get("context_length", 77), **text.get("tokenizer_kwargs", {})}
    if not text.get("hf_tokenizer_name"):
        return SimpleTokenizer(**settings)
    names = ("tokenizer.json", "spiece.model", "vocab.txt")
    if not any((path.parent / name).is_file() for name in names):
        raise SearchError(
            f"file: {name} has a tokenizer of its own, and none of {', '.join(names)} is in {path.parent}; download "
            f"tokenizer.json and tokenizer_config.json from https://huggingface.co/{text['hf_tokenizer_name']} into it"
        )
    settings["tokenizer_mode"] = text.get("tokenizer_mode")
    tokenizer = HFTokenizer(str(path.parent), **settings, local_files_only=True)
    if len(tokenizer.tokenizer) > text["vocab_size"]:
        raise SearchError(
            f"file: the tokenizer in {path.parent} has {len(tokenizer.tokenizer)} tokens, {name} knows "
            f"{text['vocab_size']}; put the tokenizer there that belongs to the file"
        )
    return tokenizer


def _preprocessing(architecture: str, tag: str, beside: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """How images are prepared, and what is unsure about it: `tag`, the JSON file or all published weights say so."""
    import open_clip
    from open_clip.transform import PreprocessCfg, merge_preprocess_dict

    tags = open_clip.list_pretrained_tags_by_model(architecture) if architecture else []
    if tag and tag not in tags:
        known = f"one of {', '.join(tags)}" if tags else "none: this architecture has no published weights by tag"
        raise SearchError(f"tag: got {tag!r}; expected {known}")

    def merged(overlay: dict[str, Any]) -> dict[str, Any]:
        return dict(merge_preprocess_dict(PreprocessCfg(), overlay))

    if tag:
        return merged(open_clip.get_pretrained_cfg(architecture, tag)), []
    if "preprocess_cfg" in beside:
        return merged(beside["preprocess_cfg"]), []
    ways = [merged(open_clip.get_pretrained_cfg(architecture, one)) for one in tags] or [merged({})]
    notes = []
    if any(way != ways[0] for way in ways):
        notes.append(
            f"published weights of {architecture} see images in different ways; they are prepared as for {tags[0]}: "
            "write into tag which weights these are"
        )
    elif not tags:
        notes.append("nothing says how images are prepared for this architecture; it is done as for OpenAI's CLIP")
    return ways[0], notes


KIND = VerifierKind(
    key="open_clip",
    name="OpenCLIP",
    description="How well image and prompt agree by any CLIP or SigLIP that the open_clip package knows.",
    load=load_open_clip,
    settings=(
        Setting(
            "file", "file", "CLIP-ViT-B-32-laion2B-s34B-b79K/open_clip_model.safetensors",
            "Weights under open_clip's names, best in a folder of its own with open_clip_config.json and, for SigLIP "
            "and others with a tokenizer of their own, tokenizer.json.",
            folders=("verifiers", "clip_vision"),
        ),
        Setting(
            "architecture", "text", "",
            "open_clip's name for it, such as ViT-B-32 or ViT-B-16-SigLIP. Empty: as open_clip_config.json says.",
        ),
        Setting(
            "tag", "text", "",
            "Which published weights these are, such as laion2b_s34b_b79k, for a file without open_clip_config.json: "
            "it says how images are prepared.",
        ),
        Setting(
            "measure", "choice", MEASURES[0],
            "cosine is -1 to 1. logit is what the model was trained with: its temperature, and for SigLIP its bias.",
            options=MEASURES,
        ),
    ),
    use_for="A second opinion on the prompt from other data: DFN, MetaCLIP and SigLIP beat OpenAI's CLIP at retrieval.",
    fooled_by="What fools CLIPScore: text in the picture, wrong counts and places.",
    sources=(SOURCE, SIGLIP),
)  # fmt: skip
