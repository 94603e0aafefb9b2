"""Random operators that draw the same numbers whenever they are run, so that two runs can be compared.

ONNX Runtime draws anew in each run, whatever the seed. Here, a number follows from its place and from the name of what
is drawn: an edit that moves entries, or takes one draw for another, still shows. Dropout that is on, whose entries
edits may move, gives its mean.
"""

import math
import zlib
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import onnx_ir as ir

OLDEST: Final = 14
"""The first operator set in which all nodes that are put here are as they are put (`allowzero` of Reshape)."""
FREQUENCY: Final = 12.9898
SPREAD: Final = 43758.5453
"""Of a sine, times a large number, the fraction looks random: the noise of many shaders."""
WIDTH: Final = math.sqrt(12)
"""A uniform distribution as wide as this has variance one: it stands for a normal one."""


def random_nodes(model: ir.Model) -> list[ir.Node]:
    """Return the nodes of a model that draw random numbers."""
    nodes = ir.traversal.RecursiveGraphIterator(model.graph)
    return [
        node for node in nodes if node.domain == "" and node.op_type in (*DRAWS, "Multinomial") and not _is_off(node)
    ]


def steadied(model: ir.Model) -> ir.Model:
    """Return a copy whose random operators draw the same in each run, or the model itself if it has none.

    Nodes that cannot be replaced stay: `Multinomial`, and those of older operator sets.
    """
    if not _replaceable(model):
        return model
    copy = model.clone()
    for node in _replaceable(copy):
        made = DRAWS[node.op_type](_Before(node))
        for old, new in zip(node.outputs, made, strict=False):
            old.replace_all_uses_with(new, replace_graph_outputs=True)
            old.name, new.name = None, old.name
        assert node.graph is not None
        node.graph.remove(node)
    return copy


def called(node: ir.Node) -> str:
    """Call a node by its name and operator."""
    return f"node {node.name or node.outputs[0].name!r} ({node.op_type})"


def unsteady(model: ir.Model) -> list[ir.Node]:
    """Return the nodes that draw anew even in a steadied model."""
    replaceable = _replaceable(model)
    return [node for node in random_nodes(model) if node not in replaceable]


def _replaceable(model: ir.Model) -> list[ir.Node]:
    if model.opset_imports.get("", OLDEST) < OLDEST:
        return []
    return [node for node in random_nodes(model) if node.op_type != "Multinomial" and _type(node) is not None]


def _is_off(node: ir.Node) -> bool:
    """Say whether a node is a Dropout that drops nothing."""
    if node.op_type != "Dropout":
        return False
    training = node.inputs[2] if len(node.inputs) > 2 else None
    constant = None if training is None else ir.convenience.get_const_tensor(training)
    return training is None or (constant is not None and not constant.numpy())


def _type(node: ir.Node) -> ir.DataType | None:
    """Return the type of what a node draws, None where it is not known."""
    if "dtype" in node.attributes:
        return ir.DataType(node.attributes["dtype"].as_int())
    if node.op_type in ("RandomNormal", "RandomUniform"):
        return ir.DataType.FLOAT
    return None if node.inputs[0] is None else node.inputs[0].dtype


class _Before:
    """Puts nodes before one that draws, which compute in double precision."""

    def __init__(self, node: ir.Node) -> None:
        self.node = node

    def __call__(self, op_type: str, *inputs: ir.Value | float, **attributes: Any) -> ir.Value:
        """Put a node, and return its output; numbers become constants."""
        given = [value if isinstance(value, ir.Value) else self.constant(np.float64(value)) for value in inputs]
        return self._put(op_type, given, attributes)

    def constant(self, array: np.ndarray[Any, Any] | np.generic) -> ir.Value:
        """Put a constant."""
        return self._put("Constant", (), {"value": ir.tensor(np.asarray(array))})

    def uniform(self, shape: ir.Value) -> ir.Value:
        """Put what draws from 0 to 1 for each place of a shape."""
        count = self("ReduceProd", shape, keepdims=0)
        index = self("Range", self.constant(np.int64(0)), count, self.constant(np.int64(1)))
        phase = zlib.crc32((self.node.outputs[0].name or "").encode()) % 2**16
        angle = self("Add", self("Mul", self.double(index), FREQUENCY), phase)
        wild = self("Mul", self("Sin", angle), SPREAD)
        return self("Reshape", self("Sub", wild, self("Floor", wild)), shape, allowzero=1)

    def double(self, value: ir.Value) -> ir.Value:
        """Put a conversion to double precision."""
        return self("Cast", value, to=int(ir.DataType.DOUBLE))

    def number(self, name: str, otherwise: float) -> float:
        """Return an attribute of the node that draws."""
        attribute = self.node.attributes.get(name)
        return otherwise if attribute is None else attribute.as_float()

    def shape(self) -> ir.Value:
        """Put the shape of what the node draws: its attribute, or that of its first input."""
        if "shape" in self.node.attributes:
            return self.constant(np.array(self.node.attributes["shape"].as_ints(), np.int64))
        return self("Shape", self.input(0))

    def input(self, place: int) -> ir.Value:
        """Return an input that is there."""
        value = self.node.inputs[place]
        assert value is not None
        return value

    def finished(self, value: ir.Value) -> list[ir.Value]:
        """Put a conversion to the type that the node gives."""
        kind = _type(self.node)
        assert kind is not None
        return [self("Cast", value, to=int(kind))]

    def _put(self, op_type: str, inputs: Any, attributes: Mapping[str, Any]) -> ir.Value:
        node = ir.node(op_type, inputs, attributes)
        assert self.node.graph is not None
        self.node.graph.insert_before(self.node, node)
        return node.outputs[0]


def _uniform(put: _Before) -> list[ir.Value]:
    low, high = put.number("low", 0.0), put.number("high", 1.0)
    return put.finished(put("Add", put("Mul", put.uniform(put.shape()), high - low), low))


def _normal(put: _Before) -> list[ir.Value]:
    mean, width = put.number("mean", 0.0), put.number("scale", 1.0) * WIDTH
    return put.finished(put("Add", put("Mul", put.uniform(put.shape()), width), mean - width / 2))


def _bernoulli(put: _Before) -> list[ir.Value]:
    return put.finished(put("Less", put.uniform(put.shape()), put.double(put.input(0))))


def _dropout(put: _Before) -> list[ir.Value]:
    x = put.input(0)
    return [put("Identity", x), put("Expand", put.constant(np.bool_(True)), put("Shape", x))]


DRAWS: Final[Mapping[str, Callable[[_Before], list[ir.Value]]]] = {
    "RandomNormal": _normal,
    "RandomNormalLike": _normal,
    "RandomUniform": _uniform,
    "RandomUniformLike": _uniform,
    "Bernoulli": _bernoulli,
    "Dropout": _dropout,
}
