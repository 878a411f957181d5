"""CLIPScore (Hessel et al. 2021, arXiv 2104.08718): how well an image and a prompt agree in CLIP's embedding."""

from __future__ import annotations

import logging

import torch
from torch import Tensor
from torch.nn import functional

from ..search.errors import SearchError
from .clip_file import CLIPFile, read_clip
from .clip_text import Tokenizer, load_tokenizer, padded, windows
from .images import normalised, scored, square
from .kinds import Setting, VerifierKind

LONG_PROMPTS = ("chunk", "truncate")
_PROMPTS_KEPT = 64

logger = logging.getLogger(__name__)

#: Mean and standard deviation of the cosine, by (width of the image tower, patch).
COSINES: dict[tuple[int, int], tuple[float, float]] = {
    # The demo's CLIP on pictures of its prompts and near misses; a test measures it again (0.387 and 0.115).
    (128, 8): (0.387, 0.10),
    # OpenAI's B/32 and L/14, estimated from arXiv 2501.09732: FLUX.1-dev has a mean of 0.71 / 2.5, and the best of 96
    # candidates, some 2.5 standard deviations above it if they are normal, has 0.82 / 2.5.
    (768, 32): (0.284, 0.018),
    (1024, 14): (0.284, 0.018),
}


class CLIPScore:
    """`weight * max(cosine, 0)` of the image's and the prompt's CLIP embeddings: 0 to `weight`.

    `prefix` is put before every prompt (the paper has "A photo depicts "). A prompt over CLIP's limit is cut off there
    ("truncate"), or read in windows of whole words whose normalised embeddings are averaged ("chunk"); either is said
    once per prompt, in the log and in `notes`. The gradient is zero where the cosine is negative.
    """

    name = "CLIPScore"
    differentiable = True
    needs_prompt = True

    def __init__(
        self,
        clip: CLIPFile,
        tokenizer: Tokenizer,
        weight: float = 2.5,
        prefix: str = "",
        long_prompts: str = "chunk",
    ) -> None:
        if long_prompts not in LONG_PROMPTS:
            raise SearchError(f"long_prompts: got {long_prompts!r}; expected one of {', '.join(LONG_PROMPTS)}")
        self.module = clip.network
        self.weight, self.prefix, self.long_prompts = weight, prefix, long_prompts
        self.notes = list(clip.notes)
        sizes = clip.network.sizes
        cosine = COSINES.get((sizes.vision.width, sizes.patch))
        self.scale = None if cosine is None else (weight * cosine[0], weight * cosine[1])
        self._clip, self._tokenizer = clip, tokenizer
        self._texts: dict[str, Tensor] = {}

    def score(self, images: Tensor, prompt: str) -> Tensor:
        """images [B, H, W, 3] in 0..1 -> scores float32 [B] on the CPU. Non-square images are cropped to the middle."""
        text = self._text(prompt)

        def of(pixels: Tensor) -> Tensor:
            network, clip = self.module, self._clip
            pixels = normalised(square(pixels, network.sizes.image), clip.mean, clip.std)
            embedded = functional.normalize(network.embed_images(pixels), dim=-1)
            return self.weight * (embedded @ text.to(embedded.device)).clamp(min=0)

        return scored(images, of)

    def _text(self, prompt: str) -> Tensor:
        """The prompt's embedding, float32 [embedding] of length 1, on the CPU."""
        if prompt not in self._texts:
            if len(self._texts) == _PROMPTS_KEPT:
                del self._texts[next(iter(self._texts))]
            # Made outside inference mode, or it could not take part in a gradient later.
            with torch.inference_mode(False), torch.no_grad():
                self._texts[prompt] = self._embed(prompt)
        return self._texts[prompt]

    def _embed(self, prompt: str) -> Tensor:
        size = self.module.sizes.context - 2  # start and end take one place each
        filled = windows(self._tokenizer, self.prefix + prompt, size)
        total = sum(len(ids) for ids in filled)
        if total > size and self.long_prompts == "truncate":
            filled = [[token for ids in filled for token in ids][:size]]
            self._note(f"CLIPScore read only the first {size} of the {total} tokens of the prompt {_short(prompt)}")
        elif total > size:
            self._note(
                f"CLIPScore read the prompt {_short(prompt)} in {len(filled)} windows: it has {total} tokens, and "
                f"{size} fit into one"
            )
        parts = self.module.embed_text(padded(self._tokenizer, filled), self._tokenizer.end)
        return functional.normalize(functional.normalize(parts, dim=-1).mean(dim=0), dim=-1).cpu()

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)
            logger.warning(text)


def _short(prompt: str) -> str:
    return repr(prompt if len(prompt) <= 60 else prompt[:57] + "...")


def load_clip_score(
    file: str,
    weight: float = 2.5,
    prefix: str = "",
    long_prompts: str = "chunk",
    activation: str = "auto",
    tokenizer: str = "",
) -> CLIPScore:
    """CLIPScore with the CLIP of `file`: a Hugging Face folder, or a .safetensors file under CLIPModel's names.

    `tokenizer` is a directory with CLIP's vocab.json and merges.txt, for a file that has none beside it. Raises
    SearchError when the file or the tokenizer is missing or of the wrong kind.
    """
    clip = read_clip(file, activation)
    words = load_tokenizer(clip.folder, tokenizer, clip.network.sizes.tokens)
    return CLIPScore(clip, words, weight, prefix, long_prompts)


KIND = VerifierKind(
    key="clip_score",
    name="CLIPScore",
    description="How well image and prompt agree in CLIP's embedding. Weak at counts and at what is where.",
    load=load_clip_score,
    settings=(
        Setting(
            "file", "file", "noise_search_demo_clip/model.safetensors",
            "A CLIP with both towers in Hugging Face's naming, best in a folder of its own with its JSON files. "
            "CLIPScore's own is openai/clip-vit-base-patch32; the small one of the demo knows only coloured shapes.",
            folders=("verifiers",),
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
