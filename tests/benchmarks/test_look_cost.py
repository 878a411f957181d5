"""look_cost counts what networks multiply, and what their gradients keep."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pack.benchmarks.look_cost import decoders, flops, kept


def test_the_multiplications_of_taesd_are_those_of_its_convolutions() -> None:
    counted = 0

    def count(layer: nn.Conv2d, _: Any, out: torch.Tensor) -> None:
        nonlocal counted
        counted += 2 * out.numel() * layer.in_channels * layer.kernel_size[0] * layer.kernel_size[1]

    with torch.device("meta"), torch.no_grad():
        taesd = decoders(4)["TAESD"]
        latent = torch.empty(1, 4, 16, 16)
        found = flops(lambda: taesd(latent))
        for layer in taesd.modules():
            if isinstance(layer, nn.Conv2d):
                layer.register_forward_hook(count)
        assert tuple(taesd(latent).shape) == (1, 3, 128, 128)
    assert found == counted > 0


def test_what_a_gradient_keeps_is_counted_once_and_without_weights() -> None:
    class Decoder(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = super().forward(x)
            return y.exp() * y.transpose(2, 3)  # keeps exp's result, which is one of two factors, and y

    assert kept(Decoder(8, 8).requires_grad_(False), torch.ones(1, 1, 8, 8)) == 2 * 64 * 4
