"""SigLIP (Zhai et al. 2023, arXiv 2303.15343) and SigLIP 2 (arXiv 2502.14786): does the prompt fit the image, or not.

Trained to decide for every pair by itself, so its logit has a meaning: 0 is as likely as not.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from ..search.errors import SearchError
from .files import Download, read_tensors, weights_at
from .image_towers import SIGLIP as IMAGE_TOWER
from .image_towers import usual
from .images import embedded, scored
from .kinds import Setting, VerifierKind
from .notes import note, short
from .preprocessing import Preprocessing, read_preprocessing
from .pretrained import Held, filled, in_linear_layers, made_config, read_config
from .siglip_text import SigLIPText, load_siglip_text

MEASURES = ("logit", "probability")
SOURCE = replace(
    IMAGE_TOWER,
    file="model.safetensors with config.json, preprocessor_config.json and spiece.model",
    downloads=(
        *IMAGE_TOWER.downloads,
        Download(f"{IMAGE_TOWER.address}/resolve/main/spiece.model", "siglip-base-patch16-224/spiece.model"),
    ),
)
_PROMPTS_KEPT = 64


class SigLIP:
    """How sure SigLIP is that the prompt describes the image: its logit, or the probability 0..1 that it stands for.

    Ranks are the same; the probability is nearly 0 or nearly 1 for most images, so prefer the logit to search with. The
    text tower reads 64 tokens; that a longer prompt was cut off is said once, in the log and in `notes`.
    """

    name = "SigLIP"
    differentiable = True
    needs_prompt = True
    scale: tuple[float, float] | None = None

    def __init__(
        self, network: Held, prepared: Preprocessing, text: SigLIPText, length: int, measure: str = "logit"
    ) -> None:
        if measure not in MEASURES:
            raise SearchError(f"measure: got {measure!r}; expected one of {', '.join(MEASURES)}")
        self.module = network
        self.measure = measure
        self.notes: list[str] = []
        # Read once in float32: half precision would move logits by a tenth.
        self._times, self._bias = float(network.model.logit_scale.exp()), float(network.model.logit_bias)
        self._prepared, self._text, self._length = prepared, text, length
        self._prompts: dict[str, Tensor] = {}

    def score(self, images: Tensor, prompt: str) -> Tensor:
        """images [B, H, W, 3] in 0..1 -> scores float32 [B] on the CPU. Non-square images are squashed, not cropped."""
        text = self._embedded(prompt)

        def of(pixels: Tensor) -> Tensor:
            seen = self._seen(pixels)
            logits: Tensor = seen @ text.to(seen.device) * self._times + self._bias
            return logits if self.measure == "logit" else logits.sigmoid()

        return scored(images, of)

    def features(self, images: Tensor) -> Tensor:
        """The tower's unit embeddings float32 [B, D] on the CPU of images [B, H, W, 3] in 0..1."""
        return embedded(images, self._seen)

    def _seen(self, pixels: Tensor) -> Tensor:
        """Unit embeddings float32 [B, D] of pixels [B, 3, H, W] in 0..1."""
        pixels = self.module.here(self._prepared.normalise(self._prepared.fit(pixels)))
        return functional.normalize(self.module.model.vision_model(pixel_values=pixels).pooler_output.float(), dim=-1)

    def _embedded(self, prompt: str) -> Tensor:
        """The prompt's embedding, float32 [D] of length 1, on the CPU; the last few are kept."""
        if prompt not in self._prompts:
            if len(self._prompts) == _PROMPTS_KEPT:
                del self._prompts[next(iter(self._prompts))]
            ids, pieces = self._text.read(prompt, self._length)
            if pieces >= self._length:
                read = f"SigLIP read only the first {self._length - 1} of the {pieces} tokens of {short(prompt)}"
                note(self.notes, read, about=prompt)
            # Made outside inference mode, or it could not take part in a gradient later.
            with torch.inference_mode(False), torch.no_grad():
                read = self.module.model.text_model(input_ids=self.module.here(ids)).pooler_output
                self._prompts[prompt] = functional.normalize(read[0].float(), dim=-1).cpu()
        return self._prompts[prompt]


def load_siglip(file: str, measure: str = "logit") -> SigLIP:
    """SigLIP with the weights in `file`: a Hugging Face folder of either version, of a fixed size of images.

    Raises SearchError when the weights, config.json or the tokenizer are missing, damaged, or of another model.
    """
    from transformers import SiglipConfig, SiglipModel

    path = weights_at(file, SOURCE)
    told = read_config(path)
    if told.get("model_type") != "siglip":
        raise SearchError(
            f"file: config.json beside {path.name} names a {told.get('model_type', 'nameless')} model; expected siglip "
            f"(SigLIP 2's naflex models are not read, its other ones are); {SOURCE}"
        )
    with torch.inference_mode(False):
        tensors = read_tensors(path, SOURCE)
    config = made_config(SiglipConfig, told, path)
    unused = ("text_model.embeddings.position_ids", "vision_model.embeddings.position_ids")
    network = Held(in_linear_layers(filled(SiglipModel, config, tensors, path, SOURCE, unused)))
    prepared = read_preprocessing(path.parent, usual("siglip", config.vision_config.image_size))
    text = load_siglip_text(path.parent, SOURCE, config.text_config.vocab_size)
    return SigLIP(network, prepared, text, config.text_config.max_position_embeddings, measure)


KIND = VerifierKind(
    key="siglip",
    name="SigLIP",
    description="How sure SigLIP is that the prompt describes the image. It sees the whole picture, squashed.",
    use_for="Prompt fidelity, sharper than CLIPScore and with a meaning at 0; wide and tall pictures.",
    fooled_by="Words drawn into the picture; order, counts and places in a prompt; anything past 64 tokens.",
    load=load_siglip,
    settings=(
        Setting(
            "file", "file", "siglip-base-patch16-224/model.safetensors",
            "A SigLIP or SigLIP 2 (not naflex) in a folder of its own, with its JSON files and its tokenizer.",
            folders=("verifiers",),
        ),
        Setting(
            "measure", "choice", MEASURES[0],
            "logit: the odds, to search with. probability: 0..1, to read; it is flat for most images.",
            options=MEASURES,
        ),
    ),
    sources=(SOURCE,),
)  # fmt: skip
