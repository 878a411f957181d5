"""CLIP-IQA (Wang et al. 2022, arXiv 2207.12396): is the picture nearer to "Good photo." or to "Bad photo."?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..search.errors import SearchError
from .clip_file import LARGE, SOURCE, read_clip
from .dual_tower import DualTower, towers
from .images import scored
from .kinds import Setting, VerifierKind

#: What is asked -> the sentence for it and the sentence against it.
PAIRS: dict[str, tuple[str, str]] = {
    "quality": ("Good photo.", "Bad photo."),
    "sharpness": ("Sharp photo.", "Blurry photo."),
    "noisiness": ("Clean photo.", "Noisy photo."),
    "brightness": ("Bright photo.", "Dark photo."),
    "contrast": ("High contrast photo.", "Low contrast photo."),
    "colorfulness": ("Colorful photo.", "Dull photo."),
    "complexity": ("Complex photo.", "Simple photo."),
    "natural": ("Natural photo.", "Synthetic photo."),
    "real": ("Real photo.", "Abstract photo."),
    "beautiful": ("Beautiful photo.", "Ugly photo."),
    "happy": ("Happy photo.", "Sad photo."),
    "relaxing": ("Relaxing photo.", "Stressful photo."),
}
_DEFAULT = "quality\nsharpness\nnoisiness\nnatural\nbeautiful"
_TEMPERATURE = 100.0  # the paper's, whatever the file's own


class CLIPIQA:
    """The mean over pairs of sentences of the probability of the first: softmax over 100 times the two cosines, 0..1.

    The paper's network is a ResNet-50 without position embedding; with the ViT used here the numbers are others.
    """

    name = "CLIP-IQA"
    differentiable = True
    needs_prompt = False
    scale: tuple[float, float] | None = None

    def __init__(self, towers: DualTower, pairs: Sequence[tuple[str, str]]) -> None:
        if not pairs:
            raise SearchError(f"pairs: got none; expected some of {', '.join(PAIRS)}, one in each line")
        self.towers, self.module, self.pairs = towers, towers.module, tuple(pairs)
        self.notes = towers.notes
        self._texts: Tensor | None = None

    def score(self, images: Tensor, prompt: str) -> Tensor:
        """images [B, H, W, 3] in 0..1 -> scores float32 [B] on the CPU; the prompt does not matter."""
        if self._texts is None:
            self._texts = self.towers.texts([text for pair in self.pairs for text in pair])
        texts = self._texts

        def of(pixels: Tensor) -> Tensor:
            logits = (_TEMPERATURE * self.towers.dot(pixels, texts)).reshape(-1, len(self.pairs), 2)
            return torch.softmax(logits, dim=-1)[..., 0].mean(dim=-1)

        return scored(images, of)

    def features(self, images: Tensor) -> Tensor:
        """The tower's unit embeddings float32 [B, D] on the CPU of images [B, H, W, 3] in 0..1."""
        return self.towers.features(images)


def pairs_in(lines: str) -> list[tuple[str, str]]:
    """The pairs that a widget asks for: in each line a name of PAIRS, or two sentences with | between them.

    Raises SearchError for a line that is neither.
    """
    pairs = []
    for line in (line.strip() for line in lines.splitlines()):
        parts = tuple(part.strip() for part in line.split("|"))
        if len(parts) == 2 and all(parts):
            pairs.append((parts[0], parts[1]))
        elif line.lower() in PAIRS:
            pairs.append(PAIRS[line.lower()])
        elif line:
            raise SearchError(
                f"pairs: got {line!r}; expected one of {', '.join(PAIRS)}, or a good and a bad sentence such as "
                "Sharp photo. | Blurry photo."
            )
    return pairs


def load_clip_iqa(
    file: str, pairs: str = _DEFAULT, activation: str = "auto", text_file: str = "", tokenizer: str = ""
) -> CLIPIQA:
    """CLIP-IQA with the CLIP of `file`; `pairs` as in `pairs_in`.

    `tokenizer` is a directory with CLIP's vocab.json and merges.txt, for a file that has none beside it. Raises
    SearchError when the file or the tokenizer is missing or of the wrong kind, or `pairs` has no pair.
    """
    chosen = pairs_in(pairs)
    clip = read_clip(file, activation, text_file=text_file, source=LARGE)
    return CLIPIQA(towers(clip, tokenizer, "CLIP-IQA"), chosen)


KIND = VerifierKind(
    key="clip_iqa",
    name="CLIP-IQA",
    description="How good, sharp, clean or beautiful the picture is by CLIP's reckoning; no prompt needed.",
    load=load_clip_iqa,
    settings=(
        Setting(
            "file", "file", "clip-vit-large-patch14/model.safetensors",
            "A CLIP in Hugging Face's or OpenCLIP's naming, best in a folder of its own with its JSON files.",
            folders=("verifiers", "clip_vision", "text_encoders"),
        ),
        Setting(
            "pairs", "lines", _DEFAULT,
            f"One in each line; the score is their mean. {', '.join(PAIRS)}, or your own: good | bad.",
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
    use_for="Throwing out blurred, noisy and broken pictures; as a constraint beside a verifier that reads the prompt.",
    fooled_by="Oversharpened and high-contrast pictures; what it means by a photo that is good is not said.",
    sources=(LARGE, SOURCE),
)  # fmt: skip
