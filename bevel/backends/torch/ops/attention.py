"""Attention, in torch's fused kernel wherever that is the same function."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bevel.backends.torch.ops.scores import (
    Softmax,
    attend,
    attend_openly,
    join_masks,
    key_mask,
    merge_heads,
    padded_mask,
    split_heads,
    window_mask,
)
from bevel.backends.torch.table import DType, lower

SCORES = 4  # the place of the scores among the outputs


@lower("Attention")
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    nonpad_kv_seqlen: Tensor | None = None,
    *,
    is_causal: int = 0,
    q_num_heads: int = 0,
    kv_num_heads: int = 0,
    left_window_size: int = -1,
    right_window_size: int = -1,
    scale: float | None = None,
    softcap: float = 0.0,
    softmax_precision: DType | None = None,
    qk_matmul_output_mode: int = 0,
    outputs: int = 1,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Attend with query heads that may share key-value heads, over a cache and under masks of all kinds."""
    q, k, v = split_heads(query, q_num_heads), split_heads(key, kv_num_heads), split_heads(value, kv_num_heads)
    first: Any = 0
    if past_key is not None and past_value is not None:
        first = past_key.shape[2]
        k, v = torch.cat([past_key, k], 2), torch.cat([past_value, v], 2)
    elif nonpad_kv_seqlen is not None:
        first = nonpad_kv_seqlen.view(-1, 1, 1, 1) - q.shape[2]
    how = Softmax(scale, softcap, softmax_precision, qk_matmul_output_mode)
    window = (left_window_size, 0 if is_causal else right_window_size)
    given = padded_mask(attn_mask, k.shape[2], q.dtype)
    if outputs < SCORES and how.is_plain(q.dtype):
        out, scores = _attend_fused(q, k, v, given, first, window, nonpad_kv_seqlen, scale), None
    else:
        mask = _limited(given, q, k, first, window, nonpad_kv_seqlen)
        out, scores = attend_openly(q, k, v, mask, how)
    return (out if query.dim() == 4 else merge_heads(out)), k, v, scores


def _attend_fused(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    first: Any,
    window: tuple[int, int],
    lengths: Tensor | None,
    scale: float | None,
) -> Tensor:
    """Leave a causal mask that starts at the first key to the kernel."""
    if mask is None and lengths is None and window == (-1, 0) and isinstance(first, int) and first == 0:
        return attend(q, k, v, None, scale, causal=True)
    return attend(q, k, v, _limited(mask, q, k, first, window, lengths), scale)


def _limited(
    mask: Tensor | None, q: Tensor, k: Tensor, first: Any, window: tuple[int, int], lengths: Tensor | None
) -> Tensor | None:
    """Restrict a mask to a window of keys and to those that a sample has."""
    keys = k.shape[2]
    mask = join_masks(mask, window_mask(q.shape[2], keys, first, *window, q.device))
    return mask if lengths is None else join_masks(mask, key_mask(lengths, keys))


def _subgraphs(attributes: Mapping[str, Any]) -> str:
    given = [name for name in ("score_mod", "prob_mod") if name in attributes]
    return f"its scores are changed by a subgraph ({', '.join(given)})" if given else ""


@lower("FlexAttention", domain="ai.onnx.preview", refuses=_subgraphs)
def flex_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float | None = None,
    softmax_precision: DType | None = None,
) -> Tensor:
    """Attend without a mask, with query heads that may share key-value heads."""
    how = Softmax(scale, precision=softmax_precision)
    if how.is_plain(query.dtype):
        return attend(query, key, value, None, scale)
    return attend_openly(query, key, value, None, how)[0]
