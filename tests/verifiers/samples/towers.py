"""Image towers with random weights as transformers writes them: folders that verifiers of several kinds share."""

from pathlib import Path
from typing import Any

import torch

LABELS = {0: "tench, Tinca tinca", 1: "red circle", 2: "circle", 3: "crane", 4: "crane", 5: "blue square"}


def written(model: Any, folder: Path, seed: int = 41) -> Path:
    """Spread the weights of a model, so that pictures do not all look the same to it, and save it."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += 0.08 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder)
    return folder


def dinov2(folder: Path, kind: str = "Dinov2Model", **more: Any) -> Path:
    """A DINOv2 that takes 28 pixels and has positions for 56; `kind` may be a classifier or one with registers."""
    import transformers
    from transformers import BitImageProcessor

    config = getattr(transformers, "Dinov2WithRegistersConfig" if "Registers" in kind else "Dinov2Config")
    sizes = {
        "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1, "image_size": 56, "patch_size": 14,
        "mlp_ratio": 2, "layerscale_value": 0.5, **more,
    }  # fmt: skip
    torch.manual_seed(42)
    written(getattr(transformers, kind)(config(**sizes)).eval(), folder)
    BitImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28}, image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    ).save_pretrained(folder)  # fmt: skip
    return folder


def dinov3(folder: Path, **more: Any) -> Path:
    """A DINOv3 for pictures of 32 pixels."""
    from transformers import DINOv3ViTConfig, DINOv3ViTImageProcessor, DINOv3ViTModel

    sizes = {
        "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1, "intermediate_size": 96,
        "image_size": 32, "patch_size": 8, "num_register_tokens": 4, **more,
    }  # fmt: skip
    torch.manual_seed(43)
    written(DINOv3ViTModel(DINOv3ViTConfig(**sizes)).eval(), folder)
    DINOv3ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def siglip(folder: Path, tokens: int = 64, resample: int = 3) -> Path:
    """A SigLIP with both towers for pictures of 32 pixels and texts of 16 tokens; it has no tokenizer."""
    from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel

    ends = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 1}
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 1}
    text = {**sizes, **ends, "vocab_size": tokens, "max_position_embeddings": 16, "projection_size": 64}
    torch.manual_seed(44)
    model = SiglipModel(SiglipConfig(text_config=text, vision_config={**sizes, "image_size": 32, "patch_size": 8}))
    model.logit_scale.data.fill_(2.0)
    model.logit_bias.data.fill_(-0.5)
    written(model.eval(), folder)
    SiglipImageProcessor(size={"height": 32, "width": 32}, resample=resample).save_pretrained(folder)
    return folder


def classifier(folder: Path) -> Path:
    """A DINOv2 with a linear head over six classes, two of which share a name."""
    return dinov2(
        folder, "Dinov2ForImageClassification", id2label=LABELS, label2id={v: k for k, v in LABELS.items()},
        num_labels=len(LABELS),
    )  # fmt: skip
