"""A vision-language model that the graph has loaded as a CLIP, for judges that ask questions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import comfy.model_management
import torch
from torch.nn import functional

from ..search.errors import SearchError

#: Image sizes are multiples of this: patches of 16 pixels, merged two by two into one token.
MULTIPLE = 32
#: Pixels of an image: the least of Qwen3-VL's own image processor, and 512 x 512, which are 256 tokens.
LEAST, MOST = 256 * 256, 512 * 512
#: What Qwen3-VL-Instruct's chat template makes of one image and one question: the question stands between these.
#: (ComfyUI's own template adds an empty block of thoughts to the answer, which the Instruct models do not know.)
IMAGE = "<|image_pad|>"
BEFORE = f"<|im_start|>user\n<|vision_start|>{IMAGE}<|vision_end|>"
AFTER = "<|im_end|>\n<|im_start|>assistant\n"

WRONG = {
    "Qwen25_7BVLI": ": ComfyUI leaves out its output layer, so that its answers would be wrong",
    "Qwen35_": ": ComfyUI shifts its images by the mean of another model, so that its answers would be wrong",
    "MiniMaxQwen3VL": ": its file leaves out the last layers, so that it cannot answer",
}


class HostVisionLanguageModel:
    """Qwen3-VL 4B or 8B from a CLIP, asked with ComfyUI's own code and memory manager, in float32.

    Takes every CLIP whose encoder is a whole Qwen3-VL, whatever image model it is meant for. Raises SearchError for
    any other: text encoders cannot see, and no other model's answers have been compared with its makers' own code.
    """

    def __init__(self, clip: Any) -> None:
        encoder = getattr(clip.cond_stage_model, str(getattr(clip.cond_stage_model, "clip", "")), None)
        network = getattr(encoder, "transformer", None)
        kind = type(network if network is not None else clip.cond_stage_model).__name__
        if not hasattr(network, "build_image_inputs") or network.model.norm is None:
            raise SearchError(
                f"vlm: got a CLIP with {kind}{WRONG.get(kind, '')}; expected Qwen3-VL 4B or 8B: load "
                "qwen3vl_4b_fp8_scaled.safetensors or qwen3vl_8b_fp8_scaled.safetensors in Load CLIP, "
                "with the type left at stable_diffusion"
            )
        self.name = str(clip.cond_stage_model.clip_name)
        self._clip, self._encoder, self._network = clip, encoder, network
        self._tokenizer = getattr(clip.tokenizer, clip.tokenizer.clip).tokenizer

    @torch.no_grad()
    def next_token_logits(self, image: torch.Tensor, question: str) -> torch.Tensor:
        """Logits float32 [vocabulary] of the first token of the answer, on the CPU. image [1, H, W, 3] in 0..1.

        The image is resized, see `resized`. A question's words mean what they say: marks of the chat template, names
        of embeddings and weights in brackets are plain text here. Raises ComfyUI's interrupt when the user cancels.
        """
        comfy.model_management.throw_exception_if_processing_interrupted()
        device = self._clip.patcher.load_device
        ids = self._ids(question, resized(image))
        head = self._network.get_input_embeddings().weight
        # the output layer, or the embedding that stands in for it, is turned into float32 as a whole
        comfy.model_management.load_models_gpu([self._clip.patcher], memory_required=4 * head.shape[0] * head.shape[1])
        with comfy.model_management.cuda_device_context(device):
            embedded, _, _, found = self._encoder.process_tokens([ids], device)
            positions, seen, deep = self._network.build_image_inputs(embedded, found)
            hidden = self._network.model.forward(
                None, embeds=embedded, attention_mask=None, input_ids=None, position_ids=positions,
                visual_pos_masks=seen, deepstack_embeds=deep,
            )[0]  # fmt: skip
            logits: torch.Tensor = self._network.logits(hidden)[0, -1].float().cpu()
        return logits

    def tokens(self, word: str) -> Sequence[int]:
        """The ids of the single tokens that are `word`, `word` itself first: see `VisionLanguageModel`."""
        forms = [space + form for form in (word, word.lower(), word.capitalize()) for space in ("", " ")]
        ids = [self._tokenizer(form)["input_ids"] for form in forms]
        return list(dict.fromkeys(i[0] for i in ids if len(i) == 1))

    def _ids(self, question: str, image: torch.Tensor) -> list[Any]:
        """Token ids of the whole chat, with the image in its place, as the encoder takes it."""
        written = self._tokenizer(question, split_special_tokens=True)["input_ids"]
        ids = [*self._tokenizer(BEFORE)["input_ids"], *written, *self._tokenizer(AFTER)["input_ids"]]
        picture = {"type": "image", "data": image, "original_type": "image"}
        place = ids.index(self._tokenizer.convert_tokens_to_ids(IMAGE))
        return [*ids[:place], picture, *ids[place + 1 :]]


def resized(image: torch.Tensor) -> torch.Tensor:
    """An image [1, H, W, 3] in 0..1 at the size the model takes, so that ComfyUI's own resizing does nothing.

    ComfyUI's is bilinear without antialias, which makes artefacts of a large image. This one is antialiased bicubic, to
    the size that Qwen's image processor would choose between LEAST and MOST pixels.
    """
    height, width = fitting(*image.shape[1:3])
    pixels = image[..., :3].float().movedim(-1, 1)
    if pixels.shape[2:] != (height, width):
        pixels = functional.interpolate(pixels, (height, width), mode="bicubic", antialias=True, align_corners=False)
    return pixels.clamp(0, 1).movedim(1, -1)


def fitting(height: int, width: int) -> tuple[int, int]:
    """The size in multiples of 32 with the same shape, and from LEAST to MOST pixels."""
    high, wide = (round(side / MULTIPLE) * MULTIPLE for side in (height, width))
    area = height * width
    if high * wide > MOST:
        high, wide = (_multiple(math.floor, side * math.sqrt(MOST / area)) for side in (height, width))
    elif high * wide < LEAST:
        high, wide = (_multiple(math.ceil, side * math.sqrt(LEAST / area)) for side in (height, width))
    return high, wide


def _multiple(rounding: Any, side: float) -> int:
    return max(MULTIPLE, rounding(side / MULTIPLE) * MULTIPLE)
