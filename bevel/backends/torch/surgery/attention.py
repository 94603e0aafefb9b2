"""Multi-head attention whose heads together may be narrower than what they read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional


class NarrowMultiheadAttention(nn.MultiheadAttention):
    """`nn.MultiheadAttention` that reads its sizes from its weights.

    PyTorch's own takes the width of all heads together for the width of its input. Parameters, their names and the
    arguments of `forward` are the same. Modules become one by having their class replaced, and `narrow` says when.
    """

    scale: float
    if TYPE_CHECKING:
        # Declared as tensors by PyTorch, though each may be None.
        in_proj_weight: nn.Parameter | None  # type: ignore[assignment]
        in_proj_bias: nn.Parameter | None  # type: ignore[assignment]

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend as `nn.MultiheadAttention` does; a causal mask is made where `is_causal` comes without one."""
        batched = query.dim() == 3
        q, k, v = self._projected(*(self._batch_first(tensor, batched) for tensor in (query, key, value)))
        if is_causal and (attn_mask is None or (key_padding_mask is None and not need_weights)):
            # As PyTorch does where it need not look at the mask: added keys come after all others, and are not seen.
            added = (self.bias_k is not None) + self.add_zero_attn
            attn_mask = torch.ones(q.shape[2], k.shape[2] + added, dtype=torch.bool, device=q.device).triu(1)
        if key_padding_mask is not None and not batched:
            key_padding_mask = key_padding_mask[None]
        mask = self._mask(attn_mask, key_padding_mask, q)
        k, v, mask = self._extended(k, v, mask)
        mixed, weights = self._attend(q, k, v, mask, need_weights)
        output = self.out_proj(mixed.transpose(1, 2).flatten(2))
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if not batched:
            return output[0], None if weights is None else weights[0]
        return output if self.batch_first else output.transpose(0, 1), weights

    def _batch_first(self, tensor: Tensor, batched: bool) -> Tensor:
        if not batched:
            return tensor[None]
        return tensor if self.batch_first else tensor.transpose(0, 1)

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        """Return queries, keys and values as [batch, head, place, width]."""
        weights = self._weights()
        widths = [weight.shape[0] for weight in weights]
        biases = [None] * 3 if self.in_proj_bias is None else torch.split(self.in_proj_bias, widths)
        projected = (
            functional.linear(tensor, weight, bias)
            for tensor, weight, bias in zip((query, key, value), weights, biases, strict=True)
        )
        return [self._heads(tensor) for tensor in projected]

    def _heads(self, tensor: Tensor) -> Tensor:
        return tensor.reshape(*tensor.shape[:2], self.num_heads, -1).transpose(1, 2)

    def _weights(self) -> tuple[Tensor, ...]:
        if self.in_proj_weight is None:
            return self.q_proj_weight, self.k_proj_weight, self.v_proj_weight
        mixed = self.out_proj.weight.shape[1]
        width = (self.in_proj_weight.shape[0] - mixed) // 2
        return torch.split(self.in_proj_weight, [width, width, mixed])

    def _mask(self, attention: Tensor | None, padding: Tensor | None, like: Tensor) -> Tensor | None:
        """Return what is added to the scores, of a shape that broadcasts against [batch, head, query, key]."""
        mask = None if attention is None else _additive(attention, like)
        if mask is not None and mask.dim() == 3:
            mask = mask.reshape(-1, self.num_heads, *mask.shape[1:])
        if padding is None:
            return mask
        hidden = _additive(padding, like)[:, None, None, :]
        return hidden if mask is None else mask + hidden

    def _extended(self, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Append the learned key and value, and the one of zeros, where the module has them."""
        if self.bias_k is not None and self.bias_v is not None:
            k, v = (torch.cat((x, self._learned(bias, x)), 2) for x, bias in ((k, self.bias_k), (v, self.bias_v)))
        if self.add_zero_attn:
            k, v = (functional.pad(x, (0, 0, 0, 1)) for x in (k, v))
        return k, v, None if mask is None else functional.pad(mask, (0, k.shape[2] - mask.shape[-1]))

    def _learned(self, bias: Tensor, like: Tensor) -> Tensor:
        return self._heads(bias).expand(like.shape[0], -1, -1, -1)

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        dropout = self.dropout if self.training else 0.0
        if not need_weights:
            return functional.scaled_dot_product_attention(q, k, v, mask, dropout, scale=self.scale), None
        scores = q @ k.transpose(-2, -1) * self.scale
        weights = torch.softmax(scores if mask is None else scores + mask, -1)
        weights = functional.dropout(weights, dropout)
        return weights @ v, weights


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    """Turn a mask that is true where nothing is attended to into what is added to scores."""
    if mask.dtype is not torch.bool:
        return mask.to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, -torch.inf)
