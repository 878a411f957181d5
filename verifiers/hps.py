"""HPSv2 and HPSv2.1 (Wu et al. 2023, arXiv 2306.09341): a CLIP ViT-H/14 trained on which images people preferred."""

from __future__ import annotations

from .clip_file import read_clip
from .cosine_verifier import CosineVerifier
from .dual_tower import towers
from .files import Download, Source
from .images import letterbox
from .kinds import Setting, VerifierKind

_AT = "https://huggingface.co/xswu/HPSv2"


def _source(file: str) -> Source:
    return Source(
        file=file,
        address=_AT,
        size="1.97 GB",
        licence="Apache-2.0",
        put="ComfyUI's models/verifiers/HPSv2",
        downloads=(Download(f"{_AT}/resolve/main/{file}", f"HPSv2/{file}"),),
    )


SOURCE, OLDER = _source("HPS_v2.1_compressed.pt"), _source("HPS_v2_compressed.pt")
#: FLUX.1-dev has a mean of 0.29, and images of one prompt differ by 0.008 (published candidate scores of FLUX.1-dev).
SCALE = (0.29, 0.008)


def load_hps(file: str, text_file: str = "", tokenizer: str = "") -> CosineVerifier:
    """HPSv2: the plain cosine, 0.2 to 0.35 for ordinary images; papers print a hundred times that.

    The whole picture is seen, with black bars if it is not square. `tokenizer` is a directory with CLIP's vocab.json
    and merges.txt, for a file that has none beside it. Raises SearchError when the file or the tokenizer is missing or
    of the wrong kind.
    """
    clip = read_clip(file, text_file=text_file, source=SOURCE)
    return CosineVerifier("HPSv2", towers(clip, tokenizer, "HPSv2", letterbox), scale=SCALE)


KIND = VerifierKind(
    key="hps",
    name="HPSv2",
    description="How people would like the image for its prompt; sees the whole picture, not just its middle.",
    load=load_hps,
    settings=(
        Setting(
            "file", "file", "HPSv2/HPS_v2.1_compressed.pt",
            "HPS_v2.1_compressed.pt, or that of version 2.0, whose scores are on another scale.",
            folders=("verifiers",),
        ),
        Setting(
            "text_file", "file", "",
            "Only for a file with an image tower alone: the text tower of the same HPSv2.",
            folders=("verifiers", "text_encoders"), optional=True,
        ),
    ),
    host=("tokenizer",),
    use_for="Human preference on images that are not square; as one member of an ensemble.",
    fooled_by="Glossy, saturated, heavily detailed pictures, whatever the prompt says.",
    sources=(SOURCE, OLDER),
)  # fmt: skip
