"""A SigLIP with random weights and a SentencePiece model of its own."""

import io
from pathlib import Path
from typing import Any

from pack.tests.verifiers.samples import towers

TEXTS = [
    "two red circles left of a blue square", "three green crosses below the purple triangle", "a picture of a cat",
    "one yellow star on the right", "a photo of a black dog and a white bird",
]  # fmt: skip


def sentence_pieces() -> bytes:
    """A small SentencePiece model: </s> is 1 and stands for padding too, as in SigLIP's."""
    import sentencepiece

    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 5), model_writer=made, vocab_size=60, hard_vocab_limit=False, pad_id=0,
        eos_id=1, unk_id=2, bos_id=-1, num_threads=1, minloglevel=2,
    )  # fmt: skip
    return made.getvalue()


def settings(folder: Path) -> dict[str, Any]:
    towers.siglip(folder)
    (folder / "spiece.model").write_bytes(sentence_pieces())
    return {"file": str(folder / "model.safetensors")}
