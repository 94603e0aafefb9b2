"""The layers of experts in a region of a graph: products that read rows, and products that read what those give."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import onnx_ir as ir

FLOATS: Final = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE}


class Unlike(Exception):
    """Why a choice leads to no mixture of experts that is known."""


@dataclass(frozen=True, eq=False)
class Chain:
    """The layers of one expert, or of all stacked: from `given`, what the first products read, to what the last gives.

    `read` is what the last product reads, `hidden` the same before gates, where those are multiplied in here already:
    by `gate`.
    `tails` are its output and what constants make of that, one after the other; `weights` are values that differ from
    expert to expert: taken from a stack, or stacks themselves. `nodes` lead to `hidden`, `after` to the last tail.
    """

    given: ir.Value
    hidden: ir.Value
    read: ir.Value
    tails: tuple[ir.Value, ...]
    nodes: tuple[ir.Node, ...]
    after: tuple[ir.Node, ...]
    weights: tuple[ir.Value, ...]
    gate: ir.Value | None = None


def is_float(value: ir.Value) -> bool:
    """Say whether a value holds floating-point numbers."""
    return value.dtype in FLOATS


class Chains:
    """The layers of experts among nodes that lie between `given`, the logits and where their outputs meet.

    `chosen` are the numbers of the experts that rows take.
    """

    def __init__(
        self,
        inside: Sequence[ir.Node],
        given: ir.Value,
        logits: ir.Value,
        chosen: ir.Value,
        experts: int,
        summing: Container[ir.Node],
        fixed: Callable[[ir.Value], bool],
    ) -> None:
        self.inside = inside
        self.experts = experts
        self.summing = summing
        self.fixed = fixed
        self.rows = _floats_of(inside, given)
        self.weighed = _floats_of(inside, logits)
        self.routed = _forward(inside, chosen, self.rows | self.weighed)
        self.above: dict[ir.Value, frozenset[ir.Node]] = {}  # the products that a value comes of
        self.reads: dict[ir.Node, ir.Value] = {}  # what a product reads of the rows

    def found(self) -> list[Chain]:
        """Return the chains, in the order of their last products.

        Raises `Unlike` where products follow each other in another way than those of experts with two layers each.
        """
        for node in self.inside:
            known = frozenset[ir.Node]().union(*(self.above.get(value, ()) for value in node.inputs if value))
            data = self._data(node)
            if data is not None:
                self.reads[node] = data
                known |= {node}
            self.above |= dict.fromkeys(node.outputs, known)
        lasts = [node for node, data in self.reads.items() if self.above.get(data)]
        firsts = [node for node in self.reads if node not in lasts]
        used = [node for last in lasts for node in self.above[self.reads[last]]]
        third = next((node for node in used if node in lasts), None)
        if third is not None:
            raise Unlike(f"{_told(third)} is not the last layer of an expert that reads two others")
        if sorted(map(id, used)) != sorted(map(id, firsts)):
            node = next((node for node in firsts if used.count(node) != 1), self.inside[0])
            raise Unlike(f"{_told(node)} does not lead to the last product of one expert")
        if len(lasts) > self.experts:
            raise Unlike(f"it chooses from {self.experts} experts, but {len(lasts)} are there, e.g. {_told(lasts[0])}")
        return [self._chain(last, [node for node in firsts if node in self.above[self.reads[last]]]) for last in lasts]

    def _data(self, node: ir.Node) -> ir.Value | None:
        """Return what a product reads of the rows, None if the node is no product of rows with weights."""
        if node not in self.summing or len(node.outputs) != 1:
            return None
        data = [value for value in node.inputs if value is not None and value in self.rows]
        others = [value for value in node.inputs if value is not None and value not in self.rows]
        return data[0] if len(data) == 1 and any(map(self._is_weight, others)) else None

    def _is_weight(self, value: ir.Value) -> bool:
        sizes = [] if value.shape is None else [size for size in value.shape if isinstance(size, int) and size > 1]
        if self.fixed(value):
            return is_float(value) and len(sizes) > 1
        return len(value.shape or ()) > 1 and self._from_stack(value)

    def _chain(self, last: ir.Node, firsts: Sequence[ir.Node]) -> Chain:
        given = self._common([self.reads[node] for node in firsts])
        tails = list(self._tails(last))
        hidden, gate = self._before_gates(self.reads[last])
        nodes, after = self._between(given, hidden), self._between(self.reads[last], tails[-1])
        read = dict.fromkeys(value for node in (*nodes, *after) for value in node.inputs if value is not None)
        read.pop(self.reads[last], None)
        mixed = next(filter(self._is_gate, read), None)
        if mixed is not None:
            raise Unlike(f"{mixed.name!r}, which comes of the choice, is read between the layers of an expert")
        weights = [value for value in read if self._from_stack(value)]
        if not weights and len(self.reads) == len(firsts) + 1 and self.experts > 1:
            deep = [value for value in read if self.fixed(value) and is_float(value) and len(value.shape or ()) > 2]
            weights = deep if all(map(self._is_stack, deep)) else []
        return Chain(given, hidden, self.reads[last], tuple(tails), tuple(nodes), tuple(after), tuple(weights), gate)

    def _before_gates(self, value: ir.Value) -> tuple[ir.Value, ir.Value | None]:
        """Return what the last product reads, without what comes of the choice and is multiplied in, and that."""
        node = value.producer()
        given = [] if node is None else [each for each in node.inputs if each is not None]
        rows = [each for each in given if each in self.rows]
        gates = [each for each in given if each not in self.rows and self._is_gate(each)]
        return (rows[0], gates[0]) if len(rows) == len(gates) == 1 and len(given) == 2 else (value, None)

    def _is_gate(self, value: ir.Value) -> bool:
        """Say whether a value comes of the choice or the logits, and not of a stack of what experts have."""
        return is_float(value) and (value in self.weighed or (value in self.routed and not self._from_stack(value)))

    def _is_stack(self, value: ir.Value) -> bool:
        return value.shape is not None and value.shape[0] == self.experts

    def _from_stack(self, value: ir.Value) -> bool:
        """Say whether a value that the choice decides is taken from a stack of what experts have, and not summed."""
        if value not in self.routed or not is_float(value):
            return False
        pending, seen = [value], {value}
        while pending:
            each = pending.pop()
            sizes = list(each.shape or ())
            if is_float(each) and each.is_initializer() and len(sizes) > 1 and self.experts in sizes:
                return True
            node = each.producer()
            read = () if node is None or node in self.summing else node.inputs
            given = [one for one in read if one is not None and one not in seen]
            seen.update(given)
            pending.extend(one for one in given if one in self.routed or self.fixed(one))
        return False

    def _common(self, values: Sequence[ir.Value]) -> ir.Value:
        """Return the last value that all of some come of by nodes which read nothing else of the rows."""
        paths = [list(self._path(value)) for value in values]
        common = [value for value in paths[0] if all(value in path for path in paths)]
        if not common:
            raise Unlike(f"{values[0].name!r} and {values[-1].name!r} are read by the layers of one expert")
        return common[0]

    def _path(self, value: ir.Value) -> Iterator[ir.Value]:
        """Yield a value and those it comes of."""
        yield value
        while (node := value.producer()) is not None and node in self.inside:
            data = [each for each in node.inputs if each is not None and each in self.rows]
            if len(data) != 1:
                return
            (value,) = data
            yield value

    def _tails(self, last: ir.Node) -> Iterator[ir.Value]:
        """Yield what the last product gives, and what constants make of it."""
        value = last.outputs[0]
        yield value
        while len(value.uses()) == 1:
            ((node, _),) = value.uses()
            others = [each for each in node.inputs if each is not None and each is not value]
            if node not in self.inside or node in self.summing or len(node.outputs) != 1:
                return
            if any(each in self.rows or each in self.weighed for each in others):
                return
            if any(not self.fixed(each) and not self._from_stack(each) for each in others):
                return
            value = node.outputs[0]
            if value not in self.rows:
                return
            yield value

    def _between(self, given: ir.Value, end: ir.Value) -> list[ir.Node]:
        """Return the nodes that lead from what the first products read to an output, those of weights left out."""
        found: set[ir.Node] = set()
        pending = [end]
        while pending:
            value = pending.pop()
            node = value.producer()
            if value is given or node is None or node in found or value not in self.rows:
                continue
            found.add(node)
            pending.extend(each for each in node.inputs if each is not None)
        return [node for node in self.inside if node in found]


def _floats_of(inside: Sequence[ir.Node], start: ir.Value) -> set[ir.Value]:
    """Return the floats that depend on a value by way of floats."""
    found = {start}
    for node in inside:
        if any(value in found for value in node.inputs if value is not None):
            found.update(filter(is_float, node.outputs))
    return found


def _forward(inside: Sequence[ir.Node], start: ir.Value, without: Container[ir.Value]) -> set[ir.Value]:
    """Return what depends on a value, but for some values."""
    found = {start}
    for node in inside:
        if any(value in found for value in node.inputs if value is not None):
            found.update(value for value in node.outputs if value not in without)
    return found


def _told(node: ir.Node) -> str:
    return f"{node.op_type} {node.name!r}"
