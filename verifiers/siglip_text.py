"""SigLIP's and SigLIP 2's tokenizers from the user's folder, padded to the length that the text tower reads."""

from __future__ import annotations

import string
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..search.errors import SearchError
from .files import Source, read_json

_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class SigLIPText:
    """A tokenizer: `pieces` are the ids of a text. SigLIP 2 keeps the punctuation of a text, the first SigLIP does not.

    Neither knows capital letters. There is no mask: the padding is part of what the tower reads.
    """

    pieces: Callable[[str], list[int]]
    end: int
    pad: int
    punctuation: bool

    def read(self, text: str, length: int) -> tuple[Tensor, int]:
        """Ids int64 [1, length] of a text, cut off where it is longer, and how many pieces it has in all."""
        text = text.lower() if self.punctuation else " ".join(text.lower().translate(_PUNCTUATION).split())
        pieces = self.pieces(text)
        ids = [*pieces[: length - 1], self.end]
        return torch.tensor([ids + [self.pad] * (length - len(ids))]), len(pieces)


def load_siglip_text(folder: Path, source: Source, tokens: int) -> SigLIPText:
    """The tokenizer of the spiece.model (SigLIP) or the tokenizer.json (SigLIP 2) in `folder`; never from the network.

    `tokens` is the size of the network's table. Raises SearchError when there is neither file, when it is damaged, or
    when it belongs to another network.
    """
    found = [folder / name for name in ("spiece.model", "tokenizer.json") if (folder / name).is_file()]
    if not found:
        raise SearchError(f"file: {folder} has neither spiece.model nor tokenizer.json; {source}")
    read = _sentence_pieces if found[0].name == "spiece.model" else _tokenizers
    text, count = read(found[0], source)
    if count > tokens:
        raise SearchError(f"file: {found[0].name} has {count} tokens; expected {tokens} for this network; {source}")
    return text


def _sentence_pieces(path: Path, source: Source) -> tuple[SigLIPText, int]:
    try:
        import sentencepiece
    except ImportError as error:
        raise SearchError("file: spiece.model is read by sentencepiece; run pip install sentencepiece") from error
    try:
        processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as error:
        raise SearchError(f"file: {path.name} is damaged ({error}); {source}") from error

    def pieces(text: str) -> list[int]:
        ids: list[int] = processor.encode(text)
        return ids

    end = processor.eos_id()
    return SigLIPText(pieces, end, end, punctuation=False), processor.get_piece_size()


def _tokenizers(path: Path, source: Source) -> tuple[SigLIPText, int]:
    from tokenizers import Tokenizer

    read_json(path)  # says what is wrong with a file that is no JSON
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise SearchError(f"file: {path.name} is no tokenizer ({error}); {source}") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    second = tokenizer.token_to_id("<eos>") is not None
    end, pad = (tokenizer.token_to_id(name) for name in (("<eos>", "<pad>") if second else ("</s>", "</s>")))
    if end is None or pad is None:
        raise SearchError(f"file: {path.name} is no tokenizer of SigLIP: it has no token <eos> or </s>; {source}")

    def pieces(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    return SigLIPText(pieces, end, pad, punctuation=second), tokenizer.get_vocab_size()
