"""Linear attention: a recurrence over outer products of keys and values, one state a head."""

from __future__ import annotations

import torch
from torch import Tensor

from bevel.backends.torch.ops.scores import merge_heads, split_heads
from bevel.backends.torch.table import lower
from bevel.errors import UnsupportedModel

UPDATE_RULES = ("linear", "gated", "delta", "gated_delta")


@lower("LinearAttention")
@lower("LinearAttention", domain="com.microsoft")
def linear_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past_state: Tensor | None = None,
    decay: Tensor | None = None,
    beta: Tensor | None = None,
    *,
    chunk_size: int = 64,
    kv_num_heads: int = 0,
    q_num_heads: int = 0,
    scale: float = 0.0,
    update_rule: str = "gated_delta",
) -> tuple[Tensor, Tensor]:
    """Read a state that each position first fades (`decay`) and then writes to, as much as `beta` says.

    The state is kept in single precision at least. `chunk_size` says how to compute, not what.
    """
    _check(update_rule, decay, beta)
    wide = torch.promote_types(query.dtype, torch.float32)
    q = split_heads(query, q_num_heads).to(wide)
    k, v = (split_heads(x, kv_num_heads).to(wide) for x in (key, value))
    zeros = (k.shape[0], kv_num_heads, k.shape[3], v.shape[3])
    state = q.new_zeros(zeros) if past_state is None else past_state.to(wide)
    fade = None if decay is None else split_heads(decay, kv_num_heads).to(wide).exp()
    rate = None if beta is None else beta.to(wide).transpose(1, 2).unsqueeze(-1)
    read = []
    for place in range(q.shape[2]):
        state = _written(state, k, v, fade, rate, place)
        read.append(_read(q[:, :, place], state))
    out = torch.stack(read, 2) * (scale or q.shape[3] ** -0.5)
    return merge_heads(out).to(query.dtype), state.to(query.dtype if past_state is None else past_state.dtype)


def _check(rule: str, decay: Tensor | None, beta: Tensor | None) -> None:
    """Refuse operands that the update rule does not take, as the operator does."""
    if rule not in UPDATE_RULES:
        raise UnsupportedModel(
            f"linear attention has no update rule {rule!r}", remedy=f"valid: {', '.join(UPDATE_RULES)}"
        )
    if ("gated" in rule) != (decay is not None) or ("delta" in rule) != (beta is not None):
        raise UnsupportedModel(f"the update rule {rule!r} of linear attention does not fit the operands decay and beta")


def _written(state: Tensor, k: Tensor, v: Tensor, fade: Tensor | None, rate: Tensor | None, place: int) -> Tensor:
    """Fade the state and write the value under its key; the delta rule writes what the state has wrong of it."""
    key, value = k[:, :, place].unsqueeze(-1), v[:, :, place].unsqueeze(-2)
    if fade is not None:
        state = state * fade[:, :, place].unsqueeze(-1)
    if rate is not None:
        value = rate[:, :, place].unsqueeze(-1) * (value - key.transpose(-1, -2) @ state)
    return state + key * value


def _read(query: Tensor, state: Tensor) -> Tensor:
    repeats = query.shape[1] // state.shape[1]
    return (query.unsqueeze(-2) @ state.repeat_interleave(repeats, 1)).squeeze(-2)
