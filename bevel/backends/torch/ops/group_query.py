"""GroupQueryAttention of ONNX Runtime, and its rotary embedding: the attention of exported language models.

A cache holds as many positions as its longest sample; each sample has its own count of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from bevel.backends.torch.ops.coded_caches import Grid
from bevel.backends.torch.ops.rotary import turn
from bevel.backends.torch.ops.scores import (
    Softmax,
    attend,
    attend_openly,
    join_masks,
    merge_heads,
    padded_mask,
    split_heads,
)
from bevel.backends.torch.table import Int, lower
from bevel.errors import UnsupportedModel

MICROSOFT: Final = "com.microsoft"
NONE: Final = "NONE"


def _other_rotation(attributes: Mapping[str, Any]) -> str:
    if attributes.get("is_packed_batching", 0):
        return "its samples are packed"
    return "its angles are scaled" if attributes.get("scale", 1.0) != 1 else ""


@lower("RotaryEmbedding", domain=MICROSOFT, refuses=_other_rotation)
def rotary_embedding_by_position(
    x: Tensor,
    position_ids: Tensor,
    cos_cache: Tensor,
    sin_cache: Tensor,
    *,
    interleaved: int = 0,
    is_packed_batching: int = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
    scale: float = 1.0,
) -> Tensor:
    """Turn the pairs of each head; a single position is that of the first entry."""
    if x.dim() == 4:
        heads = x
    elif num_heads:
        heads = split_heads(x, num_heads)
    else:
        heads = x.reshape(*x.shape[:2], -1, 2 * cos_cache.shape[1]).transpose(1, 2)
    if position_ids.dim() == 1:
        position_ids = position_ids + torch.arange(heads.shape[2], device=x.device)
    turned = _turned(heads, position_ids, cos_cache, sin_cache, interleaved)
    return turned if x.dim() == 4 else merge_heads(turned)


def _turned(heads: Tensor, places: Tensor, cos: Tensor, sin: Tensor, interleaved: int) -> Tensor:
    """Turn as many entries of each head as the caches have angles for."""
    cosine, sine = (cache[places].unsqueeze(-3) for cache in (cos, sin))
    return turn(heads, cosine, sine, interleaved, 2 * cos.shape[1])


def _other_cache(attributes: Mapping[str, Any]) -> str:
    kinds = {attributes.get(f"{x}_quant_type", NONE) for x in "kv"}
    if len(kinds) > 1 or (attributes.get("kv_cache_bit_width", 0) or 8) not in (4, 8):
        return "its caches have codes of different kinds, or of other widths than 4 and 8 bits"
    return "its cache is a window" if attributes.get("sliding_window_cache", 0) else ""


@lower("GroupQueryAttention", domain=MICROSOFT, refuses=_other_cache)
def group_query_attention(
    query: Tensor,
    key: Tensor | None,
    value: Tensor | None,
    past_key: Tensor | None,
    past_value: Tensor | None,
    seqlens_k: Tensor,
    total_sequence_length: Int,
    cos_cache: Tensor | None = None,
    sin_cache: Tensor | None = None,
    position_ids: Tensor | None = None,
    attention_bias: Tensor | None = None,
    head_sink: Tensor | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    q_norm_weight: Tensor | None = None,
    k_norm_weight: Tensor | None = None,
    *,
    causal: int = 1,
    do_rotary: int = 0,
    k_quant_type: str = NONE,
    kv_cache_bit_width: int = 0,
    kv_num_heads: int,
    local_window_size: int = -1,
    num_heads: int,
    qk_norm_epsilon: float = 1e-6,
    qk_output: int = 0,
    rotary_interleaved: int = 0,
    scale: float = 0.0,
    sliding_window_cache: int = 0,
    smooth_softmax: int = 0,
    softcap: float = 0.0,
    v_quant_type: str = NONE,
    outputs: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    """Attend with query heads that share key-value heads, after the tokens of a cache, which grows by the new ones."""
    if outputs > 3:
        raise UnsupportedModel("its scores are an output", where="GroupQueryAttention")
    q, k, v = _heads(query, key, value, num_heads, kv_num_heads)
    if q_norm_weight is not None and k_norm_weight is not None:
        q, k = (F.rms_norm(x, x.shape[-1:], w, qk_norm_epsilon) for x, w in ((q, q_norm_weight), (k, k_norm_weight)))
    lengths = seqlens_k.reshape(-1, 1).long() + 1
    # A first prompt starts at the first position, even where padding makes it longer than the sample is.
    places = (lengths - q.shape[2]).clamp(min=0) + torch.arange(q.shape[2], device=q.device)
    if do_rotary and cos_cache is not None and sin_cache is not None:
        angles = places if position_ids is None else position_ids
        q, k = (_turned(x, angles, cos_cache, sin_cache, rotary_interleaved) for x in (q, k))
    grids = [None if x is None else Grid(x, kv_cache_bit_width or 8) for x in (k_scale, v_scale)]
    k, kept_k = _cached(past_key, k, places, total_sequence_length, grids[0])
    v, kept_v = _cached(past_value, v, places, total_sequence_length, grids[1])
    seen = _seen(places, lengths, k.shape[2], bool(causal), local_window_size)
    mask = join_masks(None if attention_bias is None else padded_mask(attention_bias, k.shape[2], q.dtype), seen)
    sink = q.new_zeros(num_heads) if smooth_softmax and head_sink is None else head_sink
    return merge_heads(_attended(q, k, v, mask, scale, softcap, sink)), kept_k, kept_v


def _heads(
    query: Tensor, key: Tensor | None, value: Tensor | None, many: int, few: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the heads of operands that come apart, or packed in the first."""
    if key is not None and value is not None:
        return split_heads(query, many), split_heads(key, few), split_heads(value, few)
    q, k, v = torch.split(split_heads(query, many + 2 * few), [many, few, few], 1)
    return q, k, v


def _cached(past: Tensor | None, new: Tensor, places: Tensor, total: int, grid: Grid | None) -> tuple[Tensor, Tensor]:
    """Return all entries as they are attended to, and as they are kept."""
    kept = _appended(past, new if grid is None else grid.encode(new), places, total)
    return kept if grid is None else grid.decode(kept, new), kept


def _appended(past: Tensor | None, new: Tensor, places: Tensor, total: int) -> Tensor:
    """Write new entries to a cache at each sample's places; it grows where it is too short, and is zero beyond them."""
    if past is None:
        return new
    length = torch.sym_max(past.shape[2], total)  # type: ignore[no-untyped-call]
    cache = F.pad(past, (0, 0, 0, length - past.shape[2]))
    present = cache.scatter(2, places[:, None, :, None].expand_as(new), new.to(cache.dtype))
    beyond = torch.arange(length, device=new.device) > places[:, -1:]
    return present.masked_fill(beyond[:, None, :, None], 0)


def _seen(places: Tensor, lengths: Tensor, keys: int, causal: bool, window: int) -> Tensor:
    """Return which keys each query sees: `batch, 1, queries, keys`."""
    every, place = torch.arange(keys, device=places.device), places[:, None, :, None]
    seen = every <= place if causal else (every < lengths[:, None, None]).expand(-1, 1, places.shape[1], -1)
    return seen & (every > place - window) if window > 0 else seen


def _attended(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, softcap: float, sink: Tensor | None
) -> Tensor:
    if sink is None and not softcap:
        return attend(q, k, v, mask, scale or None)
    return attend_openly(q, k, v, mask, Softmax(scale or None, softcap), sink)[0]
