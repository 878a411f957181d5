"""ImageReward v1.0 (Xu et al. 2023, arXiv 2304.05977): what people would like better as an answer to the prompt."""

from __future__ import annotations

import torch
from torch import Tensor

from .bert_text import Bert, load_bert
from .clip_file import OPENAI_MEAN, OPENAI_STD
from .files import Download, Source, read_tensors, weights_at
from .image_reward_network import ImageRewardNetwork, read_network
from .images import normalised, scored, square
from .kinds import Setting, VerifierKind
from .notes import note, short

HUB = "https://huggingface.co"
SOURCE = Source(
    file="ImageReward.pt",
    address=f"{HUB}/THUDM/ImageReward",
    size="1.79 GB",
    licence="Apache-2.0",
    put="ComfyUI's models/verifiers/ImageReward",
    downloads=(Download(f"{HUB}/THUDM/ImageReward/resolve/main/ImageReward.pt", "ImageReward/ImageReward.pt"),),
)
VOCABULARY = Source(
    file="vocab.txt",
    address=f"{HUB}/google-bert/bert-base-uncased",
    size="232 kB",
    licence="Apache-2.0",
    put="ComfyUI's models/verifiers/ImageReward, beside ImageReward.pt",
    downloads=(Download(f"{HUB}/google-bert/bert-base-uncased/resolve/main/vocab.txt", "ImageReward/vocab.txt"),),
)
#: Tokens that the model was trained to read, with [CLS] and [SEP].
LENGTH = 35


class ImageReward:
    """A reward learned from 137 thousand comparisons by people: about -2.3 to 2, higher is better.

    It reads the first 33 word pieces of a prompt; that a longer one was cut off is said once, in the log and in
    `notes`. Non-square images are cropped to the middle.
    """

    name = "ImageReward"
    differentiable = True
    needs_prompt = True
    # FLUX.1-dev on DrawBench has a mean of 0.97 (arXiv 2501.09732, table 8). Within one prompt the standard deviation
    # is 0.47: 200 seeds each of 200 prompts by FLUX.1-dev and SDXL (rewards published with TTSnap on GitHub).
    scale: tuple[float, float] | None = (0.97, 0.47)
    heads = ("head",)

    def __init__(self, network: ImageRewardNetwork, tokenizer: Bert) -> None:
        self.module = network
        self.notes: list[str] = []
        self._tokenizer = tokenizer

    def score(self, images: Tensor, prompt: str) -> Tensor:
        """images [B, H, W, 3] in 0..1 -> scores float32 [B] on the CPU."""
        # Made outside inference mode, or they could not take part in a gradient.
        with torch.inference_mode(False):
            ids, mask, pieces = self._tokenizer.read(prompt, LENGTH)
        if pieces > LENGTH - 2:
            read = f"ImageReward read only the first {LENGTH - 2} of the {pieces} word pieces of {short(prompt)}"
            note(self.notes, read, about=prompt)

        def of(pixels: Tensor) -> Tensor:
            pixels = normalised(square(pixels, self.module.size), OPENAI_MEAN, OPENAI_STD)
            rewards: Tensor = self.module(pixels, ids, mask)
            return rewards

        return scored(images, of)


def load_image_reward(file: str) -> ImageReward:
    """ImageReward with the weights in `file`, and the vocabulary of BERT beside it.

    Raises SearchError when one of the two is missing, damaged or of another network.
    """
    path = weights_at(file, SOURCE)
    with torch.inference_mode(False):
        tensors = read_tensors(path, SOURCE)
    network = read_network(path, tensors, SOURCE)
    return ImageReward(network, load_bert(path.parent, VOCABULARY, network.tokens))


KIND = VerifierKind(
    key="image_reward",
    name="ImageReward",
    description="A reward learned from people who ranked pictures for a prompt: fit, looks and flaws in one number.",
    use_for="Photos and art from prompts of up to about 25 words: the single verifier to start with.",
    fooled_by="Detail and saturation beyond the prompt; it reads 33 word pieces and ignores the rest.",
    load=load_image_reward,
    settings=(
        Setting(
            "file", "file", "ImageReward/ImageReward.pt",
            "ImageReward.pt, or its tensors as .safetensors, with BERT's vocab.txt beside it.",
            folders=("verifiers",),
        ),
    ),
    sources=(SOURCE, VOCABULARY),
)  # fmt: skip
