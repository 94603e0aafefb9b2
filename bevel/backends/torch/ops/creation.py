"""Constants and ranges."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bevel.backends.torch.table import DType, Ints, Number, lower
from bevel.backends.torch.types import torch_type


@lower("Constant")
def constant(
    *,
    value: Any = None,
    value_float: float | None = None,
    value_floats: Sequence[float] | None = None,
    value_int: int | None = None,
    value_ints: Sequence[int] | None = None,
    value_string: str | None = None,
    value_strings: Sequence[str] | None = None,
    device: torch.device,
) -> Any:
    """Return the one value that is given."""
    if value is not None:
        return value
    strings = value_string if value_string is not None else value_strings
    if strings is not None:
        return np.array(strings, dtype=object)
    floats = value_float if value_float is not None else value_floats
    if floats is not None:
        return torch.tensor(floats, dtype=torch.float32, device=device)
    return torch.tensor(value_int if value_int is not None else value_ints, dtype=torch.int64, device=device)


@lower("ConstantOfShape")
def constant_of_shape(shape: Ints, *, value: Tensor | None = None, device: torch.device) -> Tensor:
    """Return a tensor of one value, by default 0.0."""
    if value is None:
        return torch.zeros(list(shape), device=device)
    return value.to(device).reshape(()).expand(list(shape))


@lower("Range")
def range_of(
    start: Number, limit: Number, delta: Number, *, stash_type: int = 1, output_type: int, device: torch.device
) -> Tensor:
    """Return numbers from `start` up to `limit`, which is left out, with steps of `delta`."""
    kind = torch_type(output_type)
    wide = torch_type(stash_type) if kind in (torch.float16, torch.bfloat16) else kind
    return torch.arange(start, limit, delta, dtype=wide, device=device).to(kind)


@lower("EyeLike")
def eye_like(x: Tensor, *, dtype: DType | None = None, k: int = 0) -> Tensor:
    """Return ones on the diagonal `k` places to the right of the main one, in the shape of x."""
    rows, columns = (torch.arange(size, device=x.device) for size in x.shape)
    return (rows.unsqueeze(1) + k == columns).to(dtype or x.dtype)
