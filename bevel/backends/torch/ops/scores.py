"""What attention operators share: heads, masks over queries and keys, and the product with softmax in between.

Queries, keys and values are `batch, heads, positions, width`; heads of keys may each serve several of queries. A mask
is boolean (True where a key is seen) or an addend to the scores. A query that sees no key gets zeros, and no NaN in its
gradient.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

UNCHANGED: Final = 0
AFTER_SOFTCAP: Final = 1
AFTER_MASK: Final = 2
AFTER_SOFTMAX: Final = 3


@dataclass(frozen=True)
class Softmax:
    """How scores become weights: their scale, soft cap and element type, and which stage of them is an output."""

    scale: float | None = None
    softcap: float = 0.0
    precision: torch.dtype | None = None
    stage: int = UNCHANGED

    def is_plain(self, dtype: torch.dtype) -> bool:
        """Whether torch's fused kernels compute it: they take the softmax of half precision in single precision."""
        half = dtype in (torch.float16, torch.bfloat16)
        return not self.softcap and (self.precision in (None, dtype) or (half and self.precision is torch.float32))


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Return `batch, heads, positions, width` of an operand that has heads and width in one axis."""
    return x if x.dim() == 4 else x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """Return `batch, positions, heads * width`."""
    return x.transpose(1, 2).flatten(2)


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None, *, causal: bool = False
) -> Tensor:
    """Attend in torch's fused kernel; causal means that a query sees the keys up to its own place."""
    if mask is not None and mask.dim() < 2:
        mask = mask.expand(q.shape[2], k.shape[2])
    shared = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=scale, enable_gqa=shared)


def attend_openly(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, how: Softmax, sink: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Attend step by step; return the scores too, as they are at the stage that is asked for.

    A sink is one more score for each head, whose key has no value.
    """
    repeats = q.shape[1] // k.shape[1]
    if repeats > 1:
        k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
    root = math.sqrt(q.shape[3] ** -0.5 if how.scale is None else how.scale)
    scores = (q * root) @ (k * root).transpose(2, 3)
    capped = how.softcap * torch.tanh(scores / how.softcap) if how.softcap else scores
    bias = additive(mask, q.dtype)
    masked = capped if bias is None else capped + bias
    if sink is None:
        weights = masked_softmax(masked.to(how.precision or q.dtype), bias).to(q.dtype)
    else:
        column = sink.to(q.dtype).view(1, -1, 1, 1).expand(*masked.shape[:-1], 1)
        weights = torch.cat([masked, column], -1).softmax(-1)[..., :-1]
    return weights @ v, (scores, capped, masked, weights)[how.stage]


def masked_softmax(scores: Tensor, bias: Tensor | None) -> Tensor:
    """Normalise scores over the keys; where the bias rules out every key, the weights are zeros."""
    if bias is None:
        return scores.softmax(-1)
    blind = (bias == -math.inf).all(-1, keepdim=True)
    return scores.masked_fill(blind, 0).softmax(-1).masked_fill(blind, 0)


def additive(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Return a mask as an addend."""
    if mask is None or mask.dtype is not torch.bool:
        return mask
    return torch.zeros((), dtype=dtype, device=mask.device).masked_fill(~mask, -math.inf)


def join_masks(mask: Tensor | None, allowed: Tensor | None) -> Tensor | None:
    """Restrict a mask of either kind to what is allowed."""
    if mask is None or allowed is None:
        return allowed if mask is None else mask
    return mask & allowed if mask.dtype is torch.bool else mask.masked_fill(~allowed, -math.inf)


def padded_mask(mask: Tensor | None, keys: int, dtype: torch.dtype) -> Tensor | None:
    """Return a mask over all keys: those beyond its end are not seen. An addend gets the type of the scores."""
    if mask is None:
        return None
    mask = mask if mask.dtype is torch.bool else mask.to(dtype)
    if mask.shape[-1] == keys:
        return mask
    beyond = False if mask.dtype is torch.bool else -math.inf
    return F.pad(mask, (0, keys - mask.shape[-1]), value=beyond)


def key_mask(lengths: Tensor, keys: int) -> Tensor:
    """Let every query of a sample see as many keys as the sample has: `batch, 1, 1, keys`."""
    return torch.arange(keys, device=lengths.device) < lengths.view(-1, 1, 1, 1)


def window_mask(queries: int, keys: int, first: Any, left: int, right: int, device: torch.device) -> Tensor | None:
    """Let a query see keys from `left` before it to `right` after it, where -1 is no bound.

    `first` is the place of the first query among the keys: a number, or a tensor of one for each sample.
    """
    if left < 0 and right < 0:
        return None
    places = torch.arange(queries, device=device).unsqueeze(1) + first
    distance: Tensor = torch.arange(keys, device=device) - places
    near = distance >= -left if left >= 0 else None
    return join_masks(near, distance <= right if right >= 0 else None)
