"""Operators that only lay a parameter out anew become part of its initializer, which remembers them.

Exporters write `Transpose(weight)` before every product. Where that is all a parameter is used for, its initializer is
the transposed one: a view of the same memory, computed when it is read.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import onnx_ir as ir

from bevel.ir.canonical.constants import known
from bevel.ir.canonical.dead import remove_dead
from bevel.ir.provenance import Kind, provenance, set_provenance

Array: TypeAlias = np.ndarray[Any, Any]

# Casts that lose nothing, so that the parameter can be read back from what they give.
WIDER: Final = {
    ir.DataType.BFLOAT16: {ir.DataType.FLOAT, ir.DataType.DOUBLE},
    ir.DataType.FLOAT16: {ir.DataType.FLOAT, ir.DataType.DOUBLE},
    ir.DataType.FLOAT: {ir.DataType.DOUBLE},
}


@dataclass(frozen=True)
class Step:
    """One transform of a tensor, by the name and numbers that provenance knows it by."""

    kind: Kind
    numbers: tuple[int, ...]
    compute: Callable[[Array], Array]


def fold_layouts(model: ir.Model) -> None:
    """Fold what only lays a parameter out anew into its initializer, unless that is tied or has another use."""
    for value in list(model.graph.initializers.values()):
        while fold_user(model.graph, value):
            pass
    remove_dead(model)


def fold_user(graph: ir.Graph, value: ir.Value) -> bool:
    """Fold the only user of an initializer; tell whether that could be done."""
    source, uses = provenance(value), value.uses()
    if source is None or len(source.names) > 1 or len(uses) != 1 or value.is_graph_output():
        return False
    (use,) = uses
    node = use.node
    if node.graph is not graph or node.domain or use.idx or node.op_type not in STEPS:
        return False
    output = node.outputs[0]
    steps = None if output.is_graph_output() else STEPS[node.op_type](node, value)
    if steps is None:
        return False
    for step in steps:
        value.const_value = laid_out(value, step)
        source = source.then(step.kind, step.numbers)
    assert value.const_value is not None
    set_provenance(value, source)
    value.shape, value.type = ir.Shape(value.const_value.shape.numpy()), ir.TensorType(value.const_value.dtype)
    output.replace_all_uses_with(value)
    graph.remove(node, safe=True)
    return True


def laid_out(value: ir.Value, step: Step) -> ir.TensorProtocol:
    """Return the tensor that a step makes of an initializer's; nothing is computed before it is read."""
    before = value.const_value
    assert before is not None
    # A view of one element that stands for all tells the shape and the type without reading anything.
    form = step.compute(np.broadcast_to(np.zeros((), before.dtype.numpy()), before.shape.numpy()))

    def read() -> ir.TensorProtocol:
        return ir.Tensor(step.compute(before.numpy()), name=value.name)

    dtype = ir.DataType.from_numpy(form.dtype)
    return ir.LazyTensor(read, dtype=dtype, shape=ir.Shape(form.shape), name=value.name)


def transpose(node: ir.Node, value: ir.Value) -> list[Step] | None:
    """Read a Transpose."""
    rank = len(tensor_shape(value))
    order = tuple(node.attributes.get_ints("perm", tuple(range(rank))[::-1]))
    return [Step("transpose", order, lambda array: np.transpose(array, order))]


def cast(node: ir.Node, value: ir.Value) -> list[Step] | None:
    """Read a Cast that loses nothing."""
    before, after = value.dtype, ir.DataType(node.attributes.get_int("to", 0))
    if before is None or after not in WIDER.get(before, ()):
        return None
    return [Step("cast", (before.value,), lambda array: array.astype(after.numpy()))]


def reshape(node: ir.Node, value: ir.Value) -> list[Step] | None:
    """Read a Reshape, Squeeze or Unsqueeze that only adds or takes away axes of size one."""
    before, after = tensor_shape(value), target_shape(node)
    if after is None or [n for n in before if n != 1] != [n for n in after if n != 1] or 0 in before:
        return None
    if before == after:
        return []
    gone = tuple(axis for axis, size in enumerate(before) if size == 1)
    new = tuple(axis for axis, size in enumerate(after) if size == 1)
    squeeze = Step("squeeze", gone, lambda array: np.squeeze(array, gone))
    unsqueeze = Step("unsqueeze", new, lambda array: np.expand_dims(array, new))
    return [step for step in (squeeze, unsqueeze) if step.numbers]


def target_shape(node: ir.Node) -> tuple[int, ...] | None:
    """Return the shape that a node gives, if it does not depend on the run."""
    shape = node.outputs[0].shape
    if any(known(operand) is None for operand in node.inputs[1:] if operand is not None):
        return None
    return tuple(shape.numpy()) if shape is not None and shape.is_static() else None


def tensor_shape(value: ir.Value) -> tuple[int, ...]:
    """Return the shape of an initializer's tensor."""
    assert value.const_value is not None
    return tuple(value.const_value.shape.numpy())


STEPS: Final[dict[str, Callable[[ir.Node, ir.Value], list[Step] | None]]] = {
    "Transpose": transpose,
    "Cast": cast,
    "Reshape": reshape,
    "Squeeze": reshape,
    "Unsqueeze": reshape,
}
