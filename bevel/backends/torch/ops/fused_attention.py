"""Attention operators of ONNX Runtime: projections and biases inside, packed operands, masks of many shapes.

A mask adds a large negative number to the scores, so that a query which sees no key attends to all that are masked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from bevel.backends.torch.ops.integer_products import centred
from bevel.backends.torch.ops.scores import (
    AFTER_MASK,
    Softmax,
    attend,
    attend_openly,
    join_masks,
    merge_heads,
    split_heads,
    window_mask,
)
from bevel.backends.torch.table import lower
from bevel.errors import UnsupportedModel

MICROSOFT: Final = "com.microsoft"
FILTER: Final = -10000.0


def _shared_buffer(attributes: Mapping[str, Any]) -> str:
    if attributes.get("do_rotary", 0):
        return "it turns pairs of each head"
    return "past and present share a buffer" if attributes.get("past_present_share_buffer", 0) else ""


@lower("Attention", domain=MICROSOFT, refuses=_shared_buffer)
def projected_attention(
    x: Tensor,
    weights: Tensor,
    bias: Tensor | None = None,
    mask_index: Tensor | None = None,
    past: Tensor | None = None,
    attention_bias: Tensor | None = None,
    past_sequence_length: Tensor | None = None,
    *,
    do_rotary: int = 0,
    mask_filter_value: float = FILTER,
    num_heads: int,
    past_present_share_buffer: int = 0,
    qkv_hidden_sizes: Sequence[int] = (),
    rotary_embedding_dim: int = 0,
    scale: float = 0.0,
    unidirectional: int = 0,
) -> tuple[Tensor, Tensor | None]:
    """Project to queries, keys and values by one weight, and attend; keys and values are stacked in one cache."""
    projected = x @ weights if bias is None else x @ weights + bias
    return _attend_projected(
        projected,
        qkv_hidden_sizes,
        num_heads,
        past,
        mask_index,
        attention_bias,
        mask_filter_value,
        scale,
        unidirectional,
    )


@lower("QAttention", domain=MICROSOFT, refuses=_shared_buffer)
def quantized_attention(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    x_scale: Tensor,
    weight_scale: Tensor,
    mask_index: Tensor | None = None,
    x_zero: Tensor | None = None,
    weight_zero: Tensor | None = None,
    past: Tensor | None = None,
    *,
    do_rotary: int = 0,
    mask_filter_value: float = FILTER,
    num_heads: int,
    past_present_share_buffer: int = 0,
    scale: float = 0.0,
    unidirectional: int = 0,
) -> tuple[Tensor, Tensor | None]:
    """Do the same with a projection of integers."""
    total = centred(x, x_zero) @ centred(weight, weight_zero)
    projected = total.to(x_scale.dtype) * (x_scale * weight_scale) + bias
    return _attend_projected(projected, (), num_heads, past, mask_index, None, mask_filter_value, scale, unidirectional)


def _attend_projected(
    projected: Tensor,
    sizes: Sequence[int],
    heads: int,
    past: Tensor | None,
    mask: Tensor | None,
    addend: Tensor | None,
    filter_value: float,
    scale: float,
    causal: int,
) -> tuple[Tensor, Tensor | None]:
    parts = torch.split(projected, list(sizes), -1) if sizes else projected.chunk(3, -1)
    q, k, v = (split_heads(part, heads) for part in parts)
    present = None
    if past is not None:
        k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
    if k.shape[3] == v.shape[3]:
        present = torch.stack([k, v])
    bias = _bias(q, k, mask, addend, filter_value, bool(causal))
    return merge_heads(attend(q, k, v, bias, scale or None)), present


def _bias(
    q: Tensor, k: Tensor, mask: Tensor | None, addend: Tensor | None, filter_value: float, causal: bool
) -> Tensor | None:
    """Add up what is added to the scores; a causal mask rules keys out."""
    queries, keys = q.shape[2], k.shape[2]
    total = addend
    if mask is not None:
        hidden = _hidden(mask, q.shape[0], queries, keys).to(q.dtype) * filter_value
        total = hidden if addend is None else hidden + addend
    allowed = window_mask(queries, keys, keys - queries, -1, 0, q.device) if causal else None
    return join_masks(total, allowed)


def _hidden(mask: Tensor, batch: int, queries: int, keys: int) -> Tensor:
    """Return which keys a mask hides: it holds lengths, ends and starts, or zeros where keys or pairs are hidden."""
    places = torch.arange(keys, device=mask.device)
    if mask.dim() == 1 and mask.shape[0] == batch:
        return places >= mask.view(-1, 1, 1, 1)
    if mask.dim() == 1 and mask.shape[0] == 2 * batch:
        ends, starts = mask.view(2, -1, 1, 1, 1)
        return torch.logical_or(places >= ends, places < starts)
    if mask.dim() == 2:
        return mask[:, None, None] == 0
    if mask.dim() == 3:
        return mask[:, None] == 0
    if mask.dim() == 4:
        return mask[:, :, keys - queries : keys, :keys] == 0
    raise UnsupportedModel("its mask holds offsets of packed samples", where="an attention operator")


@lower("MultiHeadAttention", domain=MICROSOFT)
def multi_head_attention(
    query: Tensor,
    key: Tensor | None = None,
    value: Tensor | None = None,
    bias: Tensor | None = None,
    key_padding_mask: Tensor | None = None,
    attention_bias: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    past_sequence_length: Tensor | None = None,
    cache_indirection: Tensor | None = None,
    *,
    mask_filter_value: float = FILTER,
    num_heads: int,
    scale: float = 0.0,
    unidirectional: int = 0,
    outputs: int = 1,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Attend with operands apart, keys and values packed, or all three packed, and one bias for all."""
    if past_sequence_length is not None or cache_indirection is not None:
        raise UnsupportedModel("past and present share a buffer", where="MultiHeadAttention")
    q, k, v = _operands(query, key, value, bias, num_heads)
    if past_key is not None and past_value is not None:
        k, v = torch.cat([past_key, k], 2), torch.cat([past_value, v], 2)
    mask = _bias(q, k, key_padding_mask, attention_bias, mask_filter_value, bool(unidirectional))
    if outputs < 4:
        return merge_heads(attend(q, k, v, mask, scale or None)), k, v, None
    out, scores = attend_openly(q, k, v, mask, Softmax(scale or None, stage=AFTER_MASK))
    return merge_heads(out), k, v, scores


def _operands(
    query: Tensor, key: Tensor | None, value: Tensor | None, bias: Tensor | None, heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values with heads of their own; those that come with heads have their bias already."""
    if query.dim() == 5:
        packed = query if bias is None else query + bias.view(3, heads, -1).transpose(0, 1)
        q, k, v = packed.permute(3, 0, 2, 1, 4)
        return q, k, v
    width = query.shape[-1]
    q = query if bias is None else query + bias[:width]
    if key is None:
        raise UnsupportedModel("its keys are missing", where="MultiHeadAttention")
    if key.dim() == 5:
        k, v = key.permute(3, 0, 2, 1, 4)
        return split_heads(q, heads), k, v
    assert value is not None
    if bias is not None and key.dim() == 3:
        key, value = key + bias[width : 2 * width], value + bias[2 * width :]
    return split_heads(q, heads), split_heads(key, heads), split_heads(value, heads)
