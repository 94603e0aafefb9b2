"""Dropout. In training mode a module drops, whatever the file was exported for."""

from collections.abc import Sequence

import torch
from torch import Tensor

from bevel.backends.torch.ops.chance import uniform
from bevel.backends.torch.table import Int, Number, lower


@lower("Dropout", since=12)
def dropout(
    x: Tensor,
    ratio: Number | None = None,
    training_mode: Int = 0,
    *,
    seed: int | None = None,
    outputs: int,
    training: bool,
) -> tuple[Tensor, Tensor | None]:
    """Return x with a share of its elements set to zero and the others enlarged, and where they were kept.

    In training mode a seed is left aside: every step drops others.
    """
    share = 0.5 if ratio is None else ratio
    if not (training or training_mode) or share == 0:
        return x, torch.ones_like(x, dtype=torch.bool) if outputs > 1 else None
    drawn = torch.rand(x.shape, device=x.device) if training else uniform(x.shape, seed, x.device)
    kept = drawn >= share
    return torch.where(kept, x / (1 - share), 0), kept


@lower("Dropout", since=7, until=11)
def dropout_in_training(
    x: Tensor, *, ratio: float = 0.5, outputs: int, training: bool, version: int
) -> tuple[Tensor, Tensor | None]:
    """Return x with a share of its elements set to zero in training mode, and where they were kept."""
    result, kept = dropout(x, ratio, outputs=outputs, training=training)
    return result, kept.to(x.dtype) if kept is not None and version < 10 else kept


@lower("Dropout", until=6)
def dropout_first(
    x: Tensor,
    *,
    ratio: float = 0.5,
    is_test: int = 0,
    consumed_inputs: Sequence[int] = (),
    outputs: int,
    training: bool,
) -> tuple[Tensor, Tensor | None]:
    """Return x with a share of its elements set to zero in training mode, and where they were kept."""
    return dropout_in_training(x, ratio=ratio, outputs=outputs, training=training, version=1)
