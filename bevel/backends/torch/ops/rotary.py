"""Rotary position embeddings: pairs of entries of a head turn by an angle that depends on the position."""

from __future__ import annotations

import torch
from torch import Tensor

from bevel.backends.torch.ops.scores import merge_heads, split_heads
from bevel.backends.torch.table import lower


@lower("RotaryEmbedding")
def rotary_embedding(
    x: Tensor,
    cos_cache: Tensor,
    sin_cache: Tensor,
    position_ids: Tensor | None = None,
    *,
    interleaved: int = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
) -> Tensor:
    """Turn the pairs of each head; without ids the caches hold a row for each position of each sample."""
    cos, sin = (cache if position_ids is None else cache[position_ids] for cache in (cos_cache, sin_cache))
    heads = turn(split_heads(x, num_heads), cos.unsqueeze(1), sin.unsqueeze(1), interleaved, rotary_embedding_dim)
    return heads if x.dim() == 4 else merge_heads(heads)


def turn(x: Tensor, cos: Tensor, sin: Tensor, interleaved: int, width: int = 0) -> Tensor:
    """Turn the first `width` entries (0 for all) of `batch, heads, positions, width`.

    Partners stand side by side, or in the two halves of what turns.
    """
    if width and width != x.shape[-1]:
        return torch.cat([turn(x[..., :width], cos, sin, interleaved), x[..., width:]], -1)
    if interleaved:
        real, imaginary = x[..., 0::2], x[..., 1::2]
        return torch.stack(_turned(real, imaginary, cos, sin), -1).flatten(-2)
    real, imaginary = x.chunk(2, -1)
    return torch.cat(_turned(real, imaginary, cos, sin), -1)


def _turned(real: Tensor, imaginary: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    return cos * real - sin * imaginary, sin * real + cos * imaginary
