"""Where the operands of a node have a dimension: each input is one, but where some are packed into one input."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from math import prod

from bevel.ir.action import Action, Packed
from bevel.ir.axes import Axis, Dim, Sum, resolve
from bevel.ir.site import Facts
from bevel.ir.strands import Occurrence, Strand


def operands(strand: Strand, action: Action, facts: Facts) -> Mapping[int, list[Occurrence]]:
    """Return the occurrences of a strand by operand: what stands across those of a packed input belongs to each."""
    found = dict(strand.inputs)
    for packed in action.packed:
        for each in found.pop(packed.input, []):
            for operand in _holding(each, packed, facts):
                found.setdefault(operand, []).append(each)
    return found


def _holding(each: Occurrence, packed: Packed, facts: Facts) -> tuple[int, ...]:
    """Return the operands of a packed input that an occurrence belongs to."""
    axes = facts.of(each.value) or ()
    if each.axis != len(axes) - 1:
        return packed.operands
    place = first_entry(axes[-1], each.path)
    ends = zip(packed.operands, accumulate(packed.sizes), strict=True)
    return next((operand,) for operand, end in ends if place < end)


def first_entry(axis: Axis, path: tuple[int, ...]) -> int:
    """Return the first place along an axis of what stands at a path within it.

    >>> from bevel.ir.axes import product, total
    >>> heads, width = Dim(2), Dim(3)
    >>> fused = product(heads, width)
    >>> first_entry(total(fused, fused), (1, 1))
    6
    """
    axis = resolve(axis)
    if isinstance(axis, Dim) or not path:
        return 0
    place, *deeper = path
    if isinstance(axis, Sum):
        return sum(term.size for term in axis.terms[:place]) + first_entry(axis.terms[place], tuple(deeper))
    behind = prod(factor.size for factor in axis.factors[place + 1 :])
    return behind * first_entry(axis.factors[place], tuple(deeper))
