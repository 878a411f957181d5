"""Inception v3 (Szegedy et al. 2016, arXiv 1512.00567) as FID uses it: the TensorFlow graph of 2015-12-05.

It differs from torchvision's: 1008 classes in an order of their own, averages that leave padding out, and one maximum
where an average is meant. Tensors have torchvision's names, as in the file that pytorch-fid ported.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from .files import Download, Source
from .fill import filled

INCEPTION = Source(
    file="pt_inception-2015-12-05-6726825d.pth",
    address="https://github.com/mseitzer/pytorch-fid/releases/tag/fid_weights",
    size="96 MB",
    licence="Apache-2.0",
    put="ComfyUI's models/verifiers",
    downloads=(
        Download(
            "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
            "pt_inception-2015-12-05-6726825d.pth",
            "pt_inception-2015-12-05-6726825d.pth",
            "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        ),
    ),
)
#: A tensor that only this network has.
MARK = "Mixed_7c.branch3x3dbl_3b.conv.weight"
CLASSES = 1008
_SIZE = 299


class _Norm(nn.Module):
    """Batch normalisation that never trains. All four are parameters: a memory manager may leave buffers behind."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.empty(channels)), nn.Parameter(torch.empty(channels))
        self.running_mean, self.running_var = nn.Parameter(torch.empty(channels)), nn.Parameter(torch.empty(channels))

    def forward(self, x: Tensor) -> Tensor:
        return functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=0.001)


class _Conv(nn.Module):
    """Convolution, batch normalisation, ReLU. An oblong kernel (1, 7) is padded to keep the size."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int | tuple[int, int], stride: int = 1, padding: int | None = None
    ) -> None:
        super().__init__()
        kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
        around = (kernel[0] // 2, kernel[1] // 2) if padding is None else (padding, padding)
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, around, bias=False)
        self.bn = _Norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv(x)))


def _average(x: Tensor) -> Tensor:
    return functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def _halved(x: Tensor) -> Tensor:
    return functional.max_pool2d(x, 3, stride=2)


class _A(nn.Module):
    """35 x 35."""

    def __init__(self, inputs: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = _Conv(inputs, 64, 1)
        self.branch5x5_1 = _Conv(inputs, 48, 1)
        self.branch5x5_2 = _Conv(48, 64, 5)
        self.branch3x3dbl_1 = _Conv(inputs, 64, 1)
        self.branch3x3dbl_2 = _Conv(64, 96, 3)
        self.branch3x3dbl_3 = _Conv(96, 96, 3)
        self.branch_pool = _Conv(inputs, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        fives = self.branch5x5_2(self.branch5x5_1(x))
        threes = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), fives, threes, self.branch_pool(_average(x))], dim=1)


class _B(nn.Module):
    """35 x 35 to 17 x 17."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch3x3 = _Conv(inputs, 384, 3, stride=2, padding=0)
        self.branch3x3dbl_1 = _Conv(inputs, 64, 1)
        self.branch3x3dbl_2 = _Conv(64, 96, 3)
        self.branch3x3dbl_3 = _Conv(96, 96, 3, stride=2, padding=0)

    def forward(self, x: Tensor) -> Tensor:
        threes = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), threes, _halved(x)], dim=1)


