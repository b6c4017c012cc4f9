"""Operations that trade spatial dimensions for depth or batch."""

import torch
import torch.nn.functional as F

from partitioner.host.mil.model import Opset
from partitioner.host.registry import Ints, register_op


@register_op("pixel_shuffle", exact=True)
def pixel_shuffle(x: torch.Tensor, upscale_factor: int) -> torch.Tensor:
    """Moves (N, C * f * f, H, W) to (N, C, H * f, W * f), channels first in the depth."""
    return F.pixel_shuffle(x, upscale_factor)


@register_op("pixel_unshuffle", since=Opset.IOS16, exact=True)
def pixel_unshuffle(x: torch.Tensor, downscale_factor: int) -> torch.Tensor:
    """Inverts `pixel_shuffle`."""
    return F.pixel_unshuffle(x, downscale_factor)


@register_op("depth_to_space", exact=True)
def depth_to_space(x: torch.Tensor, block_size: int) -> torch.Tensor:
    """Moves (N, b * b * C, H, W) to (N, C, H * b, W * b), the block's position first in the depth."""
    n, c, h, w = x.shape
    blocks = x.reshape(n, block_size, block_size, c // block_size**2, h, w)
    return blocks.permute(0, 3, 4, 1, 5, 2).reshape(n, c // block_size**2, h * block_size, w * block_size)


@register_op("space_to_depth", exact=True)
def space_to_depth(x: torch.Tensor, block_size: int) -> torch.Tensor:
    """Inverts `depth_to_space`."""
    n, c, h, w = x.shape
    blocks = x.reshape(n, c, h // block_size, block_size, w // block_size, block_size)
    return blocks.permute(0, 3, 5, 1, 2, 4).reshape(n, c * block_size**2, h // block_size, w // block_size)


@register_op("space_to_batch", exact=True)
def space_to_batch(x: torch.Tensor, block_shape: Ints, paddings: Ints) -> torch.Tensor:
    """Moves padded (N, C, H, W) to (N * bh * bw, C, H / bh, W / bw), the block's position first in the batch."""
    (bh, bw), (top, bottom, left, right) = block_shape, paddings
    padded = F.pad(x, (left, right, top, bottom))
    n, c, h, w = padded.shape
    blocks = padded.reshape(n, c, h // bh, bh, w // bw, bw)
    return blocks.permute(3, 5, 0, 1, 2, 4).reshape(n * bh * bw, c, h // bh, w // bw)


@register_op("batch_to_space", exact=True)
def batch_to_space(x: torch.Tensor, block_shape: Ints, crops: Ints) -> torch.Tensor:
    """Inverts `space_to_batch`, and cuts the padding off."""
    (bh, bw), (top, bottom, left, right) = block_shape, crops
    n, c, h, w = x.shape
    blocks = x.reshape(bh, bw, n // (bh * bw), c, h, w).permute(2, 3, 4, 0, 5, 1)
    whole = blocks.reshape(n // (bh * bw), c, h * bh, w * bw)
    return whole[:, :, top : h * bh - bottom, left : w * bw - right]
