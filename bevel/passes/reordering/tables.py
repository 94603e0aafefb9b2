"""Give each layer a table of its own where all share one: the angles of rotary positions, biases by distance.

A table ties the layers that read it: their channels are one dimension, with one order for all. It is copied, with the
nodes that compute it, once for each part of the graph that holds together without it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Final

import numpy as np
import onnx_ir as ir
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from bevel.ir.action import Action
from bevel.ir.axes import Dim, atoms
from bevel.ir.canonical import arithmetic, sharing
from bevel.ir.coupling import Freedom, find_action
from bevel.ir.groups import Analysis, Group, analyse
from bevel.ir.names import Names
from bevel.passes.fitting.layers import Layer, layers

INTEGERS: Final = frozenset({ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL})


def separate_tables(model: ir.Model) -> int:
    """Copy shared tables, in place, and return how many copies were made; ask for groups anew afterwards.

    A table is computed from small constants and integer inputs alone, and has fewer numbers than what it is used with;
    each part has a layer of its own that makes the channels. Copies that nothing tells apart become one again when the
    model is saved.
    """
    done: set[ir.Value] = set()
    copies = 0
    while True:
        analysis = analyse(model)
        weights = [layer for layer in layers(model) if min(layer.sizes) > 1]
        shared = (_Shared.find(analysis, group, weights) for group in analysis.groups if group.allows(Freedom.PERMUTE))
        found = next((each for each in shared if each is not None and done.isdisjoint(each.tables)), None)
        if found is None:
            return copies
        done |= set(found.tables)
        copies += found.separate()


@dataclass
class _Shared:
    """Tables `tables`, what `nodes` make of them, and the parts of the graph that use either."""

    analysis: Analysis
    tables: list[ir.Value]
    nodes: list[ir.Node]
    parts: list[set[ir.Node]]

    @staticmethod
    def find(analysis: Analysis, group: Group, weights: Sequence[Layer]) -> "_Shared | None":
        """Return what ties the parts of a group together, None if it has one part or more than tables tie them."""
        if {member.value for member in group.members} <= {layer.weight for layer in weights}:
            return None
        reading = _Reading(analysis, group.dim, weights)
        parts = reading.parts()
        tables = [value for value in reading.tables if any(use.node in reading.made for use in value.uses())]
        tables += [value for value in reading.tables if value not in tables and _users(value, parts) > 1]
        if len(parts) < 2 or not tables or not reading.light(tables, parts):
            return None
        return _Shared(analysis, tables, list(reading.made), parts)

    def separate(self) -> int:
        """Copy the tables for all parts but the first."""
        names = Names(self.analysis.model)
        return sum(self._copy(part, names) for part in self.parts[1:])

    def _copy(self, part: set[ir.Node], names: Names) -> int:
        needed = self._needed(part)
        inner = part | set(needed)
        copies: dict[ir.Value, ir.Value] = {}
        for table in self.tables:
            if any(use.node in inner for use in table.uses()):
                copies[table] = sharing.copy_of(table, names.free(table.name or "table"))
                self.analysis.model.graph.initializers.add(copies[table])
        for node in needed:
            twin = arithmetic.copy_of(node, names.free(node.outputs[0].name or "table"))
            _rewire(twin, copies)
            self.analysis.model.graph.insert_after(node, twin)
            copies[node.outputs[0]] = twin.outputs[0]
        for node in part:
            _rewire(node, copies)
        return sum(value.is_initializer() for value in copies.values())

    def _needed(self, part: set[ir.Node]) -> list[ir.Node]:
        """Return the nodes that make what a part uses, in the order of the graph."""
        needed: set[ir.Node] = set()
        for node in reversed(self.nodes):
            if any(use.node in part or use.node in needed for use in node.outputs[0].uses()):
                needed.add(node)
        return [node for node in self.nodes if node in needed]


def _rewire(node: ir.Node, copies: Mapping[ir.Value, ir.Value]) -> None:
    for index, value in enumerate(node.inputs):
        if value is not None and value in copies:
            node.replace_input_with(index, copies[value])


def _users(value: ir.Value, parts: Iterable[set[ir.Node]]) -> int:
    return sum(any(use.node in part for use in value.uses()) for part in parts)


@dataclass
class _Reading:
    """What in a graph has a dimension: tables, the nodes `made` of tables alone, and the rest."""

    analysis: Analysis
    dim: Dim
    layers: Sequence[Layer]
    tables: list[ir.Value] = field(default_factory=list)
    made: dict[ir.Node, None] = field(default_factory=dict)
    makers: set[ir.Node] = field(default_factory=set)

    def __post_init__(self) -> None:
        weights = {layer.weight for layer in self.layers}
        self.makers = {layer.node for layer in self.layers if self._has(layer.node.outputs[0])}
        self.tables = [
            value
            for value in self.analysis.facts.axes
            if value.is_initializer() and not value.is_graph_input() and value not in weights and self._has(value)
        ]
        known = set(self.tables)
        for node in self.analysis.model.graph:
            if self._computes_table(node, known):
                self.made[node] = None
                known.update(node.outputs)

    def parts(self) -> list[set[ir.Node]]:
        """Return the nodes that have the dimension, apart where nothing but tables joins them."""
        joined = {*self.tables, *(value for node in self.made for value in node.outputs)}
        graph = self.analysis.model.graph
        owned = {node: list(self._own(node)) for node in ir.traversal.RecursiveGraphIterator(graph)}
        nodes = [node for node, values in owned.items() if values and node not in self.made and not _reads_sizes(node)]
        number = {value: place for place, value in enumerate({value: None for node in nodes for value in owned[node]})}
        edges = [
            (place, number[value]) for place, node in enumerate(nodes) for value in owned[node] if value not in joined
        ]
        found: dict[int, set[ir.Node]] = {}
        for node, label in zip(nodes, _labels(len(nodes), len(number), edges), strict=True):
            found.setdefault(label, set()).add(node)
        return list(found.values())

    def light(self, tables: Iterable[ir.Value], parts: Iterable[set[ir.Node]]) -> bool:
        """Say whether each part has a layer that makes the dimension, and weights of more numbers than the tables."""
        graph = self.analysis.model.graph
        size = sum(_size(value) for value in tables)
        return all(
            size < self._weights(part) and self.makers & part and all(node.graph is graph for node in part)
            for part in parts
        )

    def _weights(self, part: set[ir.Node]) -> int:
        values = {value for node in part for value in self._own(node) if value.is_initializer()}
        return sum(_size(value) for value in values - set(self.tables))

    def _own(self, node: ir.Node) -> Iterator[ir.Value]:
        return (value for value in (*node.inputs, *node.outputs) if value is not None and self._has(value))

    def _has(self, value: ir.Value) -> bool:
        return any(self.dim in atoms(axis) for axis in self.analysis.axes(value) or ())

    def _computes_table(self, node: ir.Node, known: set[ir.Value]) -> bool:
        """Say whether a node makes one value that has the dimension of tables, and else of nothing that was learnt."""
        if len(node.outputs) != 1 or not self._has(node.outputs[0]):
            return False
        values = [value for value in node.inputs if value is not None]
        having = [value for value in values if self._has(value)]
        return bool(having) and known.issuperset(having) and all(_plain(each) for each in values if each not in known)


def _labels(nodes: int, values: int, edges: Sequence[tuple[int, int]]) -> list[int]:
    """Number the parts of a graph in which nodes are joined by the values that they share."""
    rows, columns = np.array(edges, np.int64).reshape(-1, 2).T
    joins = coo_array((np.ones(len(rows)), (rows, nodes + columns)), shape=(nodes + values, nodes + values))
    _, labels = connected_components(joins, directed=False)
    return [int(label) for label in labels[:nodes]]


def _plain(value: ir.Value) -> bool:
    """Say whether a value comes of integers, sizes, and vectors of floats alone."""
    pending, met = [value], {value}
    while pending:
        value = pending.pop()
        node = value.producer()
        if value.is_graph_input() and value.dtype not in INTEGERS:
            return False
        if value.is_initializer() and value.dtype not in INTEGERS and _size(value) != max(_shape(value), default=1):
            return False
        if node is not None and not _reads_sizes(node):
            fresh = [each for each in node.inputs if each is not None and each not in met]
            met.update(fresh)
            pending.extend(fresh)
    return True


def _reads_sizes(node: ir.Node) -> bool:
    action = find_action(node.domain, node.op_type)
    return isinstance(action, Action) and action.blind


def _shape(value: ir.Value) -> tuple[int, ...]:
    return () if value.const_value is None else tuple(value.const_value.shape.numpy())


def _size(value: ir.Value) -> int:
    return prod(_shape(value))