class _C(nn.Module):
    """17 x 17; sevens are split into a row and a column."""

    def __init__(self, inputs: int, inner: int) -> None:
        super().__init__()
        row, column = (1, 7), (7, 1)
        self.branch1x1 = _Conv(inputs, 192, 1)
        self.branch7x7_1 = _Conv(inputs, inner, 1)
        self.branch7x7_2 = _Conv(inner, inner, row)
        self.branch7x7_3 = _Conv(inner, 192, column)
        self.branch7x7dbl_1 = _Conv(inputs, inner, 1)
        self.branch7x7dbl_2 = _Conv(inner, inner, column)
        self.branch7x7dbl_3 = _Conv(inner, inner, row)
        self.branch7x7dbl_4 = _Conv(inner, inner, column)
        self.branch7x7dbl_5 = _Conv(inner, 192, row)
        self.branch_pool = _Conv(inputs, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        once = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        twice = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        twice = self.branch7x7dbl_5(self.branch7x7dbl_4(twice))
        return torch.cat([self.branch1x1(x), once, twice, self.branch_pool(_average(x))], dim=1)


class _D(nn.Module):
    """17 x 17 to 8 x 8."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch3x3_1 = _Conv(inputs, 192, 1)
        self.branch3x3_2 = _Conv(192, 320, 3, stride=2, padding=0)
        self.branch7x7x3_1 = _Conv(inputs, 192, 1)
        self.branch7x7x3_2 = _Conv(192, 192, (1, 7))
        self.branch7x7x3_3 = _Conv(192, 192, (7, 1))
        self.branch7x7x3_4 = _Conv(192, 192, 3, stride=2, padding=0)

    def forward(self, x: Tensor) -> Tensor:
        sevens = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
        threes = self.branch3x3_2(self.branch3x3_1(x))
        return torch.cat([threes, self.branch7x7x3_4(sevens), _halved(x)], dim=1)


class _E(nn.Module):
    """8 x 8. The second of the two takes a maximum before its last branch: so does the graph of 2015."""

    def __init__(self, inputs: int, maximum: bool) -> None:
        super().__init__()
        self.maximum = maximum
        self.branch1x1 = _Conv(inputs, 320, 1)
        self.branch3x3_1 = _Conv(inputs, 384, 1)
        self.branch3x3_2a = _Conv(384, 384, (1, 3))
        self.branch3x3_2b = _Conv(384, 384, (3, 1))
        self.branch3x3dbl_1 = _Conv(inputs, 448, 1)
        self.branch3x3dbl_2 = _Conv(448, 384, 3)
        self.branch3x3dbl_3a = _Conv(384, 384, (1, 3))
        self.branch3x3dbl_3b = _Conv(384, 384, (3, 1))
        self.branch_pool = _Conv(inputs, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        once = self.branch3x3_1(x)
        twice = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = functional.max_pool2d(x, 3, stride=1, padding=1) if self.maximum else _average(x)
        return torch.cat(
            [
                self.branch1x1(x), self.branch3x3_2a(once), self.branch3x3_2b(once),
                self.branch3x3dbl_3a(twice), self.branch3x3dbl_3b(twice), self.branch_pool(pooled),
            ],
            dim=1,
        )  # fmt: skip


class FIDInception(nn.Module):
    """The whole network: 2048 features behind the last pooling, and 1008 logits."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Conv(3, 32, 3, stride=2, padding=0)
        self.Conv2d_2a_3x3 = _Conv(32, 32, 3, padding=0)
        self.Conv2d_2b_3x3 = _Conv(32, 64, 3)
        self.Conv2d_3b_1x1 = _Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = _Conv(80, 192, 3, padding=0)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _A(192, 32), _A(256, 64), _A(288, 64)
        self.Mixed_6a = _B(288)
        self.Mixed_6b, self.Mixed_6c = _C(768, 128), _C(768, 160)
        self.Mixed_6d, self.Mixed_6e = _C(768, 160), _C(768, 192)
        self.Mixed_7a = _D(768)
        self.Mixed_7b, self.Mixed_7c = _E(1280, maximum=False), _E(2048, maximum=True)
        self.fc = nn.Linear(2048, CLASSES, bias=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Features float32 [B, 2048] of pixels [B, 3, H, W] in 0..1 of any shape.

        Resized to 299 x 299 as pytorch-fid does it, without antialiasing: other ways shift an FID by whole points.
        """
        pixels = functional.interpolate(pixels, (_SIZE, _SIZE), mode="bilinear", align_corners=False)
        # The normalisation is no layer that a memory manager pages: its weight is where the network runs.
        x = 2 * pixels.to(self.Conv2d_1a_3x3.bn.weight) - 1
        x = _halved(self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x))))
        x = _halved(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)))
        for block in (
            self.Mixed_5b, self.Mixed_5c, self.Mixed_5d, self.Mixed_6a, self.Mixed_6b, self.Mixed_6c, self.Mixed_6d,
            self.Mixed_6e, self.Mixed_7a, self.Mixed_7b, self.Mixed_7c,
        ):  # fmt: skip
            x = block(x)
        return x.float().mean(dim=(2, 3))

    def logits(self, pixels: Tensor) -> Tensor:
        """Logits float32 [B, 1008], without the bias of the last layer: so Inception Score has always been taken."""
        out: Tensor = self.fc(self(pixels).to(self.Conv2d_1a_3x3.bn.weight))
        return out.float()


def made_inception(tensors: dict[str, Tensor], path: Path) -> FIDInception:
    """The network with the tensors of a file, in float32 on the CPU. Raises SearchError when they do not fit."""
    with torch.inference_mode(False):
        with torch.device("meta"):
            network = FIDInception()
        filled(network, {k: t for k, t in tensors.items() if k != "fc.bias"}, path, "Inception v3 of FID", INCEPTION)
    return network
