"""An ImageReward with random weights, under the names of the real file, and a small vocabulary."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

WORDS = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz0123456789.,!?-'",
    *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz0123456789"),
    "two", "red", "circle", "left", "of", "a", "blue", "square", "picture",
]  # fmt: skip
VOCABULARY = list(dict.fromkeys(WORDS))
WIDTH, TEXT_WIDTH, LAYERS = 128, 192, 2


def tensors() -> dict[str, Tensor]:
    """All tensors, also those that scoring does not need, for pictures of 32 pixels and 2 layers per tower."""
    generator = torch.Generator().manual_seed(31)
    shapes: dict[str, tuple[int, ...]] = {
        "blip.visual_encoder.cls_token": (1, 1, WIDTH),
        "blip.visual_encoder.pos_embed": (1, 5, WIDTH),
        "blip.visual_encoder.patch_embed.proj.weight": (WIDTH, 3, 16, 16),
        "blip.visual_encoder.patch_embed.proj.bias": (WIDTH,),
        "blip.text_encoder.embeddings.word_embeddings.weight": (len(VOCABULARY) + 2, TEXT_WIDTH),
        "blip.text_encoder.embeddings.position_embeddings.weight": (40, TEXT_WIDTH),
    }

    def linear(name: str, outs: int, ins: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (outs, ins), (outs,)

    def norm(name: str, width: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (width,), (width,)

    norm("blip.visual_encoder.norm", WIDTH)
    norm("blip.text_encoder.embeddings.LayerNorm", TEXT_WIDTH)
    for i in range(LAYERS):
        block, layer = f"blip.visual_encoder.blocks.{i}", f"blip.text_encoder.encoder.layer.{i}"
        norm(f"{block}.norm1", WIDTH)
        norm(f"{block}.norm2", WIDTH)
        linear(f"{block}.attn.qkv", 3 * WIDTH, WIDTH)
        linear(f"{block}.attn.proj", WIDTH, WIDTH)
        linear(f"{block}.mlp.fc1", 160, WIDTH)
        linear(f"{block}.mlp.fc2", WIDTH, 160)
        for attention, seen in (("attention", TEXT_WIDTH), ("crossattention", WIDTH)):
            linear(f"{layer}.{attention}.self.query", TEXT_WIDTH, TEXT_WIDTH)
            linear(f"{layer}.{attention}.self.key", TEXT_WIDTH, seen)
            linear(f"{layer}.{attention}.self.value", TEXT_WIDTH, seen)
            linear(f"{layer}.{attention}.output.dense", TEXT_WIDTH, TEXT_WIDTH)
            norm(f"{layer}.{attention}.output.LayerNorm", TEXT_WIDTH)
        linear(f"{layer}.intermediate.dense", 224, TEXT_WIDTH)
        linear(f"{layer}.output.dense", TEXT_WIDTH, 224)
        norm(f"{layer}.output.LayerNorm", TEXT_WIDTH)
    widths = (TEXT_WIDTH, 48, 24, 16, 8, 1)
    for number, ins, outs in zip((0, 2, 4, 6, 7), widths[:-1], widths[1:], strict=True):
        linear(f"mlp.layers.{number}", outs, ins)
    linear("blip.vision_proj", 32, WIDTH)
    linear("blip.text_proj", 32, TEXT_WIDTH)
    made = {}
    for name, shape in shapes.items():
        spread = 0.08 if len(shape) > 1 else 0.02
        near = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
        made[name] = near + spread * torch.randn(shape, generator=generator)
    made["blip.text_encoder.embeddings.position_ids"] = torch.arange(40)[None]
    return made


def settings(folder: Path) -> dict[str, Any]:
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    torch.save(tensors(), folder / "ImageReward.pt")
    return {"file": str(folder / "ImageReward.pt")}
