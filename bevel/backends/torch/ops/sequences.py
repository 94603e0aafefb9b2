"""Sequences are Python lists, which no function changes, and an optional value is None or what it holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bevel.backends.torch.table import Int, Ints, lower
from bevel.errors import UnsupportedModel


@lower("SequenceConstruct")
def sequence_construct(*tensors: Any) -> list[Any]:
    """Make a sequence."""
    return list(tensors)


@lower("SequenceEmpty")
def sequence_empty(*, dtype: int = 1) -> list[Any]:
    """Make a sequence of nothing, whose element type no one needs."""
    return []


@lower("SequenceInsert")
def sequence_insert(sequence: Any, tensor: Any, position: Int | None = None) -> list[Any]:
    """Insert a tensor, at the end by default."""
    result = list(sequence)
    place = len(result) if position is None else _number(position)
    if not -len(result) <= place <= len(result):
        raise UnsupportedModel(f"position {place} is outside a sequence of {len(result)}", where="SequenceInsert")
    result.insert(place, tensor)
    return result


@lower("SequenceErase")
def sequence_erase(sequence: Any, position: Int | None = None) -> list[Any]:
    """Remove a tensor, the last one by default."""
    result = list(sequence)
    del result[-1 if position is None else _number(position)]
    return result


@lower("SequenceAt")
def sequence_at(sequence: Any, position: Int) -> Any:
    """Return the tensor at a position."""
    return sequence[_number(position)]


@lower("SequenceLength")
def sequence_length(sequence: Any, *, device: torch.device) -> Tensor:
    """Count the tensors."""
    return torch.tensor(len(sequence), device=device)


@lower("SplitToSequence")
def split_to_sequence(x: Tensor, split: Ints | None = None, *, axis: int = 0, keepdims: int = 1) -> list[Tensor]:
    """Cut a tensor along an axis: into parts of the sizes given, parts of one size (the last may be less), or ones."""
    if split is None:
        return list(torch.split(x, 1, axis)) if keepdims else list(x.unbind(axis))
    if isinstance(split, Sequence) and len(split) != 1:
        return list(torch.split(x, list(split), axis))
    return list(torch.split(x, _number(split), axis))


@lower("ConcatFromSequence")
def concat_from_sequence(sequence: Any, *, axis: int, new_axis: int = 0) -> Tensor:
    """Join tensors along an axis, which may be a new one."""
    return torch.stack(sequence, axis) if new_axis else torch.cat(sequence, axis)


@lower("Optional")
def optional(value: Any = None, *, type: Any = None) -> Any:
    """Wrap a value, or nothing of a type that no one needs."""
    return value


@lower("OptionalHasElement")
def optional_has_element(value: Any = None, *, device: torch.device) -> Tensor:
    """Say whether there is a value."""
    return torch.tensor(value is not None, device=device)


@lower("OptionalGetElement")
def optional_get_element(value: Any) -> Any:
    """Return the value, which has to be there."""
    if value is None:
        raise UnsupportedModel("the optional value is empty", where="OptionalGetElement")
    return value


def _number(position: Any) -> Any:
    """Return the only entry of a list, or a number as it is."""
    return position[0] if isinstance(position, Sequence) else position
