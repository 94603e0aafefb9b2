"""Integers that a graph computes from shapes, as Python expressions.

`Shape -> Gather -> Mul -> Concat -> Reshape` becomes `x.reshape([batch * 12, -1])`: sizes stay Python integers (or the
symbolic ones of `torch.export`) and never pass through a tensor, whose content only a run would tell. What cannot be
written so is left to the operators' torch functions, and so are floats: Python's would be rounded otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import onnx_ir as ir

from bevel.backends.torch.table import FLOATS
from bevel.ir.integers import REARRANGING

INTEGERS: Final = frozenset({ir.DataType.INT64, ir.DataType.INT32})
HOST_TYPES: Final = INTEGERS | FLOATS | {ir.DataType.BOOL}
MOST: Final = 64
"""Entries; what is longer is data, not a shape."""


@dataclass(frozen=True)
class Expression:
    """A number that is known when the module runs, as the code that computes it.

    >>> batch = Expression("x.shape[0]")
    >>> print(12 * (batch + 1))
    12 * (x.shape[0] + 1)
    """

    code: str
    nonnegative: bool = True
    atom: bool = True

    def __str__(self) -> str:
        return self.code

    def __add__(self, other: Entry) -> Entry:
        return self if _is(other, 0) else _infix("+", self, other)

    def __radd__(self, other: Entry) -> Entry:
        return self if _is(other, 0) else _infix("+", other, self)

    def __sub__(self, other: Entry) -> Entry:
        return self if _is(other, 0) else _infix("-", self, other, nonnegative=False)

    def __rsub__(self, other: Entry) -> Entry:
        return _infix("-", other, self, nonnegative=False)

    def __mul__(self, other: Entry) -> Entry:
        return self if _is(other, 1) else _infix("*", self, other)

    def __rmul__(self, other: Entry) -> Entry:
        return self if _is(other, 1) else _infix("*", other, self)


Entry: TypeAlias = int | float | bool | Expression


@dataclass(frozen=True)
class Host:
    """A small tensor whose entries are Python numbers or expressions."""

    entries: np.ndarray[Any, Any]
    type: ir.DataType

    def code(self) -> str:
        """Return its entries as the code of a number or of nested lists.

        >>> Host(np.array([Expression("batch"), -1], object), ir.DataType.INT64).code()
        '[batch, -1]'
        """
        return _nested(self.entries.tolist())


def constant(tensor: ir.TensorProtocol) -> Host | None:
    """Return the content of a constant that may be part of shape arithmetic."""
    if tensor.dtype not in HOST_TYPES or tensor.size > MOST:
        return None
    return Host(_objects(tensor.numpy()), tensor.dtype)


def evaluate(node: ir.Node, inputs: Sequence[Host]) -> Host | None:
    """Compute a node on numbers and expressions, or return None where that takes the tensors."""
    if node.domain != "" or not inputs or any(host.type in FLOATS for host in inputs):
        return None
    if node.op_type in REARRANGING:
        return _rearrange(node, inputs)
    arrays = [host.entries for host in inputs]
    if node.op_type == "Cast":
        return _cast(inputs[0], ir.DataType(node.attributes.get_int("to", 0)))
    if node.op_type == "ReduceProd":
        return _product(node, inputs)
    operation = _ENTRYWISE.get(node.op_type)
    if operation is None or len(arrays) != operation.__code__.co_argcount:
        return None
    results = np.frompyfunc(operation, len(arrays), 1)(*arrays)
    results = _objects(results)
    if results.size > MOST or any(item is None for item in results.ravel()):
        return None
    kind = ir.DataType.BOOL if node.op_type in _TRUTHS else inputs[-1].type
    return Host(results, kind)


def _rearrange(node: ir.Node, inputs: Sequence[Host]) -> Host | None:
    operands = [] if node.op_type == "Concat" else inputs[1:]
    if any(isinstance(item, Expression) for host in operands for item in host.entries.ravel()):
        return None
    result = REARRANGING[node.op_type](node, [host.entries for host in inputs])
    return None if result is None or result.size > MOST else Host(_objects(result), inputs[0].type)


def _cast(operand: Host, to: ir.DataType) -> Host | None:
    return Host(operand.entries, to) if {to, operand.type} <= INTEGERS else None


def _product(node: ir.Node, inputs: Sequence[Host]) -> Host | None:
    if inputs[0].entries.ndim != 1:
        return None
    keep = node.attributes.get_int("keepdims", 1)
    result = np.prod(inputs[0].entries, keepdims=bool(keep)) if inputs[0].entries.size else 1
    return Host(_objects(result), inputs[0].type)


def _whole(operator: str, compute: Callable[[int, int], int]) -> Callable[[Entry, Entry], Entry | None]:
    """Divide as Python does, which is what ONNX does where neither number is negative."""

    def divide(left: Entry, right: Entry) -> Entry | None:
        if not (_nonnegative(left) and _nonnegative(right)) or _is(right, 0):
            return None
        if isinstance(left, Expression) or isinstance(right, Expression):
            return _infix(operator, left, right)
        return compute(int(left), int(right))

    return divide


def _least(left: Entry, right: Entry) -> Entry:
    if _any_open(left, right):
        return Expression(f"torch.sym_min({left}, {right})", _nonnegative(left) and _nonnegative(right))
    return min(left, right)  # type: ignore[type-var]


def _most(left: Entry, right: Entry) -> Entry:
    if _any_open(left, right):
        return Expression(f"torch.sym_max({left}, {right})", _nonnegative(left) or _nonnegative(right))
    return max(left, right)  # type: ignore[type-var]


def _compare(operator: str, decide: Callable[[Any, Any], bool]) -> Callable[[Entry, Entry], Entry]:
    def compare(left: Entry, right: Entry) -> Entry:
        if not _any_open(left, right):
            return bool(decide(left, right))
        if operator == "==" and (_never(left, right) or _never(right, left)):
            return False
        return _infix(operator, left, right)

    return compare


def _choose(condition: Entry, yes: Entry, no: Entry) -> Entry:
    if not isinstance(condition, Expression):
        return yes if condition else no
    return Expression(f"({yes} if {condition} else {no})", _nonnegative(yes) and _nonnegative(no))


def _negate(item: Entry) -> Entry:
    return Expression(f"-({item})", nonnegative=False) if isinstance(item, Expression) else -item


_TRUTHS: Final = frozenset({"Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"})
_ENTRYWISE: Final[Mapping[str, Callable[..., Entry | None]]] = {
    "Add": lambda a, b: a + b,
    "Sub": lambda a, b: a - b,
    "Mul": lambda a, b: a * b,
    "Div": _whole("//", lambda a, b: a // b),
    "Mod": _whole("%", lambda a, b: a % b),
    "Min": _least,
    "Max": _most,
    "Neg": _negate,
    "Equal": _compare("==", lambda a, b: a == b),
    "Less": _compare("<", lambda a, b: a < b),
    "LessOrEqual": _compare("<=", lambda a, b: a <= b),
    "Greater": _compare(">", lambda a, b: a > b),
    "GreaterOrEqual": _compare(">=", lambda a, b: a >= b),
    "Where": _choose,
}


def _infix(operator: str, left: Entry, right: Entry, *, nonnegative: bool = True) -> Expression:
    known = nonnegative and _nonnegative(left) and _nonnegative(right)
    return Expression(f"{_operand(left)} {operator} {_operand(right)}", known, atom=False)


def _operand(item: Entry) -> str:
    if isinstance(item, Expression):
        return item.code if item.atom else f"({item.code})"
    return str(item) if item >= 0 else f"({item})"


def _any_open(*items: Entry) -> bool:
    return any(isinstance(item, Expression) for item in items)


def _nonnegative(item: Entry) -> bool:
    return item.nonnegative if isinstance(item, Expression) else item >= 0


def _never(left: Entry, right: Entry) -> bool:
    """Say whether a size can never equal a number."""
    return isinstance(left, Expression) and left.nonnegative and not isinstance(right, Expression) and right < 0


def _is(item: Entry, number: int) -> bool:
    return not isinstance(item, Expression) and item == number


def _objects(array: Any) -> np.ndarray[Any, Any]:
    """Return an array of Python numbers and expressions."""
    result = np.empty(np.shape(array), object)
    result[...] = array.tolist() if isinstance(array, np.ndarray) and array.dtype != object else array
    return result


def _nested(entries: Any) -> str:
    if isinstance(entries, list):
        return f"[{', '.join(map(_nested, entries))}]"
    return written(entries) if isinstance(entries, float) else str(entries)


def written(number: float) -> str:
    """Return the code of a number.

    >>> written(float("-inf")), written(0.1)
    ('float("-inf")', '0.1')
    """
    return repr(number) if math.isfinite(number) else f'float("{number}")'
