"""Turn a prompt of any length into windows of tokens that CLIP's text tower can read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..search.errors import SearchError


@dataclass(frozen=True)
class Tokenizer:
    """CLIP's tokenizer: `pieces` gives the ids of one word, without the `start` and `end` tokens."""

    pieces: Callable[[str], list[int]]
    start: int
    end: int


def load_tokenizer(folder: Path, fallback: str, tokens: int) -> Tokenizer:
    """The tokenizer in `folder`, or else in the directory `fallback`; never from the network.

    `tokens` is the size of the network's table. Raises SearchError when neither has one, or when it is of another size.
    """
    # from_pretrained on a directory without these files would look for a model of that name on the internet.
    places = [place for place in (folder, Path(fallback)) if _has_tokenizer(place)]
    if not places:
        raise SearchError(
            f"tokenizer: neither {folder} nor {fallback or '(none given)'} has vocab.json and merges.txt; "
            "download both from https://huggingface.co/openai/clip-vit-base-patch32 into the folder of the CLIP file"
        )
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(str(places[0]), local_files_only=True)
    if len(tokenizer) != tokens:
        raise SearchError(
            f"tokenizer: {places[0]} has {len(tokenizer)} tokens, the CLIP file has {tokens}; "
            "put the vocab.json and merges.txt that belong to the file beside it"
        )

    def pieces(word: str) -> list[int]:
        ids: list[int] = tokenizer(word, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    return Tokenizer(pieces, tokenizer.bos_token_id, tokenizer.eos_token_id)


def _has_tokenizer(folder: Path) -> bool:
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return {"vocab.json", "merges.txt"} <= names or "tokenizer.json" in names


def windows(tokenizer: Tokenizer, text: str, size: int) -> list[list[int]]:
    """The ids of `text` in as few windows of at most `size` ids as whole words allow; one empty window for no text.

    A word that does not fit into a window of its own is cut. CLIP's tokenizer never joins what white space parts, so
    the windows together are the ids of the whole text.
    """
    filled: list[list[int]] = [[]]
    for word in text.split():
        ids = tokenizer.pieces(word)
        if len(filled[-1]) + len(ids) > size and filled[-1]:
            filled.append([])
        while len(ids) > size:
            filled[-1], ids = ids[:size], ids[size:]
            filled.append([])
        filled[-1] = filled[-1] + ids
    return filled


def padded(tokenizer: Tokenizer, filled: list[list[int]]) -> Tensor:
    """Ids int64 [windows, T] with start and end tokens; padding is the end token, which the text tower never sees."""
    longest = max(len(ids) for ids in filled)
    return torch.tensor(
        [[tokenizer.start, *ids, *[tokenizer.end] * (1 + longest - len(ids))] for ids in filled], dtype=torch.long
    )
