"""The embedding of a transformer in one operator: rows of three tables, added and normalised."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bevel.backends.torch.table import lower

MICROSOFT = "com.microsoft"


@lower("EmbedLayerNormalization", domain=MICROSOFT)
def embed_layer_normalization(
    input_ids: Tensor,
    segment_ids: Tensor | None,
    word_embedding: Tensor,
    position_embedding: Tensor,
    segment_embedding: Tensor | None,
    gamma: Tensor,
    beta: Tensor,
    mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    *,
    epsilon: float = 1e-12,
    mask_index_type: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Add up rows of tables and normalise the sum; how many tokens of each sample the mask shows is an output too."""
    if position_ids is None:
        position_ids = torch.arange(input_ids.shape[1], device=input_ids.device)
    total = F.embedding(input_ids, word_embedding) + F.embedding(position_ids, position_embedding)
    if segment_ids is not None and segment_embedding is not None:
        total = total + F.embedding(segment_ids, segment_embedding)
    y = F.layer_norm(total, total.shape[-1:], gamma, beta, epsilon)
    shown = torch.zeros_like(input_ids) if mask is None else mask == 1
    return y, shown.sum(1).to(torch.int32), total


@lower("QEmbedLayerNormalization", domain=MICROSOFT)
def quantized_embed_layer_normalization(
    input_ids: Tensor,
    segment_ids: Tensor | None,
    word_embedding: Tensor,
    position_embedding: Tensor,
    segment_embedding: Tensor | None,
    gamma: Tensor,
    beta: Tensor,
    mask: Tensor | None,
    word_scale: Tensor,
    position_scale: Tensor,
    segment_scale: Tensor | None,
    gamma_scale: Tensor,
    beta_scale: Tensor,
    word_zero: Tensor,
    position_zero: Tensor,
    segment_zero: Tensor | None,
    gamma_zero: Tensor,
    beta_zero: Tensor,
    *,
    epsilon: float = 1e-12,
) -> tuple[Tensor, Tensor]:
    """Do the same with tables, gain and offset of bytes, of which each has one scale."""
    segments = None
    if segment_embedding is not None and segment_scale is not None and segment_zero is not None:
        segments = _restored(segment_embedding, segment_scale, segment_zero)
    words = _restored(word_embedding, word_scale, word_zero)
    positions = _restored(position_embedding, position_scale, position_zero)
    gain, offset = _restored(gamma, gamma_scale, gamma_zero), _restored(beta, beta_scale, beta_zero)
    return embed_layer_normalization(
        input_ids, segment_ids, words, positions, segments, gain, offset, mask, epsilon=epsilon
    )[:2]


def _restored(x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    return (x.to(scale.dtype) - zero.to(scale.dtype)) * scale
