"""Class logits of image classifiers in Hugging Face's format, such as DINOv2 with its linear ImageNet head.

The class-conditional verifier of Ma et al. 2025 (arXiv 2501.09732, sec. 3): DINO with a linear head.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..search.errors import SearchError
from .files import Download, Source, read_tensors, weights_at
from .images import scored
from .kinds import Setting, VerifierKind
from .preprocessing import Preprocessing, read_preprocessing
from .pretrained import Held, filled, in_linear_layers, made_config, read_config

FROM_PROMPT = "from the prompt"
MEASURES = ("logit", "log-softmax", "probability")
_NAME = "dinov2-base-imagenet1k-1-layer"
_HUB = f"https://huggingface.co/facebook/{_NAME}"
SOURCE = Source(
    file="pytorch_model.bin with config.json and preprocessor_config.json",
    address=_HUB,
    size="353 MB",
    licence="Apache-2.0",
    put=f"ComfyUI's models/verifiers/{_NAME}",
    downloads=tuple(
        Download(f"{_HUB}/resolve/main/{name}", f"{_NAME}/{name}")
        for name in ("pytorch_model.bin", "config.json", "preprocessor_config.json")
    ),
)


class ImageClassifier:
    """The logit, the log-probability or the probability of the class `target`: its name, or its number as text.

    With "from the prompt", the mean over all classes that the prompt names; where one name is part of another in the
    prompt, the longer one counts.
    """

    name = "Image Classifier"
    differentiable = True
    scale: tuple[float, float] | None = None

    def __init__(
        self, network: Held, prepared: Preprocessing, labels: dict[int, str], target: str, measure: str = "logit"
    ) -> None:
        if measure not in MEASURES:
            raise SearchError(f"measure: got {measure!r}; expected one of {', '.join(MEASURES)}")
        self.module = network
        self.measure = measure
        self.notes: list[str] = []
        self.needs_prompt = target.strip().lower() == FROM_PROMPT
        self._prepared, self._labels = prepared, labels
        # One label may hold several names: "tench, Tinca tinca".
        self._names: dict[str, list[int]] = {}
        for number, label in labels.items():
            for name in {_plain(part) for part in (label, *label.split(","))} - {""}:
                self._names.setdefault(name, []).append(number)
        self._target = [] if self.needs_prompt else [self._number(target)]

    def score(self, images: Tensor, prompt: str) -> Tensor:
        """images [B, H, W, 3] in 0..1 -> scores float32 [B] on the CPU. Raises SearchError when no class is named."""
        columns = self._target or self.named(prompt)

        def of(pixels: Tensor) -> Tensor:
            pixels = self.module.here(self._prepared.normalise(self._prepared.fit(pixels)))
            logits: Tensor = self.module.model(pixel_values=pixels).logits.float()
            if self.measure != "logit":
                logits = logits.log_softmax(dim=-1)
            chosen = logits[:, columns]
            return (chosen.exp() if self.measure == "probability" else chosen).mean(dim=1)

        return scored(images, of)

    def named(self, prompt: str) -> list[int]:
        """The numbers of the classes that a prompt names; the plural counts. Raises SearchError when there is none."""
        text, found = _plain(prompt), []
        for name in sorted(self._names, key=len, reverse=True):
            text, times = re.subn(rf"\b{re.escape(name)}(s|es)?\b", "|", text)
            if times:
                found.append(self._only(name))
        if not found:
            raise SearchError(
                f"target: the prompt {prompt!r} names none of the {len(self._labels)} classes, such as "
                f"{', '.join(list(self._labels.values())[:3])}; name one in the prompt, or its name or number in target"
            )
        return sorted(set(found))

    def _number(self, target: str) -> int:
        """The number of the class that the target names."""
        name = _plain(target)
        if name in self._names:
            return self._only(name)
        if name.isdecimal() and int(name) in self._labels:
            return int(name)
        raise SearchError(
            f"target: got {target!r}; expected {FROM_PROMPT!r}, a number from 0 to {len(self._labels) - 1}, or a class "
            f"such as {', '.join(list(self._labels.values())[:3])}"
        )

    def _only(self, name: str) -> int:
        numbers = self._names[name]
        if len(numbers) > 1:
            raise SearchError(
                f"target: {name!r} is the name of the classes {', '.join(map(str, numbers))}; put one of these numbers "
                "into target"
            )
        return numbers[0]


def _plain(text: str) -> str:
    return " ".join(text.lower().replace("_", " ").split())


def load_image_classifier(file: str, target: str = FROM_PROMPT, measure: str = "logit") -> ImageClassifier:
    """The classifier that `file` names: a Hugging Face folder with weights, config.json and preprocessor_config.json.

    Raises SearchError when one is missing or damaged, when it is no classifier, or when it has no class `target`.
    """
    path = weights_at(file, SOURCE)
    told = read_config(path)
    kind, config = _classifier(path, told)
    with torch.inference_mode(False):
        tensors = read_tensors(path, SOURCE)
    network = Held(in_linear_layers(filled(kind, config, tensors, path, SOURCE, _unused(told))))
    size = getattr(config, "image_size", 224)
    size = size if isinstance(size, int) else 224
    # DINOv2 has positions for 518 pixels, and its heads were trained at 224.
    default = Preprocessing(min(size, 224), short=min(size, 224) * 256 // 224)
    labels = {int(number): str(label) for number, label in config.id2label.items()}
    verifier = ImageClassifier(network, read_preprocessing(path.parent, default), labels, target, measure)
    if not (path.parent / "preprocessor_config.json").is_file():
        verifier.notes.append(
            f"{path.name} has no preprocessor_config.json beside it: pictures are prepared as for ImageNet, at "
            f"{default.size} pixels"
        )
    return verifier


def _classifier(path: Path, told: dict[str, Any]) -> tuple[Any, Any]:
    """The transformers class that config.json asks for, and its config."""
    from transformers import CONFIG_MAPPING, MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING

    model_type = told.get("model_type")
    if not told:
        raise SearchError(f"file: {path.name} has no config.json beside it, which says what it is; {SOURCE}")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise SearchError(
            f"file: config.json beside {path.name} names a {model_type} model, which is unknown; {SOURCE}"
        )
    config = made_config(CONFIG_MAPPING[model_type], told, path)
    if type(config) not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        raise SearchError(f"file: {path.name} is a {model_type} model, of which there is no image classifier; {SOURCE}")
    found = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING[type(config)]
    classes: tuple[Any, ...] = found if isinstance(found, tuple) else (found,)
    named = [kind for kind in classes if kind.__name__ in (told.get("architectures") or ())]
    return (named or classes)[0], config


def _unused(told: dict[str, Any]) -> tuple[str, ...]:
    """What some files hold or lack without any effect on the logits."""
    return tuple(f"{told['model_type']}.embeddings.{name}" for name in ("mask_token", "position_ids"))


KIND = VerifierKind(
    key="image_classifier",
    name="Image Classifier",
    description="How sure an image classifier is that one class is in the picture, such as one of ImageNet's thousand.",
    use_for="Class-conditional models, and prompts about one thing that a classifier knows by name.",
    fooled_by="Textures and backgrounds that go with the class; it does not see counts, places, style or the prompt.",
    load=load_image_classifier,
    settings=(
        Setting(
            "file", "file", f"{_NAME}/pytorch_model.bin",
            "A classifier in a folder of its own, with config.json and preprocessor_config.json.",
            folders=("verifiers",),
        ),
        Setting(
            "target", "text", FROM_PROMPT,
            "The class: a name such as golden retriever, or a number such as 207. Or: from the prompt.",
        ),
        Setting(
            "measure", "choice", MEASURES[0],
            "logit (as in the paper) asks for this class, log-softmax also for no other; probability is for reading.",
            options=MEASURES,
        ),
    ),
    sources=(SOURCE,),
)  # fmt: skip
