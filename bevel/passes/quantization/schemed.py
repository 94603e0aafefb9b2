"""Whole weights in a scheme, with the nodes that decode them: ONNX Runtime computes these once, when it loads."""

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from bevel.ir.names import Names
from bevel.ir.resize import add_initializer
from bevel.passes.formats.schemes import Encoded, Operators, Scheme, encoded
from bevel.passes.quantization.forms import Layout, Storage, put
from bevel.passes.quantization.targets import Target

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Schemed(Storage[Encoded]):
    """The tensors of a scheme, decoded in front of the first reader of the weight."""

    scheme: Scheme
    tables: MutableMapping[bytes, ir.Value] = field(kw_only=True)
    """The tables that the model has by now, by content."""

    @property
    def layout(self) -> Layout:
        """What the scheme stores."""
        sizes = self.scheme.sizes(*_sizes(self.target))
        return {name: (shape, ir.DataType.from_numpy(kind)) for name, (shape, kind) in sizes.items()}

    def encoded(self, matrix: Array, second: Array | None = None) -> Encoded:
        """Return the weight in the scheme; errors count by the energy of each input, if that is known."""
        strength = np.diag(second[0]) if second is not None and len(second) == 1 else None
        return encoded(self.scheme, matrix, self.target.in_axis, strength)

    def arrays(self, found: Encoded) -> dict[str, Array]:
        """Return what the scheme stores."""
        return dict(found.tensors)

    def wire(self, model: ir.Model, values: Mapping[str, ir.Value], names: Names) -> None:
        """Decode the weight for all its readers."""
        target, weight = self.target, self.target.weight
        before = min((use.node for use in weight.uses()), key=list(model.graph).index)
        nodes = _Nodes(before, self.tables, names)
        found = self.scheme.decode(nodes, values, *_sizes(target))
        if not target.in_axis:
            found = nodes.transpose(found)
        if len(target.shape) > 2:
            found = nodes.reshape(found, target.shape)
        kind = target.tensor.dtype
        found = found if kind is ir.DataType.FLOAT else nodes.cast(found, kind)
        found.shape, found.type = weight.shape, ir.TensorType(kind)
        ir.convenience.replace_all_uses_with(weight, found)


def _sizes(target: Target) -> tuple[int, int]:
    size = target.matrix_shape
    return size[1 - target.in_axis], size[target.in_axis]


class _Nodes(Operators[ir.Value]):
    """The operators as nodes in front of another."""

    def __init__(self, before: ir.Node, tables: MutableMapping[bytes, ir.Value], names: Names) -> None:
        self.before, self.tables, self.names = before, tables, names

    def constant(self, array: Array) -> ir.Value:
        """Return an initializer; equal ones are one."""
        array = np.ascontiguousarray(array)
        key = array.tobytes() + bytes(f"{array.dtype}{array.shape}", "ascii")
        if key not in self.tables:
            graph = self.before.graph
            assert isinstance(graph, ir.Graph)
            self.tables[key] = add_initializer(graph, "table", ir.Tensor(array), self.names)
        return self.tables[key]

    def gather(self, table: ir.Value, index: ir.Value) -> ir.Value:
        """Return the entries of a table along its first axis."""
        return self._node("Gather", table, index)

    def matmul(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """Return the product of matrices."""
        return self._node("MatMul", a, b)

    def add(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """Return the sum."""
        return self._node("Add", a, b)

    def subtract(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """Return the difference."""
        return self._node("Sub", a, b)

    def multiply(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """Return the product."""
        return self._node("Mul", a, b)

    def divide(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """Return the quotient."""
        return self._node("Div", a, b)

    def root(self, a: ir.Value) -> ir.Value:
        """Return the square root."""
        return self._node("Sqrt", a)

    def less(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """Return where one is less than the other."""
        return self._node("Less", a, b)

    def integers(self, a: ir.Value) -> ir.Value:
        """Return values as integers of 32 bits."""
        return self.cast(a, ir.DataType.INT32)

    def floats(self, a: ir.Value) -> ir.Value:
        """Return values in single precision."""
        return self.cast(a, ir.DataType.FLOAT)

    def reshape(self, a: ir.Value, shape: tuple[int, ...]) -> ir.Value:
        """Return values in another shape."""
        return self._node("Reshape", a, self.constant(np.array(shape, np.int64)))

    def head(self, a: ir.Value, count: int, axis: int) -> ir.Value:
        """Return the first entries along an axis."""
        bounds = [self.constant(np.array([number], np.int64)) for number in (0, count, axis)]
        return self._node("Slice", a, *bounds)

    def concatenate(self, parts: Sequence[ir.Value], axis: int) -> ir.Value:
        """Return values one after the other."""
        return self._node("Concat", *parts, axis=axis)

    def transpose(self, a: ir.Value) -> ir.Value:
        """Return the transpose of a matrix."""
        return self._node("Transpose", a)

    def cast(self, a: ir.Value, kind: ir.DataType) -> ir.Value:
        """Return values of another type."""
        return self._node("Cast", a, to=int(kind))

    def _node(self, op_type: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        return put(self.before, op_type, inputs, "decode", self.names, **attributes)
