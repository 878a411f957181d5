"""Images and prompts in one space: the pair of towers that every verifier of the CLIP family is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..search.errors import SearchError
from .clip_file import CLIPFile
from .clip_text import Tokenizer, load_tokenizer, padded, windows
from .images import embedded, normalised, square
from .notes import note, short
from .ports import ImageTower, TextTower

#: Makes pixels [B, 3, H, W] a square of a size: `square` is CLIP's way, `letterbox` HPSv2's, `squashed` SigLIP's.
Geometry = Callable[[Tensor, int], Tensor]
LONG_PROMPTS = ("chunk", "truncate")
_PROMPTS_KEPT = 64
_TEXTS_AT_ONCE = 256


class TokenTower(Protocol):
    """A text tower that takes tokens: what is below `CLIPTexts`."""

    def embed_text(self, ids: Tensor, end: int) -> Tensor:
        """Embeddings float32 [B, D] of ids [B, T], T at most `context`, read off at the first `end` of each row."""


class CLIPImages:
    """The image tower of a file, as `ports.ImageTower`."""

    family = "clip"

    def __init__(self, clip: CLIPFile) -> None:
        sizes = clip.network.sizes
        self.name = f"CLIP of width {sizes.vision.width} with patches of {sizes.patch}"
        self.size = sizes.image
        self._clip = clip

    def embed(self, pixels: Tensor) -> Tensor:
        """See ports.ImageTower."""
        return self._clip.network.embed_images(normalised(pixels, self._clip.mean, self._clip.std))


class CLIPTexts:
    """A text tower with its tokenizer, as `ports.TextTower`.

    A prompt of more than `context` - 2 tokens is cut off there ("truncate"), or read in windows of whole words whose
    normalised embeddings are averaged ("chunk"); either is said once per prompt, in the log and in `notes`.
    """

    def __init__(self, tower: TokenTower, tokenizer: Tokenizer, width: int, context: int, name: str = "CLIP") -> None:
        self.name, self.width = name, width
        self.notes: list[str] = []
        self._tower, self._tokenizer = tower, tokenizer
        self._size = context - 2  # start and end take one place each

    def embed(self, text: str, long_prompts: str = "chunk") -> Tensor:
        """See ports.TextTower."""
        filled = windows(self._tokenizer, text, self._size)
        total = sum(len(ids) for ids in filled)
        if total > self._size and long_prompts == "truncate":
            filled = [self._start(text)]
            note(
                self.notes,
                f"{self.name} read only the first {self._size} of the {total} tokens of the prompt {short(text)}",
                about=text,
            )
        elif total > self._size:
            note(
                self.notes,
                f"{self.name} read the prompt {short(text)} in {len(filled)} windows: it has {total} tokens, and "
                f"{self._size} fit into one",
                about=text,
            )
        parts = self._tower.embed_text(padded(self._tokenizer, filled), self._tokenizer.end)
        return parts[0] if len(parts) == 1 else functional.normalize(parts, dim=-1).mean(dim=0)

    def embed_all(self, texts: Sequence[str]) -> Tensor:
        """Embeddings float32 [N, width] on the CPU, not normalised, of many short texts; longer ones are cut off."""
        parts = []
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            some = texts[start : start + _TEXTS_AT_ONCE]
            ids = padded(self._tokenizer, [self._start(text) for text in some])
            parts.append(self._tower.embed_text(ids, self._tokenizer.end).cpu())
        return torch.cat(parts)

    def _start(self, text: str) -> list[int]:
        """The first ids of a text, as many as fit."""
        return [i for ids in windows(self._tokenizer, text, self._size) for i in ids][: self._size]


class DualTower:
    """Embeddings of length 1 of images and prompts, comparable by their dot product.

    `long_prompts` is one of LONG_PROMPTS. `module` is the network that a memory manager moves, None where the towers
    belong to somebody else. `text` may be missing where no prompt is ever asked about. `notes` is what the user should
    know, with what the towers have to tell; it grows with the prompts that are too long.
    """

    def __init__(
        self,
        image: ImageTower,
        text: TextTower | None,
        module: nn.Module | None = None,
        geometry: Geometry = square,
        long_prompts: str = "truncate",
        notes: Sequence[str] = (),
    ) -> None:
        if long_prompts not in LONG_PROMPTS:
            raise SearchError(f"long_prompts: got {long_prompts!r}; expected one of {', '.join(LONG_PROMPTS)}")
        self.image, self.text, self.module = image, text, module
        self.long_prompts = long_prompts
        self._geometry = geometry
        self._prompts: dict[str, Tensor] = {}
        self.notes = list(notes)
        self._listen()

    def images(self, pixels: Tensor) -> Tensor:
        """Unit embeddings float32 [B, D] of pixels [B, 3, H, W] in 0..1, where the tower's weights are."""
        return functional.normalize(self.image.embed(self._geometry(pixels, self.image.size)), dim=-1)

    def features(self, images: Tensor) -> Tensor:
        """Unit embeddings float32 [B, D] on the CPU of images [B, H, W, 3] in 0..1, of any number."""
        return embedded(images, self.images)

    def prompt(self, prompt: str) -> Tensor:
        """The unit embedding float32 [D] of a prompt, on the CPU; the last few are kept."""
        if prompt not in self._prompts:
            if len(self._prompts) == _PROMPTS_KEPT:
                del self._prompts[next(iter(self._prompts))]
            # Made outside inference mode, or it could not take part in a gradient later.
            with torch.inference_mode(False), torch.no_grad():
                embedded = self._texts().embed(prompt, self.long_prompts).clone()
                self._prompts[prompt] = functional.normalize(embedded, dim=-1).cpu()
            self._listen()
        return self._prompts[prompt]

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Unit embeddings float32 [N, D] of many short texts, on the CPU; none is kept."""
        tower = self._texts()
        with torch.inference_mode(False), torch.no_grad():
            if isinstance(tower, CLIPTexts):
                embedded = tower.embed_all(texts)
            else:
                embedded = torch.stack([tower.embed(text, "truncate").clone().cpu() for text in texts])
            return functional.normalize(embedded, dim=-1)

    def dot(self, pixels: Tensor, direction: Tensor) -> Tensor:
        """Products float32 of the images' unit embeddings with one direction [D] or several [N, D]: [B] or [B, N].

        Raises SearchError when these are numbers of another tower.
        """
        embedded = self.images(pixels)
        if embedded.shape[-1] != direction.shape[-1]:
            raise SearchError(
                f"the image tower {self.image.name} gives {embedded.shape[-1]} numbers, and {direction.shape[-1]} are "
                "expected: the two belong to different CLIPs; wire or choose those that were trained together"
            )
        return embedded @ direction.to(embedded.device).transpose(0, -1)

    def _listen(self) -> None:
        for tower in (self.image, self.text):
            self.notes += [note for note in getattr(tower, "notes", ()) if note not in self.notes]

    def _texts(self) -> TextTower:
        if self.text is None:
            raise SearchError("this verifier has no text tower: choose a file with both towers")
        return self.text


def towers(
    clip: CLIPFile, tokenizer: str, name: str, geometry: Geometry = square, long_prompts: str = "truncate"
) -> DualTower:
    """Both towers of a file, for the verifier of that `name`.

    `tokenizer` is a directory with CLIP's vocab.json and merges.txt, for a file that has none beside it. Raises
    SearchError when there is no tokenizer, or it is of another size.
    """
    sizes = clip.network.sizes
    words = load_tokenizer(clip.text_folder, tokenizer, sizes.tokens)
    texts = CLIPTexts(clip.network, words, sizes.embedding, sizes.context, name)
    return DualTower(CLIPImages(clip), texts, clip.network, geometry, long_prompts, clip.notes)
