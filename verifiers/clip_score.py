"""CLIPScore (Hessel et al. 2021, arXiv 2104.08718): how well an image and a prompt agree in CLIP's embedding."""

from __future__ import annotations

from torch import Tensor

from ..search.errors import SearchError
from .clip_file import LARGE, SOURCE, read_clip
from .dual_tower import LONG_PROMPTS, DualTower, towers
from .images import scored
from .kinds import Setting, VerifierKind
from .ports import ImageTower, TextTower

#: Mean and standard deviation of the cosine, by (width of the image tower, patch).
COSINES: dict[tuple[int, int], tuple[float, float]] = {
    # The demo's CLIP on pictures of its prompts and near misses; a test measures it again (0.387 and 0.115).
    (128, 8): (0.387, 0.10),
    # OpenAI's B/32 and L/14, estimated from arXiv 2501.09732: FLUX.1-dev has a mean of 0.71 / 2.5, and the best of 96
    # candidates, some 2.5 standard deviations above it if they are normal, has 0.82 / 2.5.
    (768, 32): (0.284, 0.018),
    (1024, 14): (0.284, 0.018),
}


class CLIPScore:
    """`weight * max(cosine, 0)` of the image's and the prompt's CLIP embeddings: 0 to `weight`.

    `prefix` is put before every prompt (the paper has "A photo depicts "). What becomes of a prompt over CLIP's limit
    is the towers' `long_prompts`. The gradient is zero where the cosine is negative.
    """

    name = "CLIPScore"
    needs_prompt = True

    def __init__(
        self,
        towers: DualTower,
        weight: float = 2.5,
        prefix: str = "",
        cosine: tuple[float, float] | None = None,
    ) -> None:
        self.towers, self.module = towers, towers.module
        self.weight, self.prefix = weight, prefix
        # The host's own towers have weights that no gradient can pass.
        self.differentiable = towers.module is not None
        self.scale = None if cosine is None else (weight * cosine[0], weight * cosine[1])
        self.notes = towers.notes

    def score(self, images: Tensor, prompt: str) -> Tensor:
        """images [B, H, W, 3] in 0..1 -> scores float32 [B] on the CPU. Non-square images are cropped to the middle."""
        text = self.towers.prompt(self.prefix + prompt)
        return scored(images, lambda pixels: self.weight * self.towers.dot(pixels, text).clamp(min=0))

    def features(self, images: Tensor) -> Tensor:
        """The tower's unit embeddings float32 [B, D] on the CPU of images [B, H, W, 3] in 0..1."""
        return self.towers.features(images)


def load_clip_score(
    file: str,
    weight: float = 2.5,
    prefix: str = "",
    long_prompts: str = "chunk",
    activation: str = "auto",
    text_file: str = "",
    clip_vision: ImageTower | None = None,
    clip_text: TextTower | None = None,
    tokenizer: str = "",
) -> CLIPScore:
    """CLIPScore with the CLIP of `file` (and of `text_file`, if it is an image tower alone), or with two loaded towers.

    `tokenizer` is a directory with CLIP's vocab.json and merges.txt, for a file that has none beside it. Raises
    SearchError when the file or the tokenizer is missing or of the wrong kind, or one of the two towers is missing.
    """
    if clip_vision is not None and clip_text is not None:
        return CLIPScore(DualTower(clip_vision, clip_text, long_prompts=long_prompts), weight, prefix)
    if clip_vision is not None or clip_text is not None:
        lacking = "clip_text" if clip_text is None else "clip_vision"
        raise SearchError(f"{lacking}: got nothing; wire both clip_vision and clip_text, or none to use the file")
    clip = read_clip(file, activation, text_file=text_file)
    sizes = clip.network.sizes
    cosine = COSINES.get((sizes.vision.width, sizes.patch))
    return CLIPScore(towers(clip, tokenizer, "CLIPScore", long_prompts=long_prompts), weight, prefix, cosine)


KIND = VerifierKind(
    key="clip_score",
    name="CLIPScore",
    description="How well image and prompt agree in CLIP's embedding. Weak at counts and at what is where.",
    load=load_clip_score,
    settings=(
        Setting(
            "file", "file", "noise_search_demo_clip/model.safetensors",
            "A CLIP in Hugging Face's or OpenCLIP's naming, best in a folder of its own with its JSON files. "
            "CLIPScore's own is openai/clip-vit-base-patch32; the small one of the demo knows only coloured shapes.",
            folders=("verifiers", "clip_vision", "text_encoders"),
        ),
        Setting(
            "weight", "float", 2.5, "The score is this times the cosine of image and prompt. The paper has 2.5.",
            minimum=0.01, maximum=100.0, step=0.01,
        ),
        Setting("prefix", "text", "", 'Put before the prompt. The paper has "A photo depicts "; most others nothing.'),
        Setting(
            "long_prompts", "choice", LONG_PROMPTS[0],
            "What to do with a prompt over CLIP's 75 tokens: chunk reads it in pieces, truncate drops the rest.",
            options=LONG_PROMPTS,
        ),
        Setting(
            "activation", "choice", "auto",
            "auto asks config.json, or guesses by size for a file without one: OpenAI's have quick_gelu, LAION's gelu.",
            options=("auto", "quick_gelu", "gelu"),
        ),
        Setting(
            "text_file", "file", "",
            "Only for a file with an image tower alone, as ComfyUI has them: the text tower that belongs to it.",
            folders=("verifiers", "clip_vision", "text_encoders"), optional=True,
        ),
        Setting(
            "clip_vision", "clip_vision", None,
            "An image tower that the graph has loaded; with clip_text it replaces the file. Its gradient is not known.",
            optional=True,
        ),
        Setting(
            "clip_text", "clip_text", None,
            "A CLIP whose text tower belongs to clip_vision: CLIP-L for ViT-L/14, CLIP-H for ViT-H/14.",
            optional=True,
        ),
    ),
    host=("tokenizer",),
    use_for="Keeping the picture to the prompt; the papers' baseline.",
    fooled_by="Words of the prompt written into the picture; right objects in wrong numbers, places or colours.",
    sources=(SOURCE, LARGE),
)  # fmt: skip
