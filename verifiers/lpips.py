"""LPIPS (Zhang et al. 2018, arXiv 1801.03924), version 0.1: perceptual distance from reference images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..search.errors import SearchError
from .feature_stacks import ALEXNET, VGG16, FeatureStack, load_stack
from .files import Download, Source, read_tensors, weights_at
from .images import normalised
from .kinds import Setting, VerifierKind
from .references import SETTINGS, Comparer, ReferenceVerifier

_RAW = "https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/master/lpips/weights/v0.1"
LINEAR = Source(
    file="alex.pth (for AlexNet) or vgg.pth (for VGG16), version 0.1",
    address="https://github.com/richzhang/PerceptualSimilarity/tree/master/lpips/weights/v0.1",
    size="7 kB",
    licence="BSD-2-Clause",
    put="ComfyUI's models/verifiers/lpips",
    downloads=(
        Download(
            f"{_RAW}/alex.pth", "lpips/alex.pth", "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0"
        ),
        Download(
            f"{_RAW}/vgg.pth", "lpips/vgg.pth", "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868"
        ),
    ),
)
# Of pixels in -1..1, as the linear layers were fitted.
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_EPSILON = 1e-10


class LPIPSNetwork(Comparer):
    """Features of unit length at every place, compared channel by channel with learned weights."""

    def __init__(self, stack: FeatureStack, linear: list[Tensor]) -> None:
        super().__init__()
        self.stack = stack
        self.linear = nn.ParameterList(nn.Parameter(weights, requires_grad=False) for weights in linear)

    def look(self, pixels: Tensor) -> list[Tensor]:
        """See references.Comparer."""
        # A parameter of no layer is where the network runs, whatever a memory manager does to the layers.
        seen = self.stack(normalised(2 * pixels.to(self.linear[0]) - 1, _SHIFT, _SCALE))
        # The norm of torch, because the gradient of a plain root is infinite where all channels are silent.
        return [each / (torch.linalg.vector_norm(each, dim=1, keepdim=True) + _EPSILON) for each in map(_wide, seen)]

    def distance(self, seen: list[Tensor], reference: list[Tensor]) -> Tensor:
        """See references.Comparer."""
        total = torch.zeros(len(seen[0]), device=seen[0].device)
        for ours, theirs, weights in zip(seen, reference, self.linear, strict=True):
            total = total + ((ours - theirs) ** 2 * _wide(weights)[:, None, None]).sum(dim=1).mean(dim=(1, 2))
        return total


def _wide(x: Tensor) -> Tensor:
    """Half precision made single; anything wider stays."""
    return x if x.dtype == torch.float64 else x.float()


def load_lpips(
    file: str, linear: str, references: Tensor | None = None, over: str = "mean", size: int = 256
) -> ReferenceVerifier:
    """LPIPS with the feature layers in `file` and the linear layers in `linear`, against `references` [R, H, W, 3].

    Raises SearchError when a file is missing, damaged or of another kind, when the two do not belong together, or
    when there is no reference.
    """
    stack = load_stack(file, ALEXNET)
    path = weights_at(linear, LINEAR)
    with torch.inference_mode(False):
        tensors = read_tensors(path, LINEAR)
        names = [f"lin{k}.model.1.weight" for k in range(len(stack.channels))]
        shapes = [tuple(tensors[name].shape) if name in tensors else None for name in names]
        if shapes != [(1, channels, 1, 1) for channels in stack.channels]:
            raise SearchError(
                f"linear: {path.name} does not belong to {stack.name}: got shapes {shapes} for {names[0]} and so on; "
                f"expected {stack.channels} channels: choose alex.pth with AlexNet, vgg.pth with VGG16; {LINEAR}"
            )
        network = LPIPSNetwork(stack, [tensors[name].float().flatten() for name in names])
    network.eval()
    return ReferenceVerifier("LPIPS", network, references, over, size)


KIND = VerifierKind(
    key="lpips",
    name="LPIPS",
    description="Closeness to reference images as people see it, part by part.",
    load=load_lpips,
    settings=(
        Setting(
            "file", "file", "alexnet-owt-7be5be79.pth", "AlexNet (which LPIPS recommends for judging) or VGG16, as "
            "torchvision has them.", folders=("verifiers",),
        ),
        Setting(
            "linear", "file", "lpips/alex.pth", "The linear layers of LPIPS 0.1 for that network: alex.pth or vgg.pth.",
            folders=("verifiers",),
        ),
        *SETTINGS,
    ),
    use_for="Coming back to a picture: the same layout, pose and light as the reference.",
    fooled_by="Nothing beyond the reference: it knows no prompt, and a shift by a few pixels already costs.",
    sources=(ALEXNET, VGG16, LINEAR),
)  # fmt: skip
