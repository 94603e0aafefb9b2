"""Put two layers in the place of one."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from bevel.ir.names import Names
from bevel.ir.provenance import is_learnt, mark_learnt
from bevel.ir.resize import add_initializer
from bevel.passes.fitting.layers import CONV, CONV_TRANSPOSE, DATA, GEMM, MATMUL, WEIGHT, Layer, rounded
from bevel.passes.fitting.unfold import GEOMETRY

Array = np.ndarray[Any, Any]

KERNEL: Final = "kernel_shape"
GROUP: Final = "group"


def split(layer: Layer, up: Array, down: Array, names: Names) -> None:
    """Let a layer multiply by `down` `[groups, rank, in]` first, then by `up` `[groups, out, rank]`.

    The node stays and multiplies by `up`: its output, its bias and whatever reads it are as they were. A new node
    before it multiplies by `down`. A convolution has its kernel in the first of both, a transposed one in the second.
    The weight goes, with all that only it used.
    """
    node, graph, weight = layer.node, layer.node.graph, layer.weight
    assert isinstance(graph, ir.Graph) and weight.name is not None
    first, second = _arrays(layer, up, down)
    shape = _shape(layer, up.shape[0] * up.shape[2])
    tensors = [ir.tensor(rounded(layer.tensor, array)) for array in (first, second)]
    low, high = (
        add_initializer(graph, f"{weight.name}.{part}", tensor, names)
        for part, tensor in zip(("down", "up"), tensors, strict=True)
    )
    for factor in (low, high):
        mark_learnt(factor, is_learnt(weight))
    attributes = _move_geometry(layer)
    operator = MATMUL if node.op_type == GEMM else CONV if node.op_type == CONV_TRANSPOSE else node.op_type
    before = ir.node(operator, [layer.data, low], attributes, name=names.free(f"{node.name}.down"))
    between = before.outputs[0]
    between.name, between.type, between.shape = names.free(f"{before.name}.output"), layer.data.type, shape
    graph.insert_before(node, before)
    read = node.inputs[WEIGHT]
    node.replace_input_with(DATA, between)
    node.replace_input_with(WEIGHT, high)
    if node.op_type == MATMUL or node.op_type == GEMM:
        node.attributes.pop("transB", None)
    _remove(graph, read, weight)


def _arrays(layer: Layer, up: Array, down: Array) -> tuple[Array, Array]:
    """Return both weights in the layouts that their nodes take."""
    ones = (1,) * len(layer.kernel)
    groups, out, rank = up.shape
    if layer.node.op_type == CONV:
        return layer.array(down), up.reshape(groups * out, rank, *ones)
    if layer.node.op_type == CONV_TRANSPOSE:
        return down.reshape(rank, -1, *ones), layer.array(up)
    return down[0].T, up[0].T


def _shape(layer: Layer, channels: int) -> ir.Shape | None:
    """Return the shape of what lies between both layers."""
    like = layer.node.outputs[0] if layer.node.op_type == CONV else layer.data
    if like.shape is None:
        return None
    dims = list(like.shape)
    dims[layer.channel_axis] = channels
    return ir.Shape(dims)


def _move_geometry(layer: Layer) -> Mapping[str, ir.Attr]:
    """Take from a convolution what says where its kernel lies, and return it: the first layer has that kernel."""
    node = layer.node
    if node.op_type != CONV:
        return {}
    moved = {name: node.attributes.pop(name) for name in (*GEOMETRY, KERNEL) if name in node.attributes}
    if KERNEL in moved:
        node.attributes.add(ir.AttrInt64s(KERNEL, [1] * len(layer.kernel)))
    if GROUP in node.attributes:
        moved[GROUP] = node.attributes[GROUP]
    return moved


def _remove(graph: ir.Graph, read: ir.Value | None, weight: ir.Value) -> None:
    """Remove a weight that nothing reads any more, and the node that transposed it."""
    maker = None if read is None else read.producer()
    if maker is not None and read is not None and not read.uses():
        graph.remove(maker, safe=True)
    if not weight.uses():
        del graph.initializers[weight.name or ""]
