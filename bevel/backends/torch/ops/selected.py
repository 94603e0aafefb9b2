"""A product with a frozen matrix of which a few rows or columns are trained: only what these need is kept and computed.

`x @ (w + D)`, where `D` is zero but for the trained rows or columns. To backpropagate through it takes the weights, and
of the activations the columns that meet the trained rows (or all of them, where columns of `w` are trained); no
gradient has the shape of `w`. Source: Yang et al. 2024, S2FT.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bevel.backends.torch.table import lower

Ranges: TypeAlias = Sequence[int]
"""Where slices start and end: `[start, stop, start, stop, ...]`."""


@lower("SelectedMatMul", domain="bevel")
def selected_matmul(
    x: Tensor,
    w: Tensor,
    rows: Tensor | None = None,
    columns: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    row_ranges: Sequence[int] = (),
    column_ranges: Sequence[int] = (),
    transposed: int = 0,
) -> Tensor:
    """Return `x @ w + bias`, with `rows` added to the rows of `w` that the ranges name, `columns` to its columns.

    `transposed` says that `w` is held the other way round; `rows` and `columns` are not.
    """
    matrix = w.t() if transposed else w
    ranges = tuple(row_ranges), tuple(column_ranges)
    y: Tensor = SelectedProduct.apply(x, matrix, rows, columns, *ranges)  # type: ignore[no-untyped-call]
    return y if bias is None else y + bias


class SelectedProduct(torch.autograd.Function):
    """The product, whose backward pass reads no more than it has to."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        w: Tensor,
        rows: Tensor | None,
        columns: Tensor | None,
        row_ranges: Ranges,
        column_ranges: Ranges,
    ) -> Tensor:
        """Add to the product with the frozen matrix what the trained slices make."""
        y = x @ w
        read = None if rows is None else taken(x, row_ranges)
        if rows is not None and read is not None:
            y += read @ rows.to(y.dtype)
        if columns is not None:
            add(y, column_ranges, x @ columns.to(y.dtype))
        ctx.save_for_backward(w, rows, columns, read, None if columns is None else x)
        ctx.row_ranges, ctx.column_ranges = row_ranges, column_ranges
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the input and of the trained slices; the frozen matrix has none."""
        w, rows, columns, read, x = ctx.saved_tensors
        written = None if columns is None else taken(slope, ctx.column_ranges)
        by_rows = None if rows is None else flat(read).t().to(slope.dtype) @ flat(slope)
        by_columns = None if written is None else flat(x).t().to(slope.dtype) @ flat(written)
        by_input = None
        if ctx.needs_input_grad[0]:
            by_input = slope @ w.t().to(slope.dtype)
            if rows is not None:
                add(by_input, ctx.row_ranges, slope @ rows.t().to(slope.dtype))
            if written is not None:
                by_input += written @ columns.t().to(slope.dtype)
        return by_input, None, by_rows, by_columns, None, None


def taken(x: Tensor, ranges: Ranges) -> Tensor:
    """Copy slices of the last axis, so that the rest need not be kept.

    >>> taken(torch.arange(6), (0, 1, 4, 6)).tolist()
    [0, 4, 5]
    """
    return torch.cat([x[..., start:stop] for start, stop in pairs(ranges)], -1)


def add(y: Tensor, ranges: Ranges, change: Tensor) -> None:
    """Add to slices of the last axis, in place, what lies one slice after the other in `change`."""
    place = 0
    for start, stop in pairs(ranges):
        y[..., start:stop] += change[..., place : place + stop - start]
        place += stop - start


def pairs(ranges: Ranges) -> Iterator[tuple[int, int]]:
    """Yield the start and end of each slice."""
    yield from zip(ranges[::2], ranges[1::2], strict=True)


def flat(x: Tensor) -> Tensor:
    """Return a matrix of all rows: `[..., n]` becomes `[rows, n]`."""
    return x.reshape(-1, x.shape[-1])
