"""DISTS (Ding et al. 2020, arXiv 2004.07728): distance from reference images in structure and texture."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..search.errors import SearchError
from .feature_stacks import VGG16, FeatureStack, load_stack
from .files import Download, Source, read_tensors, weights_at
from .images import normalised
from .kinds import Setting, VerifierKind
from .references import SETTINGS, Comparer, ReferenceVerifier

WEIGHTS = Source(
    file="weights.pt",
    address="https://github.com/dingkeyan93/DISTS/tree/master/DISTS_pytorch",
    size="12 kB",
    licence="MIT",
    put="ComfyUI's models/verifiers/dists",
    downloads=(
        Download(
            "https://raw.githubusercontent.com/dingkeyan93/DISTS/master/DISTS_pytorch/weights.pt", "dists/weights.pt",
            "f5e65c96230b7f6ca995691647d482237e4cab8a50c5c4a5784f219ef0748218",
        ),
    ),
)
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_POOLINGS = (4, 9, 16, 23)
#: Keeps quotients of silent channels at 1 (equations 4 and 5 of the paper).
_C = 1e-6


class HanningPool(nn.Module):
    """Halves height and width by the root of a weighted mean of squares, which aliases less than a maximum does."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H / 2, W / 2], both rounded up."""
        line = torch.tensor([0.25, 0.5, 0.25], device=x.device, dtype=x.dtype)
        window = (line[:, None] * line).expand(x.shape[1], 1, 3, 3)
        # Squares of half-precision features may be too large for half precision; bfloat16 has the range.
        squares = x.float() ** 2 if x.dtype == torch.float16 else x**2
        pooled = functional.conv2d(squares, window.to(squares), stride=2, padding=1, groups=x.shape[1])
        return (pooled + 1e-12).sqrt().to(x)


class DISTSNetwork(Comparer):
    """Means (texture) and covariances (structure) of VGG16's features and of the pixels, with learned weights."""

    def __init__(self, stack: FeatureStack, alpha: Tensor, beta: Tensor) -> None:
        super().__init__()
        self.stack = stack
        for index in _POOLINGS:
            stack.features[index] = HanningPool()
        self.alpha = nn.Parameter(alpha, requires_grad=False)
        self.beta = nn.Parameter(beta, requires_grad=False)

    def look(self, pixels: Tensor) -> list[Tensor]:
        """See references.Comparer."""
        pixels = pixels.to(self.alpha)  # the parameters of no layer are where the network runs
        return [pixels, *self.stack(normalised(pixels, _MEAN, _STD))]

    def distance(self, seen: list[Tensor], reference: list[Tensor]) -> Tensor:
        """See references.Comparer."""
        widths = [each.shape[1] for each in seen]
        wide = torch.float64 if self.alpha.dtype == torch.float64 else torch.float32
        alpha, beta = self.alpha.to(wide), self.beta.to(wide)
        total = (alpha.sum() + beta.sum()).clamp(min=torch.finfo(wide).tiny)
        alike = torch.zeros(len(seen[0]), dtype=wide, device=alpha.device)
        parts = zip(seen, reference, torch.split(alpha, widths), torch.split(beta, widths), strict=True)
        for ours, theirs, texture, structure in parts:
            x, y = ours.to(wide).flatten(2), theirs.to(wide).flatten(2)
            x_mean, y_mean = x.mean(dim=2, keepdim=True), y.mean(dim=2, keepdim=True)
            x, y = x - x_mean, y - y_mean
            x_mean, y_mean = x_mean.squeeze(2), y_mean.squeeze(2)
            variances = (x**2).mean(dim=2) + (y**2).mean(dim=2)
            means = (2 * x_mean * y_mean + _C) / (x_mean**2 + y_mean**2 + _C)
            covariances = (2 * (x * y).mean(dim=2) + _C) / (variances + _C)
            alike = alike + means @ texture + covariances @ structure
        return 1 - alike / total


def load_dists(
    file: str, weights: str, references: Tensor | None = None, over: str = "mean", size: int = 256
) -> ReferenceVerifier:
    """DISTS with VGG16 in `file` and alpha and beta in `weights`, against `references` [R, H, W, 3].

    Raises SearchError when a file is missing, damaged or of another kind, or when there is no reference.
    """
    stack = load_stack(file, VGG16)
    if stack.name != "vgg16":
        raise SearchError(f"file: got {stack.name}; DISTS was fitted on VGG16; {VGG16}")
    path = weights_at(weights, WEIGHTS)
    count = 3 + sum(stack.channels)
    with torch.inference_mode(False):
        tensors = read_tensors(path, WEIGHTS)
        got = {name: tensors[name].numel() if name in tensors else 0 for name in ("alpha", "beta")}
        if set(got.values()) != {count}:
            raise SearchError(f"weights: {path.name} has {got} numbers; expected {count} of each; {WEIGHTS}")
        network = DISTSNetwork(stack, tensors["alpha"].float().flatten(), tensors["beta"].float().flatten())
    network.eval()
    return ReferenceVerifier("DISTS", network, references, over, size)


KIND = VerifierKind(
    key="dists",
    name="DISTS",
    description="Closeness to reference images in structure and texture; forgives where exactly a texture lies.",
    load=load_dists,
    settings=(
        Setting("file", "file", "vgg16-397923af.pth", "VGG16 as torchvision has it.", folders=("verifiers",)),
        Setting("weights", "file", "dists/weights.pt", "The weights of DISTS: alpha and beta.", folders=("verifiers",)),
        *SETTINGS,
    ),
    use_for="Coming back to a picture or a material: grass may be other grass, as long as it looks the same.",
    fooled_by="Nothing beyond the reference: it knows no prompt, and texture may outweigh what is shown.",
    sources=(VGG16, WEIGHTS),
)  # fmt: skip
