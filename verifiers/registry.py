"""The verifiers of this pack: what each is called, which settings a user has, and how it is loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import nn

from ..demo.scenes import CLASSES
from ..search.types import Verifier
from .clip_score import LONG_PROMPTS, load_clip_score
from .demo_classifier import FROM_PROMPT, load_demo_classifier
from .exact_judge import load_exact_judge


class LoadedVerifier(Verifier, Protocol):
    """A verifier of this pack, ready to score: a `Verifier` that also tells what its host needs to know."""

    notes: list[str]  # what the user should know about how it judged; grows while it scores
    differentiable: bool  # whether a gradient of the score reaches the images
    needs_prompt: bool  # whether it can say nothing of an image without one
    scale: tuple[float, float] | None  # mean and standard deviation of the score, if known; for z-scores

    @property
    def module(self) -> nn.Module | None:
        """The network, for a memory manager to move; scoring happens where its weights are."""


@dataclass(frozen=True)
class Setting:
    """One setting of a verifier, from which a node makes a widget.

    `kind` is choice (one of `options`), float or int (from `minimum` to `maximum`), text, or file: an absolute path
    to a file that ComfyUI lists under `folder`, whose default is a file name in there.
    """

    name: str
    kind: Literal["choice", "float", "int", "text", "file"]
    default: str | float | int
    tooltip: str
    minimum: float | None = None
    maximum: float | None = None
    step: float | None = None
    options: tuple[str, ...] = ()
    folder: str = ""


@dataclass(frozen=True)
class VerifierKind:
    """A verifier to choose: `load(**settings)` makes one, with an argument for every setting by its name.

    `host` names further arguments of `load` that the host knows and the user does not: `tokenizer` is a directory
    with the vocab.json and merges.txt of OpenAI's CLIP.
    """

    key: str
    name: str
    description: str
    load: Callable[..., LoadedVerifier]
    settings: tuple[Setting, ...] = ()
    host: tuple[str, ...] = ()


_CLIP_SCORE = VerifierKind(
    key="clip_score",
    name="CLIPScore",
    description="How well image and prompt agree in CLIP's embedding. Weak at counts and at what is where.",
    load=load_clip_score,
    settings=(
        Setting(
            "file", "file", "noise_search_demo_clip/model.safetensors",
            "A CLIP with both towers in Hugging Face's naming, best in a folder of its own with its JSON files. "
            "CLIPScore's own is openai/clip-vit-base-patch32; the small one of the demo knows only coloured shapes.",
            folder="verifiers",
        ),
        Setting(
            "weight", "float", 2.5, "The score is this times the cosine of image and prompt. The paper has 2.5.",
            minimum=0.01, maximum=100.0, step=0.01,
        ),
        Setting("prefix", "text", "", 'Put before the prompt. The paper has "A photo depicts "; most others nothing.'),
        Setting(
            "long_prompts", "choice", LONG_PROMPTS[0],
            "What to do with a prompt over CLIP's 75 tokens: chunk reads it in pieces, truncate drops the rest.",
            options=LONG_PROMPTS,
        ),
        Setting(
            "activation", "choice", "auto",
            "auto asks config.json, or guesses by size for a file without one: OpenAI's have quick_gelu, LAION's gelu.",
            options=("auto", "quick_gelu", "gelu"),
        ),
    ),
    host=("tokenizer",),
)  # fmt: skip

_DEMO_CLASSIFIER = VerifierKind(
    key="demo_classifier",
    name="Demo Classifier",
    description="Whether the demo's coloured shapes are in the picture. Blind to counts and places.",
    load=load_demo_classifier,
    settings=(
        Setting(
            "file", "file", "noise_search_demo_classifier.safetensors", "The classifier that comes with this pack.",
            folder="verifiers",
        ),
        Setting(
            "target", "choice", FROM_PROMPT, "The class whose logit is the score, or all that the prompt names.",
            options=(FROM_PROMPT, *CLASSES),
        ),
    ),
)  # fmt: skip

_EXACT_JUDGE = VerifierKind(
    key="exact_judge",
    name="Exact Judge",
    description="The share of the prompt's clauses that a picture of the demo world meets, measured, not guessed.",
    load=load_exact_judge,
)

#: Every verifier by key, in the order of the drop-down. Iterated by the tests, so a new one is tested on arrival.
VERIFIERS: dict[str, VerifierKind] = {kind.key: kind for kind in (_CLIP_SCORE, _DEMO_CLASSIFIER, _EXACT_JUDGE)}
