"""Networks of the transformers library, filled with tensors that were read here: it never downloads anything."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..search.errors import SearchError
from .files import Source, read_json


class Held(nn.Module):
    """A transformers model in a plain module, because ComfyUI's memory manager cannot hold the model itself.

    `anchor` is a weight of no meaning that tells where the network runs and in which precision, even when the manager
    pages the layers in and out.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model
        self.anchor = nn.Parameter(torch.zeros(()), requires_grad=False)
        self.eval()

    def here(self, tensor: Tensor) -> Tensor:
        """The tensor where the network runs, and in its precision if it holds floats."""
        # A memory manager moves weights; tables such as position numbers may have stayed behind.
        with torch.inference_mode(False):
            for module in self.model.modules():
                for name, table in module.named_buffers(recurse=False):
                    if table.device != self.anchor.device:
                        setattr(module, name, table.to(self.anchor.device))
        return tensor.to(self.anchor if tensor.is_floating_point() else self.anchor.device)


def read_config(path: Path) -> dict[str, Any]:
    """The config.json beside a weights file, without what it says about precision; empty when there is none."""
    return without_precision(read_json(path.parent / "config.json"))


def without_precision(config: dict[str, Any]) -> dict[str, Any]:
    """A config whose network will be made in float32, with those of its towers."""
    kept = {name: value for name, value in config.items() if name not in ("dtype", "torch_dtype")}
    return {name: without_precision(value) if isinstance(value, dict) else value for name, value in kept.items()}


def made_config(kind: Any, told: dict[str, Any], path: Path) -> Any:
    """A config of the class `kind` from what config.json says. Raises SearchError when it does not make sense."""
    refused: tuple[type[Exception], ...] = (TypeError, ValueError, *_strict_errors())
    try:
        return kind.from_dict(told)
    except refused as error:
        reason = " ".join(str(error).split())
        raise SearchError(f"file: config.json beside {path.name} is damaged ({reason}); download it again") from error


def _strict_errors() -> tuple[type[Exception], ...]:
    """What recent configs raise for a value of the wrong type; older ones have no such error."""
    try:
        from huggingface_hub.errors import StrictDataclassError
    except ImportError:
        return ()
    return (StrictDataclassError,)


def filled(
    kind: Any,
    config: Any,
    tensors: dict[str, Tensor],
    path: Path,
    source: Source,
    ignored: Iterable[str] = (),
    **more: Any,
) -> Any:
    """A model of the transformers class `kind`, in float32 on the CPU, with the tensors of the file `path`.

    Names are those of files on the hub; the library translates them into its own. Tensors whose names start with one
    of `ignored` may be left over or missing. `more` are arguments of the class itself. Raises SearchError when any
    other tensor is left over, missing or of another shape, and when the config makes no network.
    """
    tensors = {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}
    # Tensors made inside ComfyUI's inference mode could never take part in a gradient.
    with torch.inference_mode(False):
        try:
            model, told = kind.from_pretrained(
                None,
                config=config,
                state_dict=tensors,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **more,
            )
        except (RuntimeError, ValueError, KeyError, ZeroDivisionError) as error:
            reason = " ".join(str(error).split())
            raise SearchError(
                f"file: config.json beside {path.name} does not describe a {kind.__name__} ({reason}); {source}"
            ) from error
    ignored = tuple(ignored)
    wrong = dict(_mismatch(found) for found in told["mismatched_keys"])
    wrong |= {name: f"{name}: got nothing; expected a tensor" for name in told["missing_keys"]}
    wrong |= {name: f"{name}: got a tensor; expected none" for name in told["unexpected_keys"]}
    said = [wrong[name] for name in sorted(wrong) if not name.startswith(ignored)] + list(told["error_msgs"])
    if said:
        raise SearchError(
            f"file: {path.name} is no {kind.__name__} of the size that is expected: {len(said)} of its tensors do not "
            f"fit, first {said[0]}; {source}"
        )
    return model.float().eval().requires_grad_(False)


def _mismatch(found: Any) -> tuple[str, str]:
    """The name of a tensor of the wrong shape, and a sentence about it; transformers 4 tells the name alone."""
    if isinstance(found, str):
        return found, f"{found}: got another shape than its config tells"
    name, got, right = found
    return name, f"{name}: got {tuple(got)}; expected {tuple(right)}"


def in_linear_layers(model: Any) -> Any:
    """The model with every nn.MultiheadAttention in it replaced by a `LinearAttention`."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.MultiheadAttention):
                setattr(parent, name, LinearAttention(child))
    return model


class LinearAttention(nn.Module):
    """Torch's multi-head attention out of plain linear layers, which a memory manager knows how to page and cast."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.heads = attention.num_heads
        width = attention.embed_dim
        weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
        layers = [(w, b) for w, b in zip(weights, biases, strict=True)]
        layers.append((attention.out_proj.weight, attention.out_proj.bias))
        made = []
        for weight, bias in layers:
            layer = nn.Linear(width, width, device="meta")
            layer.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
            layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
            made.append(layer)
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = made
        self.eval()

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor]:
        """query [B, Q, D], key and value [B, T, D] -> ([B, Q, D],)."""
        q, k, v = (
            projection(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection, x in ((self.q_proj, query), (self.k_proj, key), (self.v_proj, value))
        )
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return (self.out_proj(mixed.transpose(1, 2).flatten(-2)),)
