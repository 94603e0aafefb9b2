"""Shape arithmetic: small integer tensors followed by content, symbolic sizes as large primes.

A shape that is computed in the graph (Shape, Gather, Concat, ...) is evaluated with the primes that stand for symbols.
Products and sums of primes stay exact, so that a Reshape to `[batch * 12, seq, 64]` can be factored. Anything whose
result would depend on what the symbol really is (comparisons, rounding division) is not known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

import numpy as np
import onnx_ir as ir

from bevel.ir.site import MOST_INTEGERS, Facts
from bevel.ir.sizes import FIRST_SYMBOL, is_symbolic

Array: TypeAlias = np.ndarray
Evaluator: TypeAlias = Callable[[ir.Node, list[Array]], Array | None]


def propagate(node: ir.Node, facts: Facts) -> None:
    """Evaluate a node on integers, if all of its inputs are known and its operator is shape arithmetic."""
    if node.op_type in ("Shape", "Size") and node.domain == "":
        result = _sizes(node, facts)
    else:
        evaluator = _EVALUATORS.get(node.op_type) if node.domain == "" else None
        arrays = [facts.integers_of(value) for value in node.inputs if value is not None] if evaluator else []
        if evaluator is None or not arrays:
            return
        known = [array for array in arrays if array is not None]
        result = evaluator(node, known) if len(known) == len(arrays) else None
    if result is not None and result.size <= MOST_INTEGERS:
        facts.integers[node.outputs[0]] = result


def _sizes(node: ir.Node, facts: Facts) -> Array | None:
    value = node.inputs[0]
    axes = None if value is None else facts.of(value)
    if axes is None:
        return None
    sizes = [axis.size for axis in axes]
    if node.op_type == "Shape":
        start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", len(sizes))
        return np.array(sizes[start:end], dtype=object)
    return np.array(np.prod(np.array([1, *sizes], dtype=object)), dtype=object)


def _gather(node: ir.Node, inputs: list[Array]) -> Array | None:
    data, indices = inputs
    axis = node.attributes.get_int("axis", 0)
    size = data.shape[axis] if data.ndim else 0
    if any(not -size <= index < size for index in indices.ravel()):
        return None
    return np.asarray(np.take(data, indices.astype(np.int64), axis=axis), dtype=object)


def _slice(node: ir.Node, inputs: list[Array]) -> Array | None:
    data, (starts, ends, axes, steps) = inputs[0], _slice_bounds(node, inputs)
    window: list[slice] = [slice(None)] * data.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step < 0 and end < -data.shape[axis]:
            window[axis] = slice(start, None, step)
        else:
            window[axis] = slice(start, end, step)
    return data[tuple(window)]


def _slice_bounds(node: ir.Node, inputs: list[Array]) -> tuple[list[int], ...]:
    if len(inputs) == 1:
        starts, ends = (list(node.attributes[name].as_ints()) for name in ("starts", "ends"))
        axes = node.attributes.get_ints("axes")
        return starts, ends, list(axes or range(len(starts))), [1] * len(starts)
    starts, ends = inputs[1].tolist(), inputs[2].tolist()
    axes = inputs[3].tolist() if len(inputs) > 3 else list(range(len(starts)))
    return starts, ends, axes, inputs[4].tolist() if len(inputs) > 4 else [1] * len(starts)


def _concat(node: ir.Node, inputs: list[Array]) -> Array | None:
    if any(array.ndim == 0 for array in inputs):
        return None
    return np.concatenate(inputs, axis=node.attributes.get_int("axis", 0))


def _axes(node: ir.Node, inputs: list[Array]) -> tuple[int, ...] | None:
    if len(inputs) > 1:
        return tuple(int(axis) for axis in inputs[1].ravel())
    axes = node.attributes.get_ints("axes")
    return None if axes is None else tuple(axes)


def _squeeze(node: ir.Node, inputs: list[Array]) -> Array | None:
    axes = _axes(node, inputs)
    if any(inputs[0].shape[axis] != 1 for axis in axes or ()):
        return None
    return np.squeeze(inputs[0], axis=axes)


def _unsqueeze(node: ir.Node, inputs: list[Array]) -> Array | None:
    axes = _axes(node, inputs)
    return None if axes is None else np.expand_dims(inputs[0], axes)


def _reshape(node: ir.Node, inputs: list[Array]) -> Array | None:
    target = [int(size) for size in inputs[1].ravel()]
    known = int(np.prod([abs(size) for size in target])) if target else 1
    if 0 in target or known == 0 or inputs[0].size % known:
        return None
    return inputs[0].reshape(target)


def _cast(node: ir.Node, inputs: list[Array]) -> Array | None:
    return inputs[0] if node.attributes.get_int("to", 0) in (ir.DataType.INT64, ir.DataType.INT32) else None


def _div(node: ir.Node, inputs: list[Array]) -> Array | None:
    left, right = np.broadcast_arrays(*inputs)
    if any(b == 0 for b in right.ravel()) or any(
        a % b and (is_symbolic(a) or is_symbolic(b)) for a, b in zip(left.ravel(), right.ravel(), strict=True)
    ):
        return None
    return np.asarray(np.sign(left * right) * (abs(left) // abs(right)), dtype=object)


def _static(operation: Callable[..., Array]) -> Evaluator:
    """Evaluate only where no symbol takes part, since its real size could decide otherwise."""

    def evaluate(node: ir.Node, inputs: list[Array]) -> Array | None:
        if any(is_symbolic(item) for array in inputs for item in array.ravel()):
            return None
        return np.asarray(operation(*inputs), dtype=object)

    return evaluate


def _exact(operation: Callable[..., Array]) -> Evaluator:
    return lambda node, inputs: np.asarray(operation(*inputs), dtype=object)


def _equal(node: ir.Node, inputs: list[Array]) -> Array | None:
    """Compare; a symbol is positive, so it equals no number below one."""
    left, right = np.broadcast_arrays(*inputs)
    pairs = zip(left.ravel(), right.ravel(), strict=True)
    if any(a != b and max(a, b) >= FIRST_SYMBOL and min(a, b) > 0 for a, b in pairs):
        return None
    return np.asarray(left == right, dtype=object)


def _expand(node: ir.Node, inputs: list[Array]) -> Array | None:
    sizes = [int(size) for size in inputs[1].ravel()]
    if any(is_symbolic(size) for size in sizes):
        return None
    shape = np.broadcast_shapes(inputs[0].shape, tuple(sizes))
    return np.broadcast_to(inputs[0], shape) if np.prod(shape) <= MOST_INTEGERS else None


def _where(node: ir.Node, inputs: list[Array]) -> Array | None:
    condition, yes, no = inputs
    return np.where(condition.astype(bool), yes, no)


def _range(node: ir.Node, inputs: list[Array]) -> Array | None:
    start, stop, step = (int(array) for array in inputs)
    if step == 0 or is_symbolic(start) or is_symbolic(stop) or (stop - start) // step > MOST_INTEGERS:
        return None
    return np.arange(start, stop, step).astype(object)


def _constant_of_shape(node: ir.Node, inputs: list[Array]) -> Array | None:
    filler = node.attributes.get("value")
    sizes = [int(size) for size in inputs[0].ravel()]
    if filler is None or filler.as_tensor().dtype is not ir.DataType.INT64 or any(map(is_symbolic, sizes)):
        return None
    if int(np.prod(sizes)) > MOST_INTEGERS:
        return None
    return np.full(sizes, int(filler.as_tensor().numpy().ravel()[0]), dtype=object)


def _reduce_prod(node: ir.Node, inputs: list[Array]) -> Array | None:
    axes = _axes(node, inputs)
    return np.asarray(
        np.prod(inputs[0], axis=axes, keepdims=bool(node.attributes.get_int("keepdims", 1))), dtype=object
    )


REARRANGING: Final[Mapping[str, Evaluator]] = {
    "Identity": lambda node, inputs: inputs[0],
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Reshape": _reshape,
}
"""Operators that only move entries of their first input; they work on arrays of anything."""

_EVALUATORS: Mapping[str, Evaluator] = {
    **REARRANGING,
    "Cast": _cast,
    "Add": _exact(np.add),
    "Sub": _exact(np.subtract),
    "Mul": _exact(np.multiply),
    "Neg": _exact(np.negative),
    "Div": _div,
    "Mod": _static(np.mod),
    "Min": _static(lambda *inputs: np.minimum.reduce(np.broadcast_arrays(*inputs))),
    "Max": _static(lambda *inputs: np.maximum.reduce(np.broadcast_arrays(*inputs))),
    "Equal": _equal,
    "Expand": _expand,
    "Where": _where,
    "Range": _range,
    "ConstantOfShape": _constant_of_shape,
    "ReduceProd": _reduce_prod,
}

EVALUATED: Final = frozenset(_EVALUATORS)
