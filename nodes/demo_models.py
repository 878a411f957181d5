"""Load Demo Text Encoder: the demo world's text encoder as a stock CLIP."""

from __future__ import annotations

import json
from typing import Any

import comfy.clip_model
import comfy.sd
import comfy.sd1_clip
import comfy.utils
from comfy_api.latest import io

from . import sockets
from .model_files import DEMO_MODELS

FOLDER = DEMO_MODELS / "clip" / "noise_search_demo_clip"


class _Target:
    """What comfy.sd.CLIP is built from: the tokenizer and the network, both of ComfyUI."""

    def __init__(self, config: dict[str, Any]) -> None:
        text = config["text_config"]
        length = text["max_position_embeddings"]

        def tokenizer(embedding_directory: Any = None, tokenizer_data: Any = None) -> Any:
            words = comfy.sd1_clip.SDTokenizer(
                tokenizer_path=str(FOLDER), max_length=length, embedding_directory=embedding_directory,
                embedding_size=text["hidden_size"],
            )  # fmt: skip
            return comfy.sd1_clip.SD1Tokenizer(tokenizer=lambda **_: words)

        def network(device: Any = "cpu", dtype: Any = None, model_options: Any = None, **_: Any) -> Any:
            special = {"start": text["bos_token_id"], "end": text["eos_token_id"], "pad": text["eos_token_id"]}

            def transformer(config: dict[str, Any], dtype: Any, device: Any, operations: Any) -> Any:
                made = comfy.clip_model.CLIPTextModel(config, dtype, device, operations)
                # the host gives every CLIP the 49408 words of OpenAI's; this one knows a few hundred
                words, width = config["vocab_size"], config["hidden_size"]
                made.set_input_embeddings(operations.Embedding(words, width, dtype=dtype, device=device))
                return made

            def tower(device: Any, dtype: Any, model_options: Any) -> Any:
                return comfy.sd1_clip.SDClipModel(
                    device=device, dtype=dtype, max_length=length, textmodel_json_config=dict(text),
                    special_tokens=special, model_options=model_options, model_class=transformer,
                )  # fmt: skip

            return comfy.sd1_clip.SD1ClipModel(
                device=device, dtype=dtype, model_options=model_options, clip_model=tower
            )

        self.params: dict[str, Any] = {}
        self.tokenizer, self.clip = tokenizer, network


def load_text_encoder() -> Any:
    """The demo world's text encoder as a comfy CLIP."""
    config = json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))
    weights = comfy.utils.load_torch_file(str(FOLDER / "model.safetensors"), safe_load=True)
    text = {k: v for k, v in weights.items() if k.startswith(("text_model.", "text_projection."))}
    return comfy.sd.CLIP(_Target(config), state_dict=[text], parameters=sum(v.numel() for v in text.values()))


class LoadDemoTextEncoder(io.ComfyNode):
    """The text encoder of the demo world."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NoiseSearchLoadDemoTextEncoder",
            display_name="Load Demo Text Encoder",
            category=f"{sockets.CATEGORY}/demo",
            description="The text encoder of the tiny demo world in this pack: pictures of coloured shapes.",
            inputs=[],
            outputs=[io.Clip.Output(tooltip="For CLIP Text Encode, with the demo models.")],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(load_text_encoder())
