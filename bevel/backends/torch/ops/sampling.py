"""Sampling at positions that a grid gives."""

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from bevel.backends.torch.ops.windows import most
from bevel.backends.torch.table import Ints, lower
from bevel.errors import UnsupportedModel

_MODES: Final = {
    "linear": "bilinear",
    "bilinear": "bilinear",
    "nearest": "nearest",
    "cubic": "bicubic",
    "bicubic": "bicubic",
}


@lower("GridSample")
def grid_sample(
    x: Tensor, grid: Tensor, *, align_corners: int = 0, mode: str = "linear", padding_mode: str = "zeros"
) -> Tensor:
    """Interpolate one to three spatial axes at the positions of a grid, from -1 to 1."""
    rank = x.dim() - 2
    if rank > 3 or (rank == 3 and _MODES[mode] == "bicubic"):
        raise UnsupportedModel(
            f"GridSample, {mode}, over {rank} spatial axes",
            remedy="PyTorch samples linearly over two or three axes and cubically over two",
        )
    wide = torch.promote_types(x.dtype, grid.dtype) if x.is_floating_point() else torch.float64
    values, grid = x.to(wide), grid.to(wide)
    if rank == 1:
        # A second axis of size one, in whose middle everything is.
        values, grid = values.unsqueeze(2), F.pad(grid, [0, 1]).unsqueeze(1)
    sampled = F.grid_sample(values, grid, _MODES[mode], padding_mode, bool(align_corners))
    return (sampled.squeeze(2) if rank == 1 else sampled).to(x.dtype)


@lower("AffineGrid")
def affine_grid(theta: Tensor, size: Ints, *, align_corners: int = 0) -> Tensor:
    """Return the positions of a grid under an affine map; those of each axis reach from -1 to 1."""
    spatial = list(size[2:])
    lines = [_line(theta, length, bool(align_corners)) for length in spatial]
    grid = torch.stack([*reversed(torch.meshgrid(lines, indexing="ij")), theta.new_ones(spatial)], -1)
    moved = torch.matmul(grid.flatten(0, -2), theta.transpose(1, 2))
    return moved.view(theta.shape[0], *spatial, len(spatial))


def _line(theta: Tensor, length: int, align_corners: bool) -> Tensor:
    """Return where the middles of pixels are along an axis: the outer ones at its ends, if aligned."""
    at = torch.arange(length, dtype=theta.dtype, device=theta.device) * 2
    return at / most(length - 1, 1) - 1 if align_corners else (at + 1) / length - 1
