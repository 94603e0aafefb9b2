"""Write nodes into a graph, rows of channels among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from bevel.ir.feed_forward import FeedForward
from bevel.ir.names import Names
from bevel.ir.piece import graft
from bevel.ir.provenance import mark_learnt
from bevel.ir.resize import add_initializer

Array = np.ndarray[Any, Any]

# From there on, axes of ReduceSum and sizes of Split are inputs.
RAISED: Final = "the model has opset 13 now: experts need it"


class Writer:
    """Puts nodes before a node of a graph, or at its end; names begin with `prefix`."""

    def __init__(self, graph: ir.Graph, before: ir.Node | None, prefix: str, names: Names, dtype: ir.DataType) -> None:
        self.graph = graph
        self.dtype = dtype
        self.prefix = prefix
        self.names = names
        self._before = before

    def __call__(
        self, op_type: str, *inputs: ir.Value, dtype: ir.DataType | None = None, **attributes: Any
    ) -> ir.Value:
        """Write a node with one output, of the writer's type unless another is given."""
        return self.several(op_type, inputs, [dtype or self.dtype], **attributes)[0]

    def several(
        self, op_type: str, inputs: Sequence[ir.Value], dtypes: Sequence[ir.DataType], **attributes: Any
    ) -> Sequence[ir.Value]:
        """Write a node with an output of each type."""
        name = self.names.free(f"{self.prefix}.{op_type}")
        node = ir.node(op_type, inputs, attributes, num_outputs=len(dtypes), name=name)
        for place, (output, dtype) in enumerate(zip(node.outputs, dtypes, strict=True)):
            output.name = self.names.free(f"{name}.output" if len(dtypes) == 1 else f"{name}.output{place}")
            output.type = ir.TensorType(dtype)
        self._put(node)
        return node.outputs

    def foreign(
        self, domain: str, op_type: str, inputs: Sequence[ir.Value | None], attributes: Mapping[str, Any]
    ) -> ir.Value:
        """Write a node of another domain with one output; inputs may be left out."""
        name = self.names.free(f"{self.prefix}.{op_type}")
        node = ir.node(op_type, inputs, attributes, domain=domain, name=name)
        (output,) = node.outputs
        output.name, output.type = self.names.free(f"{name}.output"), ir.TensorType(self.dtype)
        self._put(node)
        return output

    def _put(self, node: ir.Node) -> None:
        if self._before is None:
            self.graph.append(node)
        else:
            self.graph.insert_before(self._before, node)

    def constant(self, name: str, array: Array) -> ir.Value:
        """Return an initializer with an array, of the array's type, that is not trained."""
        value = add_initializer(self.graph, f"{self.prefix}.{name}", ir.tensor(array), self.names)
        mark_learnt(value, False)
        return value

    def floats(self, name: str, array: Array) -> ir.Value:
        """Return an initializer of the writer's type."""
        return self.constant(name, np.asarray(array).astype(self.dtype.numpy()))

    def learnt(self, name: str, array: Array) -> ir.Value:
        """Return an initializer of the writer's type that is trained where the model is."""
        value = self.floats(name, array)
        mark_learnt(value, True)
        return value

    def integers(self, name: str, *numbers: int) -> ir.Value:
        """Return a list of integers."""
        return self.constant(name, np.array(numbers, np.int64))

    def graft(self, source: ir.Model, given: ir.Value | Sequence[ir.Value], prefix: str) -> ir.Value:
        """Put a model with one output here, and return that; `given` is what its inputs are, in order."""
        return self.grafted(source, [given] if isinstance(given, ir.Value) else given, prefix)[0]

    def grafted(self, source: ir.Model, given: Sequence[ir.Value], prefix: str) -> list[ir.Value]:
        """Put a model here, and return its outputs."""
        by_name = {put.name or "": value for put, value in zip(source.graph.inputs, given, strict=True)}
        return graft(source, self.graph, by_name, f"{self.prefix}.{prefix}", self.names, self._before)

    def flattened(self, value: ir.Value, layer: FeedForward, width: int) -> ir.Value:
        """Return a value of the layer's rank as rows `[rows, width]`."""
        turned = self._turned(value, layer, back=True)
        return turned if layer.rank == 2 else self("Reshape", turned, self.integers("rows", -1, width))

    def restored(self, rows: ir.Value, like: ir.Value, layer: FeedForward, width: int) -> ir.Value:
        """Return rows in the shape of a value of the layer, with other channels: the way back of `flattened`."""
        if layer.rank == 2:
            return rows
        shape = self("Shape", self._turned(like, layer, back=True), dtype=ir.DataType.INT64)
        places = self.integers("leading", *range(layer.rank - 1))
        leading = self("Gather", shape, places, dtype=ir.DataType.INT64, axis=0)
        whole = self("Concat", leading, self.integers("width", width), dtype=ir.DataType.INT64, axis=0)
        result = self._turned(self("Reshape", rows, whole), layer, back=False)
        if like.shape is not None:
            sizes = list(like.shape)
            sizes[layer.axis] = width if width >= 0 else ir.SymbolicDim(None)
            result.shape = ir.Shape(sizes)
        return result

    def shaped(self, rows: ir.Value, layer: FeedForward, width: int) -> ir.Value:
        """Return rows as a value of the layer's rank, all of them along one axis."""
        if layer.rank == 2:
            return rows
        ones = [1] * (layer.rank - 2)
        shape = self.integers("shape", *ones, -1, width)
        return self._turned(self("Reshape", rows, shape, dtype=rows.dtype), layer, back=False)

    def _turned(self, value: ir.Value, layer: FeedForward, *, back: bool) -> ir.Value:
        """Move the channels of a value from the last axis to the layer's, or back."""
        if layer.axis == layer.rank - 1:
            return value
        order = turn(layer)
        return self("Transpose", value, dtype=value.dtype, perm=np.argsort(order).tolist() if back else order)


def turn(layer: FeedForward) -> list[int]:
    """Return the permutation that moves channels from the last axis to the layer's."""
    order = list(range(layer.rank - 1))
    order.insert(layer.axis, layer.rank - 1)
    return order


def as_rows(array: Array, layer: FeedForward) -> Array:
    """Return an array of the layer's rank as rows, in the order in which `Writer.flattened` has them."""
    return np.moveaxis(array, layer.axis, -1).reshape(-1, array.shape[layer.axis])


def from_rows(rows: Array, layer: FeedForward) -> Array:
    """Return rows as an array of the layer's rank, all of them along one axis."""
    return rows.reshape(*(1,) * (layer.rank - 2), *rows.shape).transpose(turn(layer))


def loosen(model: ir.Model, layer: FeedForward) -> ir.Model:
    """Forget how many rows a part of the layer computes, so that it takes any number; return it."""
    for value in (*model.graph.inputs, *(value for node in model.graph for value in node.outputs)):
        if value.shape is not None and len(value.shape) == layer.rank:
            sizes = [size if axis == layer.axis else None for axis, size in enumerate(value.shape)]
            value.shape = ir.Shape([size if isinstance(size, int) else None for size in sizes])
    return model
