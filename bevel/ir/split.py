"""Take a feed-forward layer apart into experts: the sum over its hidden entries becomes a sum of smaller layers.

    down(act(up(x))) = sum over experts of down_e(act(up_e(x)))

because every hidden entry works by itself. That is exact as long as all experts run; the constant that the last product
adds goes with one of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from bevel.errors import EditRefused
from bevel.ir.axes import resolve
from bevel.ir.bypass import redirect
from bevel.ir.canonical.dead import remove_dead
from bevel.ir.edit import select
from bevel.ir.feed_forward import FeedForward, feed_forward
from bevel.ir.groups import Analysis, analyse
from bevel.ir.names import Names
from bevel.ir.piece import graft, piece

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Partition:
    """Which hidden entries each expert has: those that always run in `shared`, the others by expert in `routed`.

    >>> Partition(np.array([3]), (np.array([0, 4]), np.array([1, 2]))).owners(5).tolist()
    [0, 1, 1, -1, 0]
    """

    shared: Array
    routed: tuple[Array, ...]

    @staticmethod
    def of(owners: Array, count: int) -> Partition:
        """Return the partition that says of each entry which of `count` experts has it, -1 for the shared one."""
        return Partition(np.flatnonzero(owners < 0), tuple(np.flatnonzero(owners == each) for each in range(count)))

    def owners(self, size: int) -> Array:
        """Return the expert of each entry, -1 for the shared one; raises `EditRefused` if it is no partition."""
        entries = np.concatenate([self.shared, *self.routed]).astype(np.int64)
        if len(entries) != size or not np.array_equal(np.sort(entries), np.arange(size)):
            raise EditRefused(
                f"the experts do not have each of {size} hidden entries once",
                where="split",
                remedy="give every entry to one expert",
            )
        if len({len(each) for each in self.routed}) > 1:
            raise EditRefused("the experts have different sizes", where="split", remedy="deal the entries out evenly")
        owners = np.full(size, -1)
        for expert, part in enumerate(self.routed):
            owners[part] = expert
        return owners


class Parts:
    """What a feed-forward layer of a model is made of, as models of their own."""

    def __init__(self, model: ir.Model, layer: FeedForward) -> None:
        self.model = model
        self.layer = layer

    def expert(self, entries: Array, *, bias: bool) -> ir.Model:
        """Return the layer with some of its hidden entries; with the constant that it adds, or without."""
        made = piece(self.model, [self.layer.input], [self.layer.output])
        place = self.layer.bias
        if place is not None and not bias:
            down = made.graph.outputs[0].producer()
            assert down is not None
            down.replace_input_with(place, None)
        return self._selected(made, entries)

    def neurons(self, entries: Array) -> ir.Model:
        """Return what computes some hidden entries."""
        return self._selected(piece(self.model, [self.layer.input], [self.layer.hidden]), entries)

    def between(self, given: ir.Value, wanted: Sequence[ir.Value]) -> ir.Model:
        """Return what computes some values of the layer from another one."""
        return piece(self.model, [given], wanted)

    def _selected(self, made: ir.Model, entries: Array) -> ir.Model:
        analysis = analyse(made, interface=False)
        select(analysis, {self._group(analysis): entries})
        return made

    def _group(self, analysis: Analysis) -> str:
        """Return what the hidden dimension is called in a part of the model."""
        name = self.layer.hidden.name
        hidden = next(value for node in analysis.model.graph for value in node.outputs if value.name == name)
        axes = analysis.axes(hidden)
        assert axes is not None
        dim = resolve(axes[self.layer.axis])
        return next(group.name for group in analysis.groups if group.dim is dim)


def split(model: ir.Model | Analysis, partitions: Mapping[str, Partition]) -> None:
    """Put experts that all run in the place of feed-forward layers, by the names of their groups.

    The function stays the same up to the order of sums. Raises `EditRefused` where a group is no feed-forward layer, or
    the experts do not have each of its entries once.
    """
    analysis = model if isinstance(model, Analysis) else analyse(model)
    layers = {name: feed_forward(analysis, name) for name in partitions}
    for name, layer in layers.items():
        partitions[name].owners(layer.size)
    names = Names(analysis.model)
    for name, layer in layers.items():
        _split(Parts(analysis.model, layer), partitions[name], names)
    remove_dead(analysis.model)


def _split(parts: Parts, partition: Partition, names: Names) -> None:
    layer, graph = parts.layer, parts.model.graph
    total: ir.Value | None = None
    for place, entries in enumerate([part for part in (partition.shared, *partition.routed) if len(part)]):
        expert = parts.expert(entries, bias=place == 0)
        (output,) = graft(
            expert, graph, {layer.input.name or "": layer.input}, f"{layer.name}.expert{place}", names, layer.down
        )
        total = output if total is None else _sum(graph, total, output, layer, names)
    assert total is not None
    redirect(graph, layer.output, total, names)


def _sum(graph: ir.Graph, left: ir.Value, right: ir.Value, layer: FeedForward, names: Names) -> ir.Value:
    node = ir.node("Add", [left, right], name=names.free(f"{layer.name}.sum"))
    (output,) = node.outputs
    output.name, output.type, output.shape = names.free(f"{node.name}.output"), layer.output.type, layer.output.shape
    graph.insert_before(layer.down, node)
    return output
