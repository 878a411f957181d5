"""CLIP as a classifier without training (Radford et al. 2021, arXiv 2103.00020, section 3.1): the logit of a class.

The class judge of the search papers ("CLIP zero-shot"): how surely the picture shows the class it should show.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from math import exp

import torch
from torch import Tensor
from torch.nn import functional

from ..search.errors import SearchError
from .clip_file import LARGE, SOURCE, CLIPFile, read_clip
from .dual_tower import DualTower, towers
from .images import scored
from .kinds import Setting, VerifierKind

FROM_PROMPT = ""
TEMPLATES = ("simple 7", "openai 80", "photo")
MEASURES = ("logit", "probability")
_PHOTO: tuple[Callable[[str], str], ...] = ("a photo of a {}.".format,)


class CLIPClass:
    """How much of a class CLIP sees: the mean over the classes that are asked for.

    A class is the mean of the unit embeddings of its name in every template, of length 1 again. The logit is its
    cosine with the image times `temperature` (100 in OpenAI's CLIP, whose logits are 15 to 35), the probability
    its softmax over all `classes`. `target` is a class by name or by its number in the list; empty asks for every
    class that the prompt names, with the longest name first: "tiger shark" is no "tiger".
    """

    name = "CLIP Class"
    differentiable = True
    scale: tuple[float, float] | None = None

    def __init__(
        self,
        towers: DualTower,
        classes: Sequence[str],
        templates: Sequence[Callable[[str], str]],
        target: str = FROM_PROMPT,
        measure: str = MEASURES[0],
        temperature: float = 100.0,
    ) -> None:
        if measure not in MEASURES:
            raise SearchError(f"measure: got {measure!r}; expected one of {', '.join(MEASURES)}")
        self.towers, self.module = towers, towers.module
        self.classes, self.templates, self.measure, self.temperature = tuple(classes), templates, measure, temperature
        self.target = None if target == FROM_PROMPT else self._number(target)
        self.needs_prompt = self.target is None
        self.notes = towers.notes
        self._weights: dict[str, Tensor] = {}

    def score(self, images: Tensor, prompt: str) -> Tensor:
        """images [B, H, W, 3] in 0..1 -> scores float32 [B] on the CPU. Raises SearchError when no class is named."""
        chosen = self.named(prompt)
        if self.measure == "logit":
            weights = self.weights([self.classes[i] for i in chosen])
            return scored(images, lambda pixels: self.temperature * self.towers.dot(pixels, weights).mean(dim=-1))
        everything = self.weights(self.classes)

        def of(pixels: Tensor) -> Tensor:
            return (self.temperature * self.towers.dot(pixels, everything)).softmax(dim=-1)[:, chosen].mean(dim=-1)

        return scored(images, of)

    def features(self, images: Tensor) -> Tensor:
        """The tower's unit embeddings float32 [B, D] on the CPU of images [B, H, W, 3] in 0..1."""
        return self.towers.features(images)

    def weights(self, names: Sequence[str]) -> Tensor:
        """Unit vectors float32 [N, D] of classes, on the CPU; each is computed once."""
        missing = [name for name in dict.fromkeys(names) if name not in self._weights]
        if missing:
            texts = [template(name) for name in missing for template in self.templates]
            with torch.inference_mode(False):
                embedded = self.towers.texts(texts).reshape(len(missing), len(self.templates), -1)
                self._weights |= zip(missing, functional.normalize(embedded.mean(dim=1), dim=-1), strict=True)
        return torch.stack([self._weights[name] for name in names])

    def named(self, prompt: str) -> list[int]:
        """The numbers of the classes that are scored for a prompt; the plural counts. Raises SearchError for none."""
        if self.target is not None:
            return [self.target]
        text = _plain(prompt)
        found: list[int] = []
        for number in sorted(range(len(self.classes)), key=lambda i: -len(self.classes[i])):
            pattern = rf"\b{re.escape(_plain(self.classes[number]))}(s|es)?\b"
            if re.search(pattern, text):
                found.append(number)
                text = re.sub(pattern, "|", text)  # what a longer name has used says nothing about a shorter one
        if not found:
            raise SearchError(
                f"target: the prompt {prompt!r} names none of the {len(self.classes)} classes ({self._some()}); write "
                "the class into target, or your own classes into classes"
            )
        return sorted(found)

    def _number(self, target: str) -> int:
        names = [_plain(name) for name in self.classes]
        if _plain(target) in names:
            return names.index(_plain(target))
        if target.strip().isdecimal() and int(target) < len(names):
            return int(target)
        raise SearchError(
            f"target: got {target!r}; expected one of {self._some()}, a number from 0 to {len(names) - 1}, or nothing "
            "to take the classes that the prompt names"
        )

    def _some(self) -> str:
        return ", ".join([*self.classes[:5], *(["..."] if len(self.classes) > 5 else [])])


def _plain(text: str) -> str:
    return " ".join(text.lower().replace("_", " ").split())


def load_clip_class(
    file: str,
    target: str = FROM_PROMPT,
    classes: str = "",
    templates: str = TEMPLATES[0],
    measure: str = MEASURES[0],
    activation: str = "auto",
    text_file: str = "",
    tokenizer: str = "",
) -> CLIPClass:
    """The classifier with the CLIP of `file`; `classes` has one name in each line, or none for ImageNet's thousand.

    `tokenizer` is a directory with CLIP's vocab.json and merges.txt, for a file that has none beside it. Raises
    SearchError when the file or the tokenizer is missing or of the wrong kind, or a setting makes no sense.
    """
    clip = read_clip(file, activation, text_file=text_file, source=LARGE)
    names = list(dict.fromkeys(" ".join(line.split()) for line in classes.splitlines() if line.strip()))
    if len(names) == 1 and measure == "probability":
        raise SearchError(f"classes: got {names[0]!r} alone, whose probability is always 1; write more, or take logit")
    return CLIPClass(
        towers(clip, tokenizer, "CLIP Class"),
        names or imagenet_classes(),
        templates_named(templates),
        target,
        measure,
        _temperature(clip),
    )


def _temperature(clip: CLIPFile) -> float:
    return 100.0 if clip.logit_scale is None else exp(clip.logit_scale)


def imagenet_classes() -> tuple[str, ...]:
    """ImageNet's thousand classes in their order, by the names that OpenAI gave them; from open_clip."""
    from open_clip import IMAGENET_CLASSNAMES

    return tuple(IMAGENET_CLASSNAMES)


def templates_named(name: str) -> tuple[Callable[[str], str], ...]:
    """The sentences that a class name is put into: one of TEMPLATES. OpenAI's come from open_clip."""
    if name not in TEMPLATES:
        raise SearchError(f"templates: got {name!r}; expected one of {', '.join(TEMPLATES)}")
    if name == "photo":
        return _PHOTO
    from open_clip import OPENAI_IMAGENET_TEMPLATES, SIMPLE_IMAGENET_TEMPLATES

    return tuple(SIMPLE_IMAGENET_TEMPLATES if name == TEMPLATES[0] else OPENAI_IMAGENET_TEMPLATES)


KIND = VerifierKind(
    key="clip_class",
    name="CLIP Class",
    description="How surely the picture shows a class, such as a golden retriever, by CLIP without training.",
    load=load_clip_class,
    settings=(
        Setting(
            "file", "file", "clip-vit-large-patch14/model.safetensors",
            "A CLIP in Hugging Face's or OpenCLIP's naming, best in a folder of its own with its JSON files.",
            folders=("verifiers", "clip_vision", "text_encoders"),
        ),
        Setting(
            "target", "text", FROM_PROMPT,
            "The class by name or number. Empty: every class that the prompt names; the score is their mean.",
        ),
        Setting(
            "classes", "lines", "",
            "Your own classes, one in each line. Empty: the thousand of ImageNet.",
        ),
        Setting(
            "templates", "choice", TEMPLATES[0],
            "The sentences that a name is put into: OpenAI's best 7, all 80 of theirs, or only 'a photo of a ...'.",
            options=TEMPLATES,
        ),
        Setting(
            "measure", "choice", MEASURES[0],
            "logit looks at the class alone. probability compares it with all others, which first reads every name.",
            options=MEASURES,
        ),
        Setting(
            "activation", "choice", "auto",
            "auto asks config.json, or guesses by size for a file without one: OpenAI's have quick_gelu, LAION's gelu.",
            options=("auto", "quick_gelu", "gelu"),
        ),
        Setting(
            "text_file", "file", "",
            "Only for a file with an image tower alone, as ComfyUI has them: the text tower that belongs to it.",
            folders=("verifiers", "clip_vision", "text_encoders"), optional=True,
        ),
    ),
    host=("tokenizer",),
    use_for="Models of classes, as in the papers' ImageNet experiments.",
    fooled_by="The class's name as text; its usual surroundings without it; it makes all pictures of a class alike.",
    sources=(LARGE, SOURCE),
)  # fmt: skip
