"""Verifiers whose network ComfyUI's memory manager owns."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import torch

from ..verifiers import VerifierEnsemble
from ..verifiers.images import CHUNK
from .pull_back import kept_weights

#: What the host can keep in RAM and cast when it is called: exactly these classes, whose subclasses may do more.
CASTING = {
    torch.nn.Linear: comfy.ops.manual_cast.Linear,
    torch.nn.Conv2d: comfy.ops.manual_cast.Conv2d,
    torch.nn.LayerNorm: comfy.ops.manual_cast.LayerNorm,
    torch.nn.Embedding: comfy.ops.manual_cast.Embedding,
}


class ManagedVerifier:
    """Loads a verifier's network to score and leaves it to ComfyUI to unload it for the sampler.

    Where the host's text encoders run in half precision, so does the network, but for its `heads`. Where memory is
    short, the host leaves part of the weights in RAM and casts them as they are called.

    Exposes `patcher`, which is where the host looks for the models that an output holds.
    """

    def __init__(self, verifier: Any) -> None:
        self.verifier = verifier
        self.name: str = verifier.name
        device = comfy.model_management.text_encoder_device()
        with torch.inference_mode(False):  # or the weights could take no part in a gradient
            if getattr(verifier, "half", True) and comfy.model_management.should_use_fp16(device):
                halve(verifier.module, getattr(verifier, "heads", ()))
            self._streams = use_casting_layers(verifier.module)
            self._beside = beside_layers(verifier.module)
        # looked up at call time: the host rebinds the class when it pages weights on demand
        self.patcher = comfy.model_patcher.CoreModelPatcher(
            verifier.module,
            load_device=device,
            offload_device=comfy.model_management.text_encoder_offload_device(),
        )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "verifier":
            raise AttributeError(name)
        return getattr(self.verifier, name)

    def load(self) -> None:
        """Bring the network to where it runs."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        comfy.model_management.load_models_gpu([self.patcher], force_full_load=not self._streams)
        with torch.inference_mode(False):
            for part, name in self._beside:  # the host leaves these behind when it loads a network in part
                tensor = getattr(part, name)
                if tensor.device != self.patcher.load_device:
                    moved = tensor.to(self.patcher.load_device)
                    is_parameter = isinstance(tensor, torch.nn.Parameter)
                    setattr(part, name, torch.nn.Parameter(moved, requires_grad=False) if is_parameter else moved)

    def score(self, images: torch.Tensor, prompt: str, **more: Any) -> torch.Tensor:
        """See search.types.Verifier. Cancel is looked for before every chunk of images."""
        self.load()
        if getattr(self.verifier, "pooled", False):
            scores: torch.Tensor = self.verifier.score(images, prompt, **more)
            return scores
        early = more.get("early")
        parts = []
        for start in range(0, len(images), CHUNK):
            comfy.model_management.throw_exception_if_processing_interrupted()
            chunk = slice(start, start + CHUNK)
            seen = {"early": tuple(each[chunk] for each in early)} if early else more
            with kept_weights(self.patcher) if images.requires_grad else nullcontext():
                parts.append(self.verifier.score(images[chunk], prompt, **seen))
        return torch.cat(parts)

    @property
    def features(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """How the verifier embeds images, once its network is loaded; AttributeError where it does not."""
        embed = self.verifier.features

        def loaded(images: torch.Tensor) -> torch.Tensor:
            self.load()
            features: torch.Tensor = embed(images)
            return features

        return loaded

    def accept(self, images: torch.Tensor) -> None:
        """For verifiers of a growing set: put images into it."""
        self.load()
        self.verifier.accept(images)


class ManagedEnsemble(VerifierEnsemble):
    """An ensemble that tells the host which models its members hold."""

    def get_models(self) -> list[Any]:
        """The patchers of all members that have one: the host asks every output for them."""
        patchers = [getattr(member.verifier, "patcher", None) for member in self.members]
        return [patcher for patcher in patchers if patcher is not None]


def managed(verifier: Any) -> Any:
    """The verifier, owned by ComfyUI's memory manager if it has a network."""
    return verifier if getattr(verifier, "module", None) is None else ManagedVerifier(verifier)


def halve(module: torch.nn.Module, heads: tuple[str, ...]) -> None:
    """Store the network in half precision, but for the submodules named in `heads`."""
    kept = [module.get_submodule(name) for name in heads]
    exact = {id(tensor) for head in kept for tensor in (*head.parameters(), *head.buffers())}
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point() and id(tensor) not in exact:
            tensor.data = tensor.data.half()


def use_casting_layers(module: torch.nn.Module) -> bool:
    """Make every plain layer one that the host can page; whether most weights lie in such layers then.

    The others are loaded whole in any case (see `beside_layers`): where they are most, paging would save little. The
    host knows layers by their names, so a network that is one layer cannot be paged.
    """
    for layer in module.modules():
        casting = CASTING.get(type(layer))
        if casting is not None and layer is not module:
            if not hasattr(layer, "bias"):
                layer.bias = None  # the host asks embeddings for one too
            layer.__class__ = casting
    sizes = {True: 0, False: 0}
    for part in module.modules():
        sizes[hasattr(part, "comfy_cast_weights")] += sum(p.numel() for p in part.parameters(recurse=False))
    return sizes[True] > sizes[False]


def beside_layers(module: torch.nn.Module) -> list[tuple[torch.nn.Module, str]]:
    """Where weights stand beside layers, such as class embeddings: they tell a network where it runs."""
    return [
        (part, name)
        for part in module.modules()
        if not hasattr(part, "comfy_cast_weights")
        for name, _ in (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False))
    ]
