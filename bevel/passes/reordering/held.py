"""Where the entries of a group are at hand: the activations that are summed over them, and the weights that make those.

Where two activations are multiplied, as queries and keys are, the second counts: what is kept in a cache.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import onnx_ir as ir

from bevel.ir.axes import Dim, atoms
from bevel.ir.groups import Analysis
from bevel.ir.site import Site
from bevel.ir.strands import Occurrence, Strand, strands
from bevel.passes.reordering.targets import Target


class Held(NamedTuple):
    """An activation that holds a target's entries on an axis, and the node that sums over them; are they keys?"""

    node: ir.Node
    value: ir.Value
    axis: int
    keys: bool


@dataclass
class Holdings:
    """Finds what holds the entries of groups; each node is read once."""

    analysis: Analysis
    _read: dict[ir.Node, list[Strand]] = field(default_factory=dict)

    def held(self, target: Target) -> list[Held]:
        """Return the activations that nodes of the main graph sum over along a target's dimension."""
        found: dict[tuple[ir.Value, int], Held] = {}
        for node, strand in self._contractions(target.group.dim):
            operands = [index for index in strand.inputs if not _fixed(node.inputs[index])]
            if operands:
                place = strand.inputs[operands[-1]][-1]
                one = Held(node, place.value, place.axis, len(operands) > 1)
                found.setdefault((one.value, one.axis), one)
        return list(found.values())

    def sources(self, target: Target) -> list[Occurrence]:
        """Return where in the initializers that make what is held the entries stand."""
        pending = [
            strand.inputs[index][-1]
            for node, strand in self._contractions(target.group.dim)
            for index in [index for index in strand.inputs if not _fixed(node.inputs[index])][-1:]
        ]
        met, found = set(pending), []
        while pending:
            place = pending.pop()
            node = place.value.producer()
            if node is None:
                found.append(place)
                continue
            for strand in self.strands(node):
                if strand.dim is target.group.dim and any(place in side for side in strand.outputs.values()):
                    fresh = [each for side in strand.inputs.values() for each in side if each not in met]
                    met.update(fresh)
                    pending.extend(fresh)
        return [place for place in found if place.value.is_initializer()]

    def strands(self, node: ir.Node) -> list[Strand]:
        """Return what a node does with each occurrence of its dimensions."""
        if node not in self._read:
            facts = self.analysis.facts
            self._read[node] = strands(Site(node, facts, self.analysis.model.opset_imports.get(node.domain, 1)))
        return self._read[node]

    def _contractions(self, dim: Dim) -> Iterator[tuple[ir.Node, Strand]]:
        """Yield the nodes whose first output has lost a dimension that two operands, or two places of one, have."""
        for node in self.analysis.model.graph:
            if any(_has(self.analysis, value, dim) for value in node.inputs):
                for strand in self.strands(node):
                    if strand.dim is dim and 0 not in strand.outputs and sum(map(len, strand.inputs.values())) > 1:
                        yield node, strand


def _has(analysis: Analysis, value: ir.Value | None, dim: Dim) -> bool:
    return value is not None and any(dim in atoms(axis) for axis in analysis.axes(value) or ())


def _fixed(value: ir.Value | None) -> bool:
    """Say whether a value is a weight, as it is or transposed."""
    if value is None or value.is_initializer():
        return True
    node = value.producer()
    return node is not None and bool(node.inputs) and all(map(_fixed, node.inputs))
