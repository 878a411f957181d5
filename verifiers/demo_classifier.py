"""The demo world's classifier as a verifier: the logit of one class, or of those that the prompt names."""

from __future__ import annotations

import re

from torch import Tensor, nn

from ..demo.scenes import CLASSES
from ..search.errors import SearchError
from .files import Source, weights_at
from .images import scored, square
from .kinds import Setting, VerifierKind

FROM_PROMPT = "from the prompt"
SOURCE = Source(
    file="noise_search_demo_classifier.safetensors",
    address="https://github.com/noise-search/ComfyUI-NoiseSearch",
    size="0.7 MB",
    licence="Apache-2.0",
    put="demo/models/verifiers of this node pack, where it belongs",
)
_SIZE = 64


class DemoClassifier:
    """The logit of the class `target`, such as "red circle"; with "from the prompt", the mean over all it names.

    The classifier only says whether a class is in the picture: counts and places do not change the score much.
    """

    name = "Demo Classifier"
    differentiable = True
    scale: tuple[float, float] | None = (4.3, 4.9)  # pictures of prompts and near misses; a test measures it again

    def __init__(self, network: nn.Module, classes: tuple[str, ...], target: str = FROM_PROMPT) -> None:
        if target != FROM_PROMPT and target not in classes:
            raise SearchError(f"target: got {target!r}; expected {FROM_PROMPT!r} or one of {', '.join(classes)}")
        self.module = network
        self.classes, self.target = classes, target
        self.needs_prompt = target == FROM_PROMPT
        self.notes: list[str] = []

    def score(self, images: Tensor, prompt: str) -> Tensor:
        """images [B, H, W, 3] in 0..1 -> scores float32 [B] on the CPU. Raises SearchError when no class is named."""
        columns = [self.classes.index(name) for name in self.named(prompt)]
        weight = next(self.module.parameters())

        def of(pixels: Tensor) -> Tensor:
            logits: Tensor = self.module(square(pixels, _SIZE).to(weight))
            return logits[:, columns].float().mean(dim=1)

        return scored(images, of)

    def named(self, prompt: str) -> list[str]:
        """The classes that are scored for a prompt; the plural counts. Raises SearchError when there is none."""
        if self.target != FROM_PROMPT:
            return [self.target]
        text = " ".join(prompt.lower().split())
        found = [name for name in self.classes if re.search(rf"\b{re.escape(name)}(s|es)?\b", text)]
        if not found:
            raise SearchError(
                f"target: the prompt {prompt!r} names none of the classes {', '.join(self.classes)}; "
                "name one in the prompt or choose one in the target widget"
            )
        return found


def load_demo_classifier(file: str, target: str = FROM_PROMPT) -> DemoClassifier:
    """The verifier with the weights in `file`. Raises SearchError when they are missing, damaged or of another kind."""
    import torch
    from safetensors import SafetensorError

    from ..demo import classifier

    path = weights_at(file, SOURCE)
    try:
        with torch.inference_mode(False):
            network = classifier.load(path)
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise SearchError(f"file: {path.name} is damaged or no demo classifier ({error}); {SOURCE}") from error
    return DemoClassifier(network.requires_grad_(False), network.classes, target)


KIND = VerifierKind(
    key="demo_classifier",
    name="Demo Classifier",
    description="Whether the demo's coloured shapes are in the picture. Blind to counts and places.",
    load=load_demo_classifier,
    use_for="Learning how search behaves, in the demo world only.",
    fooled_by="Wrong counts and places.",
    settings=(
        Setting(
            "file", "file", "noise_search_demo_classifier.safetensors", "The classifier that comes with this pack.",
            folders=("verifiers",),
        ),
        Setting(
            "target", "choice", FROM_PROMPT, "The class whose logit is the score, or all that the prompt names.",
            options=(FROM_PROMPT, *CLASSES),
        ),
    ),
)  # fmt: skip
