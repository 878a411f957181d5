"""What verifiers do to images before a network sees them: check, cut into chunks, resize and crop.

Everything here is torch only and rounds nothing, so that a gradient reaches the pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from ..search.errors import SearchError

#: Images per forward of a scoring network.
CHUNK = 16
_ROWS_AT_ONCE = 16


def scored(images: Tensor, score: Callable[[Tensor], Tensor]) -> Tensor:
    """Scores float32 [B] on the CPU of images [B, H, W, 3] in 0..1, asked for CHUNK images at a time.

    `score` gets [b, 3, H, W] float32. A row with a pixel that is not finite scores NaN, whatever `score` makes of it.
    Raises SearchError when `images` is no such batch.
    """
    scores = torch.cat([score(chunk) for chunk in torch.split(_pixels(images), CHUNK)]).float().cpu()
    # One pixel that is not finite makes the sum so; looking at each would take longer than resizing them.
    judged = images.detach().sum(dim=(1, 2, 3), dtype=torch.float32).isfinite().cpu()
    return scores.masked_fill(~judged, float("nan"))


def embedded(images: Tensor, embed: Callable[[Tensor], Tensor]) -> Tensor:
    """Features float32 [B, D] on the CPU of images [B, H, W, 3] in 0..1, as `scored` asks for scores; no gradient."""
    with torch.no_grad():
        return torch.cat([embed(chunk).float().cpu() for chunk in torch.split(_pixels(images), CHUNK)])


def _pixels(images: Tensor) -> Tensor:
    if images.ndim != 4 or images.shape[-1] != 3 or not images.is_floating_point() or not len(images):
        raise SearchError(
            f"images: got {tuple(images.shape)} {images.dtype}; expected [B, H, W, 3] floats in 0..1 with B of at "
            "least 1: wire an IMAGE with three channels (no alpha channel, and no mask)"
        )
    return images.movedim(-1, 1).float()


def resized(pixels: Tensor, height: int, width: int, mode: str) -> Tensor:
    """Antialiased resize of pixels [B, C, H, W], as functional.interpolate does it, to 1e-6 and in half the time.

    Rows first: in [B, H, W * C], as images lie in memory, an output row is a few input rows times their weights, which
    a matrix product does faster than interpolate, and what is left for the columns is small.
    """
    batch, channels, rows, columns = pixels.shape
    if height < rows:
        flat = pixels.movedim(1, -1).reshape(batch, rows, columns * channels)
        parts = []
        for weights in torch.split(_row_weights(rows, height, mode).to(flat), _ROWS_AT_ONCE):
            used = weights.ne(0).any(dim=0).nonzero()
            first, last = int(used[0]), int(used[-1]) + 1
            parts.append(weights[:, first:last] @ flat[:, first:last])
        pixels = torch.cat(parts, dim=1).reshape(batch, height, columns, channels).movedim(-1, 1)
    return functional.interpolate(pixels, (height, width), mode=mode, antialias=True, align_corners=False)


def _row_weights(rows: int, height: int, mode: str) -> Tensor:
    """How much of each of `rows` input rows is in each of `height` output rows [height, rows], asked of interpolate."""
    columns = torch.eye(rows)[None, None]
    return functional.interpolate(columns, (height, rows), mode=mode, antialias=True, align_corners=False)[0, 0]


def square(pixels: Tensor, size: int, mode: str = "bicubic") -> Tensor:
    """Resize pixels [B, 3, H, W] in 0..1 so that the short side is `size`, and cut the middle [B, 3, size, size] out.

    Antialiased bicubic (or bilinear, by `mode`), as OpenAI's CLIP does it, with the crop's offset rounded to the
    nearest pixel. Bicubic overshoots at edges; values are cut to 0..1 as they are in the 8-bit images of the original.
    """
    height, width = pixels.shape[-2:]
    short = min(height, width)
    height, width = int(size * height / short), int(size * width / short)
    pixels = resized(pixels, height, width, mode)
    top, left = round((height - size) / 2), round((width - size) / 2)
    return pixels[..., top : top + size, left : left + size].clamp(0, 1)


def letterbox(pixels: Tensor, size: int, mode: str = "bicubic") -> Tensor:
    """Resize pixels [B, 3, H, W] in 0..1 so that the long side is `size`, and put black around: [B, 3, size, size].

    Antialiased bicubic, as HPSv2 does it: nothing is cropped, and an odd row or column goes to the bottom or right.
    """
    height, width = pixels.shape[-2:]
    long = max(height, width)
    # A picture more than twice `size` times as long as wide would vanish; one pixel of it is kept.
    height, width = max(1, round(height * (size / long))), max(1, round(width * (size / long)))
    pixels = resized(pixels, height, width, mode)
    top, left = (size - height) // 2, (size - width) // 2
    return functional.pad(pixels.clamp(0, 1), (left, size - width - left, top, size - height - top))


def squashed(pixels: Tensor, size: int, mode: str = "bicubic") -> Tensor:
    """Resize pixels [B, 3, H, W] in 0..1 to [B, 3, size, size], whatever that does to their proportions."""
    pixels = resized(pixels, size, size, mode)
    return pixels.clamp(0, 1)


def normalised(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Take the mean off pixels [B, 3, H, W] and divide by the standard deviation, per channel."""
    return (pixels - pixels.new_tensor(mean)[:, None, None]) / pixels.new_tensor(std)[:, None, None]
