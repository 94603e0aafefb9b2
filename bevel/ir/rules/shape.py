"""Operators that read sizes. Where a size ends up as a number, dropping entries would change that number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import onnx_ir as ir

from bevel.ir.action import SIZES_ONLY
from bevel.ir.axes import fresh
from bevel.ir.coupling import Freedom, rule
from bevel.ir.integers import EVALUATED
from bevel.ir.site import Facts, Site

# Operands that say how large something is: the rules of these operators restate them when a size changes.
SIZE_OPERANDS: Final = {
    "Reshape": (1,),
    "Expand": (1,),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Tile": (1,),
    "Pad": (1,),
    "ConstantOfShape": (0,),
}

Origins = Sequence[frozenset[int]]  # for each entry of an integer tensor, the axes whose sizes it is made of


@rule("Shape", "Size", acts=SIZES_ONLY)
def shape(site: Site) -> None:
    """Read sizes only: nothing is coupled, and the result is no data of the model."""
    axes = site.axes(0)
    every = frozenset(range(len(axes)))
    origins: Origins = [every]
    if site.node.op_type == "Shape":
        window = slice(site.integer("start"), site.integer("end", len(axes)))
        origins = [frozenset([place]) for place in range(len(axes))[window]]
    sizes = [fresh(len(origins))] if site.node.op_type == "Shape" else []
    site.fix(sizes, "its entries are sizes")
    numbers = frozenset().union(*_numbers(site.node.outputs[0], origins, site.facts))
    site.keep([axes[place] for place in sorted(numbers)], Freedom.PERMUTE, "its size is used as a number")
    site.set(0, sizes)


def _numbers(value: ir.Value, origins: Origins, facts: Facts) -> Iterator[frozenset[int]]:
    """Follow sizes through shape arithmetic and yield the axes of those that something else than a size is made of."""
    if value.is_graph_output():
        yield from origins
    for node, index in value.uses():
        if node.domain == "" and index in SIZE_OPERANDS.get(node.op_type, ()):
            continue
        if node.domain == "" and node.op_type in EVALUATED:
            yield from _numbers(node.outputs[0], _after(node, index, origins, facts), facts)
        else:
            yield from origins


def _after(node: ir.Node, index: int, origins: Origins, facts: Facts) -> Origins:
    """Return what the output of shape arithmetic is made of: all of it, or the entries that a Gather takes."""
    places = node.inputs[1] if node.op_type == "Gather" and index == 0 else None
    taken = None if places is None else facts.integers_of(places)
    if taken is None or len(origins) < 2:  # one for all, however many entries there are
        return [frozenset().union(*origins)]
    return [origins[int(place)] for place in taken.ravel()]
