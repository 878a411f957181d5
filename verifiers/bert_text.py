"""BERT's tokenizer from a vocabulary in the user's folder, padded as a network with a fixed length reads it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..search.errors import SearchError
from .files import Source, read_json

_SPECIAL = ("[CLS]", "[SEP]", "[PAD]", "[UNK]")


@dataclass(frozen=True)
class Bert:
    """BERT's uncased tokenizer: `pieces` are the ids of the word pieces of a text, without special tokens around."""

    pieces: Callable[[str], list[int]]
    start: int
    end: int
    pad: int

    def read(self, text: str, length: int) -> tuple[Tensor, Tensor, int]:
        """Ids and mask int64 [1, length] of a text, cut off where it is longer, and how many pieces it has in all."""
        pieces = self.pieces(text)
        ids = [self.start, *pieces[: length - 2], self.end]
        empty = length - len(ids)
        mask = [1] * len(ids) + [0] * empty
        return torch.tensor([ids + [self.pad] * empty]), torch.tensor([mask]), len(pieces)


def load_bert(folder: Path, source: Source, tokens: int) -> Bert:
    """The tokenizer with the vocabulary of the vocab.txt or tokenizer.json in `folder`; never from the network.

    `tokens` is the size of the network's table, which may have two rows more, for tokens that it never uses. Raises
    SearchError when there is neither file, or when it is not the vocabulary of such a network.
    """
    from tokenizers import BertWordPieceTokenizer

    file, vocabulary = _vocabulary(folder, source)
    lacking = [name for name in _SPECIAL if name not in vocabulary]
    if lacking or not len(vocabulary) <= tokens <= len(vocabulary) + 2:
        got = f"no {lacking[0]}" if lacking else f"{len(vocabulary)} tokens"
        raise SearchError(f"file: {file} has {got}; expected BERT's vocabulary of {tokens - 2} tokens; {source}")
    tokenizer = BertWordPieceTokenizer(vocabulary, lowercase=True)

    def pieces(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    return Bert(pieces, *(vocabulary[name] for name in _SPECIAL[:3]))


def _vocabulary(folder: Path, source: Source) -> tuple[str, dict[str, int]]:
    """Which file it is, and the number of every token."""
    if (folder / "vocab.txt").is_file():
        text = (folder / "vocab.txt").read_text(encoding="utf-8", errors="replace")
        return "vocab.txt", {word: number for number, word in enumerate(text.split("\n")) if word.strip()}
    if (folder / "tokenizer.json").is_file():
        model = read_json(folder / "tokenizer.json").get("model", {})
        return "tokenizer.json", model.get("vocab", {}) if model.get("type") == "WordPiece" else {}
    raise SearchError(f"file: {folder} has no vocab.txt, by which prompts are read; {source}")
