"""Where a model can compute in 8 bits: the layers, and the nodes between them that pass 8 bits on."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from bevel.ir.canonical.constants import known
from bevel.passes.activations.grids import Range
from bevel.passes.fitting.layers import BIAS, CONV, GEMM, MATMUL, WEIGHT, Layer, layers
from bevel.passes.patterns import asked

Array = np.ndarray[Any, Any]

RELU, CLIP, ADD, GATHER = "Relu", "Clip", "Add", "Gather"
# Nodes that hand their first input's numbers on, so that its grid is theirs too.
SAME: Final = frozenset({"MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", GATHER})
# Nodes that ONNX Runtime has in 8 bits, with a grid of their own.
OWN: Final = frozenset({ADD, "Concat", "AveragePool", "GlobalAveragePool"})


@dataclass(frozen=True, eq=False)
class Site:
    """A layer that may compute in 8 bits; `number` is its place among the layers of the model and its clones."""

    number: int
    layer: Layer

    @property
    def node(self) -> ir.Node:
        """The node that multiplies."""
        return self.layer.node

    @property
    def name(self) -> str:
        """What its weight is called, and what is made of it."""
        return self.layer.weight.name or self.node.name or ""

    @property
    def title(self) -> str:
        """What the layer is called in messages: by its weight, or by its node where others share the weight."""
        weight, operand = self.layer.weight, self.node.inputs[WEIGHT]
        shared = len(weight.uses()) > 1 or (operand is not None and len(operand.uses()) > 1)
        node = self.node.name or self.node.outputs[0].name or ""
        return node if shared else weight.name or node

    @property
    def is_convolution(self) -> bool:
        """Whether what it gives out has to be quantized, too: ONNX Runtime multiplies in 8 bits only then."""
        return self.node.op_type == CONV

    @property
    def tail(self) -> ir.Value:
        """What the layer gives after the activation function that ONNX Runtime takes into its range."""
        return tail(self.node.outputs[0])

    @cached_property
    def addend(self) -> ir.Node | None:
        """The node that adds a vector to the rows of a MatMul: ONNX Runtime makes a Gemm of both where rows are all."""
        users = list(self.node.outputs[0].uses())
        if self.node.op_type != MATMUL or len(users) != 1 or self.node.outputs[0].is_graph_output():
            return None
        node = users[0].node
        rows = self.layer.data.shape
        if node.op_type != ADD or node.domain or rows is None or len(rows) != 2:
            return None
        return node if self._vector(node.inputs[1 - users[0].idx]) is not None else None

    @property
    def bias_at(self) -> tuple[ir.Node, int] | None:
        """Which input of which node is the bias, if it is one that can be in 32 bits."""
        if self.addend is not None:
            return self.addend, int(self.addend.inputs[0] is self.node.outputs[0])
        return (self.node, BIAS) if self._vector(self.layer.bias) is not None else None

    @property
    def bias(self) -> Array | None:
        """The bias `[outputs]`, as it is added."""
        place = self.bias_at
        found = None if place is None else self._vector(place[0].inputs[place[1]])
        if found is None:
            return None
        beta = self.node.attributes.get_float("beta", 1.0) if self.node.op_type == GEMM else 1.0
        return np.broadcast_to(found.reshape(-1) * np.float32(beta), (self.outputs,))

    @property
    def outputs(self) -> int:
        """How many channels come out."""
        return self.layer.sizes[self.layer.out_axis]

    def _vector(self, value: ir.Value | None) -> Array | None:
        """Return a constant with one number for each output, or one for all."""
        if value is None or not value.is_initializer() or value.is_graph_input() or value.const_value is None:
            return None
        shape, last = value.const_value.shape.numpy(), self.outputs
        return value.const_value.numpy() if shape in ((), (1,), (last,), (1, last), (1, 1)) else None


def tail(value: ir.Value) -> ir.Value:
    """Return a value, or what a Relu or a Clip by constants makes of it if nothing else reads it."""
    users, maker = list(value.uses()), value.producer()
    if len(users) != 1 or value.is_graph_output() or maker is None:
        return value
    node = users[0].node
    follows = users[0].idx == 0 and node.graph is maker.graph and clipping(node) is not None
    return node.outputs[0] if follows else value


def clipping(node: ir.Node | None) -> Range | None:
    """Return the bounds of a Relu or a Clip, None for other nodes and where they are not known."""
    if node is None or node.domain or node.op_type not in (RELU, CLIP):
        return None
    if node.op_type == RELU:
        return 0.0, inf
    bounds = [-inf, inf]
    for place, value in enumerate(node.inputs[1:]):
        tensor = known(value)
        if value is not None and tensor is None:
            return None
        if tensor is not None:
            bounds[place] = float(tensor.numpy().item())
    return node.attributes.get_float("min", bounds[0]), node.attributes.get_float("max", bounds[1])


def sites(
    model: ir.Model, only: Sequence[str], skip: Sequence[str], operators: Sequence[str], *, depthwise: bool = True
) -> tuple[list[Site], dict[str, str]]:
    """Return the layers that may compute in 8 bits, and why others that were asked for may not."""
    found: list[Site] = []
    left: dict[str, str] = {}
    for number, layer in enumerate(layers(model)):
        site = Site(number, layer)
        if not asked(layer.names, only, skip):
            continue
        if why := _unfit(site, operators, depthwise):
            left[site.name] = why
        else:
            found.append(site)
    return found, left


def _unfit(site: Site, operators: Sequence[str], depthwise: bool) -> str:
    """Say why a layer stays in floats; nothing if it need not."""
    layer = site.layer
    tensor = layer.weight.const_value
    assert tensor is not None
    if site.node.op_type not in operators:
        return f"ONNX Runtime has no such {site.node.op_type} in 8 bits that is fast"
    if tensor.dtype is not ir.DataType.FLOAT:
        return f"it computes in {tensor.dtype}"
    if not depthwise and site.is_convolution and layer.groups > 1 and layer.groups == layer.sizes[0]:
        return "depthwise=false"
    if 0 in layer.sizes:
        return "it is empty"
    if site.node.op_type == GEMM and layer.bias is not None and site.bias_at is None:
        return "what it adds is no vector"
    return ""


def at(model: ir.Model, numbers: Sequence[int]) -> list[Site]:
    """Return the sites of a clone by their numbers."""
    found = layers(model)
    return [Site(number, found[number]) for number in numbers]


def stored(model: ir.Model, found: Sequence[Site]) -> dict[ir.Value, ir.Value]:
    """Return the values that are only there in 8 bits, each with the one whose grid it has: its own, or before it.

    They are what convolutions give, and what comes of nothing but such values by nodes that ONNX Runtime has in 8 bits
    and that a layer in 8 bits reads in the end.
    """
    able = {site.tail: site.tail for site in found if site.is_convolution}
    passing: list[tuple[ir.Node, ir.Value]] = []
    for node in model.graph:
        inputs = _passed(node)
        if inputs and all(value in able for value in inputs):
            first = inputs[0]
            value = node.outputs[0] if node.op_type in SAME else tail(node.outputs[0])
            able[value] = able[first] if node.op_type in SAME else value
            passing.append((node, value))
    wanted = {site.layer.data for site in found}
    useless: set[ir.Value] = set()
    for node, value in reversed(passing):
        if value in wanted:
            wanted.update(_passed(node))
        else:
            useless.add(value)
    return {value: root for value, root in able.items() if value not in useless}


def _passed(node: ir.Node) -> list[ir.Value]:
    """Return the activations of a node that can stay in 8 bits; nothing for other nodes."""
    if node.domain or node.op_type not in SAME | OWN or any(output.uses() for output in node.outputs[1:]):
        return []
    inputs = node.inputs[:1] if node.op_type in SAME else node.inputs
    return [value for value in inputs if value is not None]


def grids_wanted(model: ir.Model, found: Sequence[Site]) -> dict[ir.Value, Range]:
    """Return every value that has a grid of its own in 8 bits, with the bounds that it cannot leave."""
    roots = stored(model, found)
    own = dict.fromkeys((*roots.values(), *(site.layer.data for site in found if site.layer.data not in roots)))
    return {value: clipping(value.producer()) or (-inf, inf) for value in own}
