"""Writes the demo's CLIP tokenizer: a byte-level BPE whose merges build every word of the demo world's prompts.

All 256 bytes are in the vocabulary, with and without the end-of-word mark, so that any text can be encoded; a word
of the grammar is one token.
"""

from __future__ import annotations

import json
from pathlib import Path

from .scenes import COLOURS, NUMBERS, PLURALS, RELATIONS, SHAPES

START = "<|startoftext|>"
END = "<|endoftext|>"
MAX_LENGTH = 16
_MARK = "</w>"


def words() -> list[str]:
    """Every word that becomes a single token, in a fixed order."""
    listed = list(NUMBERS.values()) + list(COLOURS) + list(SHAPES) + list(PLURALS.values())
    listed += [word for relation in RELATIONS for word in relation.split()]
    listed += ["and", "to", "the", "of", "an", "one", "picture", "image", "photo", "drawing", "is", "with", "on"]
    return list(dict.fromkeys(listed))


def byte_alphabet() -> list[str]:
    """The printable stand-in of each of the 256 bytes, in GPT-2's and CLIP's order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = [chr(byte) for byte in printable]
    # Bytes that do not print borrow the code points from 256 on.
    alphabet += [chr(256 + index) for index in range(256 - len(printable))]
    return alphabet


def merges() -> list[tuple[str, str]]:
    """The BPE merges, most important first: each word is built from left to right."""
    rules: list[tuple[str, str]] = []
    for word in words():
        pieces = [*word[:-1], word[-1] + _MARK]
        pieces = _apply(pieces, rules)
        while len(pieces) > 1:
            rules.append((pieces[0], pieces[1]))
            pieces = _apply([pieces[0] + pieces[1], *pieces[2:]], rules)
    return rules


def _apply(pieces: list[str], rules: list[tuple[str, str]]) -> list[str]:
    ranks = {rule: rank for rank, rule in enumerate(rules)}
    while len(pieces) > 1:
        pairs = [ranks.get(pair, len(rules)) for pair in zip(pieces, pieces[1:], strict=False)]
        best = min(pairs)
        if best == len(rules):
            return pieces
        at = pairs.index(best)
        pieces = [*pieces[:at], pieces[at] + pieces[at + 1], *pieces[at + 2 :]]
    return pieces


def vocabulary() -> dict[str, int]:
    """Token to id: 256 bytes, 256 bytes that end a word, the merges, then start and end."""
    alphabet = byte_alphabet()
    tokens = alphabet + [byte + _MARK for byte in alphabet] + [a + b for a, b in merges()] + [START, END]
    return {token: index for index, token in enumerate(dict.fromkeys(tokens))}


def write(folder: str | Path) -> None:
    """Writes vocab.json, merges.txt, tokenizer_config.json and special_tokens_map.json into `folder`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": MAX_LENGTH,
        **special,
    }
    lines = ["#version: 0.2", *(" ".join(rule) for rule in merges())]
    (folder / "vocab.json").write_text(json.dumps(vocabulary(), ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n", encoding="utf-8")
