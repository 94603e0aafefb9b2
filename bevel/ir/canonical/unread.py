"""Names of sizes that cannot be read as expressions: inference is given others in their place, and gives them back.

Exporters write what they like: `?`, `batch size`, `2x`, `input:0`. Inference computes with names, and one that it
cannot read would leave every shape unknown. `?` and its like are no names at all: two of them are two sizes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import onnx_ir as ir

WILD: Final = frozenset({"?", "", "-1", "None", "*"})
"""What stands for a size without a name."""
STANDIN: Final = "_n{}"

Dim = int | ir.SymbolicDim


@contextmanager
def readable_names(model: ir.Model) -> Iterator[None]:
    """Within, every size of a value has a name that can be read, or none; afterwards, those that had others have them.

    >>> x = ir.Value(name="x", shape=ir.Shape(["batch size", "?", "?"]))
    >>> with readable_names(ir.Model(ir.Graph([x], [], nodes=[]), ir_version=10)):
    ...     print(x.shape)
    [_n0,None,None]
    >>> print(x.shape)
    [batch size,?,?]
    """
    standins: dict[str, str] = {}
    before: dict[ir.Value, ir.Shape] = {}
    for value in _values(model):
        if value.shape is not None and not all(map(is_readable, value.shape)):
            before[value] = value.shape
            value.shape = ir.Shape([_standin(dim, standins) for dim in value.shape])
    try:
        yield
    finally:
        if before:
            _give_back(model, before, {standin: name for name, standin in standins.items()})


def is_readable(dim: Dim) -> bool:
    """Tell whether a size is a number, unknown, or has a name or an expression that inference can read."""
    if isinstance(dim, int) or dim.value is None:
        return True
    if dim.value in WILD:
        return False
    try:
        return dim + 0 is not None
    except ValueError:
        return False


def _standin(dim: Dim, standins: dict[str, str]) -> Dim:
    if isinstance(dim, int) or is_readable(dim):
        return dim
    assert dim.value is not None
    if dim.value in WILD:
        return ir.SymbolicDim(None)
    return ir.SymbolicDim(standins.setdefault(dim.value, STANDIN.format(len(standins))))


def _give_back(model: ir.Model, before: dict[ir.Value, ir.Shape], names: dict[str, str]) -> None:
    for value in _values(model):
        if value.shape is None:
            continue
        had = before.get(value, value.shape)
        same_rank = len(had) == len(value.shape)
        value.shape = ir.Shape(
            [_given_back(dim, had[place] if same_rank else dim, names) for place, dim in enumerate(value.shape)]
        )


def _given_back(dim: Dim, had: Dim, names: dict[str, str]) -> Dim:
    """Return a size under its own name: the one it stands for, or the wild one that the value had there."""
    if isinstance(dim, int):
        return dim
    if dim.value in names:
        return ir.SymbolicDim(names[dim.value])
    return had if isinstance(had, ir.SymbolicDim) and had.value in WILD else dim


def _values(model: ir.Model) -> Iterator[ir.Value]:
    for graph in model.graphs():
        yield from graph.inputs
        yield from (value for node in graph for value in node.outputs)
