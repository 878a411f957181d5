"""What a verifier of this pack is to its host: its settings, where its files come from, and what it is good for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import nn

from ..search.types import Verifier
from .files import Source


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
    """One setting of a verifier, from which a node makes a widget or a socket.

    Widgets: choice (one of `options`), float or int (from `minimum` to `maximum`), flag (a bool), text, lines (text of
    several lines), and file: an absolute path to a file that ComfyUI lists under `folders`, whose default is a file
    name in there; an optional file may be "" (none).

    Sockets, whose default is None: image is a batch [B, H, W, 3] in 0..1; clip_vision, clip_text and vlm are models
    that the graph has loaded, as a `verifiers.ports.ImageTower`, a `TextTower` and a `VisionLanguageModel`.
    """

    name: str
    kind: Literal["choice", "float", "int", "flag", "text", "lines", "file", "image", "clip_vision", "clip_text", "vlm"]
    default: str | float | int | bool | None
    tooltip: str
    minimum: float | None = None
    maximum: float | None = None
    step: float | None = None
    options: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    optional: bool = False


@dataclass(frozen=True)
class VerifierKind:
    """A verifier to choose: `load(**settings)` makes one, with an argument for every setting by its name.

    `host` names further arguments of `load` that the host knows and the user does not: `tokenizer` is a directory
    with the vocab.json and merges.txt of OpenAI's CLIP; `check_cancel` a function to call while waiting, which raises
    when the user has cancelled.

    `description` says in a sentence or two what is measured; `use_for` when to choose it and `fooled_by` what raises
    the score without a better image: these three and `sources` make the README's table.
    """

    key: str
    name: str
    description: str
    load: Callable[..., LoadedVerifier]
    settings: tuple[Setting, ...] = ()
    host: tuple[str, ...] = ()
    use_for: str = ""
    fooled_by: str = ""
    sources: tuple[Source, ...] = ()
