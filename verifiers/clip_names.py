"""The two spellings of a CLIP's tensors: OpenCLIP's (and OpenAI's) are turned into Hugging Face's."""

from __future__ import annotations

from torch import Tensor

#: OpenCLIP name -> Hugging Face name of what stands alone; the blocks of the transformers follow below.
_SINGLE = {
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
#: Matrices that OpenCLIP multiplies from the right, and linear layers hold transposed.
_TRANSPOSED = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}
_BLOCKS = {
    "transformer.resblocks.": "text_model.encoder.layers.",
    "visual.transformer.resblocks.": "vision_model.encoder.layers.",
}
_IN_BLOCK = {
    "ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}  # fmt: skip
_NO_WEIGHTS = ("attn_mask", "input_resolution", "context_length", "vocab_size")


def hugging_face_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a CLIP under the names of Hugging Face's CLIPModel; what has them already is left as it is.

    OpenCLIP keeps query, key and value in one matrix and its projections transposed. Masks, counts and positions,
    which networks make themselves, are left out.
    """
    named: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name in _NO_WEIGHTS or name.endswith(".position_ids"):
            continue
        if name in _TRANSPOSED:
            named[_TRANSPOSED[name]] = tensor.T.contiguous()
        elif not (block := next((prefix for prefix in _BLOCKS if name.startswith(prefix)), None)):
            named[_SINGLE.get(name, name)] = tensor
        else:
            number, _, part = name[len(block) :].partition(".")
            named |= _in_block(f"{_BLOCKS[block]}{number}.", part, tensor)
    return named


def _in_block(prefix: str, part: str, tensor: Tensor) -> dict[str, Tensor]:
    layer, _, kind = part.rpartition(".")
    if part in ("attn.in_proj_weight", "attn.in_proj_bias"):
        kind = part.removeprefix("attn.in_proj_")
        return {f"{prefix}self_attn.{x}_proj.{kind}": t for x, t in zip("qkv", tensor.chunk(3), strict=True)}
    return {f"{prefix}{_IN_BLOCK.get(layer, layer)}.{kind}": tensor}
