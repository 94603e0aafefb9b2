"""Put nodes into a graph, one after the other behind a node that is there."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from bevel.ir.names import Names
from bevel.ir.resize import add_initializer


class Emitter:
    """Inserts nodes behind `after`, whose results have the type and shape of a stream; names begin with `prefix`."""

    def __init__(self, graph: ir.Graph, after: ir.Node, stream: ir.Value, prefix: str, names: Names) -> None:
        self._graph = graph
        self._after = after
        self._stream = stream
        self._prefix = prefix
        self._names = names

    def __call__(self, op_type: str, *inputs: ir.Value) -> ir.Value:
        """Insert a node, and return its output."""
        node = ir.node(op_type, inputs, name=self._names.free(f"{self._prefix}.{op_type}"))
        output = node.outputs[0]
        output.name = self._names.free(f"{node.name}.output")
        output.type, output.shape = self._stream.type, self._stream.shape
        self._graph.insert_after(self._after, node)
        self._after = node
        return output

    def constant(self, name: str, array: np.ndarray[Any, Any] | float) -> ir.Value:
        """Return an initializer of the stream's type."""
        assert self._stream.dtype is not None
        tensor = ir.tensor(np.asarray(array).astype(self._stream.dtype.numpy()))
        return add_initializer(self._graph, f"{self._prefix}.{name}", tensor, self._names)
