"""PickScore (Kirstain et al. 2023, arXiv 2305.01569): a CLIP ViT-H/14 trained on which of two images users picked."""

from __future__ import annotations

from math import exp

from ..search.errors import SearchError
from .clip_file import read_clip
from .cosine_verifier import CosineVerifier
from .dual_tower import towers
from .files import Download, Source
from .kinds import Setting, VerifierKind

_AT = "https://huggingface.co/yuvalkirstain/PickScore_v1"
_FILES = ("model.safetensors", "config.json", "preprocessor_config.json", "vocab.json", "merges.txt")
SOURCE = Source(
    file="model.safetensors with config.json, preprocessor_config.json, vocab.json and merges.txt",
    address=_AT,
    size="3.94 GB",
    licence="see the model page",
    put="ComfyUI's models/verifiers/PickScore_v1",
    downloads=tuple(Download(f"{_AT}/resolve/main/{file}", f"PickScore_v1/{file}") for file in _FILES),
)
#: SDXL on DrawBench has a mean of 22.4 (arXiv 2501.09732); images of one prompt differ by 0.6 (published candidate
#: scores of FLUX.1-dev and SDXL).
SCALE = (22.4, 0.6)


def load_pick_score(file: str, text_file: str = "", tokenizer: str = "") -> CosineVerifier:
    """PickScore: exp(logit_scale) * cosine, 17 to 24 for ordinary images; pictures are cropped to their middle.

    `tokenizer` is a directory with CLIP's vocab.json and merges.txt, for a file that has none beside it. Raises
    SearchError when the file or the tokenizer is missing or of the wrong kind, or the file has no logit_scale.
    """
    clip = read_clip(file, text_file=text_file, source=SOURCE)
    if clip.logit_scale is None:
        raise SearchError(f"file: there is no logit_scale, by which PickScore multiplies the cosine; {SOURCE}")
    return CosineVerifier("PickScore", towers(clip, tokenizer, "PickScore"), exp(clip.logit_scale), 0.0, SCALE)


KIND = VerifierKind(
    key="pick_score",
    name="PickScore",
    description="Which of several images of a prompt users would pick.",
    load=load_pick_score,
    settings=(
        Setting(
            "file", "file", "PickScore_v1/model.safetensors",
            "PickScore v1, in Hugging Face's or OpenCLIP's naming, best in a folder of its own with its JSON files.",
            folders=("verifiers",),
        ),
        Setting(
            "text_file", "file", "",
            "Only for a file with an image tower alone: the text tower of PickScore, with its logit_scale.",
            folders=("verifiers", "text_encoders"), optional=True,
        ),
    ),
    host=("tokenizer",),
    use_for="General preference, with the prompt in view: the best small judge of new models' images.",
    fooled_by="Contrast, saturation and drama; it forgives wrong counts.",
    sources=(SOURCE,),
)  # fmt: skip
