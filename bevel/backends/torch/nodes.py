"""How nodes and their attributes are called and written in Python."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from bevel.backends.torch.expressions import written
from bevel.errors import UnsupportedModel


def title(node: ir.Node) -> str:
    """Call a node by its name and operator."""
    return f"node {node.name or node.outputs[0].name!r} ({node.op_type})"


def plain(attribute: ir.Attr) -> Any:
    """Return the value of an attribute as plain Python, a tensor or graph as it is.

    Attributes are single precision: the shortest number that rounds to it is what was meant, 0.1 and not 0.100000001.
    """
    value = attribute.value
    if attribute.type is ir.AttributeType.FLOAT:
        return float(str(np.float32(value)))
    if attribute.type is ir.AttributeType.FLOATS:
        return [float(str(np.float32(item))) for item in value]
    return list(value) if isinstance(value, tuple) else value


def literal(value: Any, node: ir.Node) -> str:
    """Return the code of an attribute's value."""
    if isinstance(value, float):
        return written(value)
    if isinstance(value, list):
        return f"[{', '.join(literal(item, node) for item in value)}]"
    if isinstance(value, bool | int | str):
        return repr(value)
    raise UnsupportedModel(f"has an attribute of type {type(value).__name__}", where=title(node))


def is_wanted(value: ir.Value) -> bool:
    """Say whether anything reads a value."""
    return bool(value.name) and (bool(value.uses()) or value.is_graph_output())


def strings_code(tensor: ir.TensorProtocol) -> str:
    """Return the code of a constant tensor of strings."""
    return f"numpy.array({tensor.numpy().astype(str).tolist()!r}, dtype=object)"
