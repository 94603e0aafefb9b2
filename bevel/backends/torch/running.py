"""What generated code calls beside the operators' functions."""

from collections.abc import Sequence

import torch
from torch import Tensor

from bevel.errors import UnsupportedModel


def collected(
    rounds: Sequence[Tensor], *, axis: int, kind: torch.dtype | None, rank: int | None, device: torch.device
) -> Tensor:
    """Stack what the rounds of a loop gave along a new axis; of no rounds, every size is zero."""
    if rounds:
        return torch.stack(list(rounds), axis)
    if rank is None or kind is None:
        raise UnsupportedModel("a loop without rounds gives a tensor of unknown rank or type")
    return torch.empty([0] * (rank + 1), dtype=kind, device=device)
