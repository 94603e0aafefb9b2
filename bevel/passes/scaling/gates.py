"""Let scales pass gates: what a gate multiplies moves, what opens it is scaled back.

    silu(x) = x * sigmoid(x)      with a vector v of ones:  x * sigmoid(v * x)

A scale of `x` passes the product and would change what opens it; `v` takes that back, with the inverse scale. To the
symmetries `v` is an initializer like any other, so that they find by themselves what moves. The same holds for
`x * Phi(x)` (GELU) in either form, and for every other product of something with a function of itself.

Source: Xu et al. 2025, MambaQuant (smooth-fused SiLU).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_ir as ir

from bevel.ir.action import NONLINEAR
from bevel.ir.axes import atoms
from bevel.ir.coupling import find_action
from bevel.ir.groups import Analysis
from bevel.ir.names import Names
from bevel.ir.resize import add_initializer

PRODUCT: Final = "Mul"
# Nodes between a gate's input and what opens it: GELU by tanh has seven.
MOST_NODES: Final = 12


@dataclass(frozen=True, eq=False)
class Gate:
    """A product by a vector of ones, which the nodes that open a gate read in place of its input."""

    node: ir.Node
    ones: ir.Value
    places: tuple[tuple[ir.Node, int], ...]

    def remove(self) -> None:
        """Let the gate read its input again."""
        source, graph = self.node.inputs[0], self.node.graph
        assert isinstance(graph, ir.Graph)
        for node, index in self.places:
            node.replace_input_with(index, source)
        graph.remove(self.node, safe=True)
        del graph.initializers[self.ones.name or ""]


def open_gates(analysis: Analysis) -> list[Gate]:
    """Multiply what opens each gate of the main graph by ones; the function stays the same, bit by bit."""
    names, dims = Names(analysis.model), {group.dim for group in analysis.groups}
    found = []
    for source, places in list(_gated(analysis.model.graph)):
        axes = analysis.axes(source) or ()
        wide = [place for place, axis in enumerate(axes) if not dims.isdisjoint(atoms(axis))]
        if wide and source.producer() is not None:
            found.append(_insert(source, places, axes[wide[-1]].size, len(axes) - wide[-1] - 1, names))
    return found


def _insert(source: ir.Value, places: Sequence[tuple[ir.Node, int]], size: int, behind: int, names: Names) -> Gate:
    graph = places[0][0].graph
    assert isinstance(graph, ir.Graph) and source.dtype is not None
    name = names.free(f"{source.name}.gate")
    array = np.ones((size, *[1] * behind), source.dtype.numpy())
    ones = add_initializer(graph, f"{name}.scale", ir.tensor(array), names)
    node = ir.node(PRODUCT, [source, ones], name=name)
    output = node.outputs[0]
    output.name, output.type, output.shape = names.free(f"{name}.output"), source.type, source.shape
    maker = source.producer()
    assert maker is not None
    graph.insert_after(maker, node)
    for reader, index in places:
        reader.replace_input_with(index, output)
    return Gate(node, ones, tuple(places))


def _gated(graph: ir.Graph) -> Iterator[tuple[ir.Value, list[tuple[ir.Node, int]]]]:
    """Yield what is multiplied by a function of itself, with the places where that function reads it."""
    seen: set[ir.Value] = set()
    for node in graph:
        if node.op_type != PRODUCT or node.domain:
            continue
        for one, other in ((0, 1), (1, 0)):
            found = _function(node.inputs[one], node.inputs[other])
            if found is not None and found[0] not in seen:
                seen.add(found[0])
                yield found


def _function(linear: ir.Value | None, opened: ir.Value | None) -> tuple[ir.Value, list[tuple[ir.Node, int]]] | None:
    """Return of what `opened` is a function that is not linear, if `linear` is that or a multiple of it."""
    while linear is not None and opened is not None:
        cone = _cone(opened, linear)
        if cone and any(find_action(node.domain, node.op_type) == NONLINEAR for node in cone):
            places = [(node, index) for node in cone for index, value in enumerate(node.inputs) if value is linear]
            return (linear, places) if places else None
        maker = linear.producer()
        constants = [] if maker is None else [value for value in maker.inputs if value and not value.is_initializer()]
        if maker is None or maker.op_type != PRODUCT or len(constants) != 1:
            return None
        linear = constants[0]
    return None


def _cone(end: ir.Value, start: ir.Value) -> list[ir.Node]:
    """Return the nodes that compute one value from another and from weights; none if it takes something else, too."""
    nodes: dict[ir.Node, None] = {}
    waiting = [end]
    while waiting:
        value = waiting.pop()
        if value is start or value.is_initializer():
            continue
        maker = value.producer()
        if maker is None or len(maker.outputs) != 1 or len(nodes) >= MOST_NODES:
            return []
        if maker not in nodes:
            nodes[maker] = None
            waiting.extend(each for each in maker.inputs if each is not None)
    return list(nodes)
