"""What a model asks for: its inputs, and which values they accept.

Integer inputs are followed to the operators that use them as indices, so that inputs can be made up which the model
accepts.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from bevel.ir.canonical.unread import WILD

# Operators that hand an index on unchanged, so that the search goes on at their outputs: the number of that input, or
# None for any.
CARRIERS = {
    "Cast": 0,
    "Reshape": 0,
    "Unsqueeze": 0,
    "Squeeze": 0,
    "Flatten": 0,
    "Identity": 0,
    "Expand": 0,
    "Transpose": 0,
    "Slice": 0,
    "Split": 0,
    "Tile": 0,
    "Concat": None,
    "Pad": 0,
    "Clip": 0,
    "Where": None,
    "Mod": 0,
}
# Operators that use an input as an index: its number -> (number of the data input, its axis or the attribute with it).
INDEXERS: dict[str, dict[int, tuple[int, int | str]]] = {
    "Gather": {1: (0, "axis")},
    "GatherElements": {1: (0, "axis")},
    "GatherND": {1: (0, 0)},
    "GatherBlockQuantized": {1: (0, "gather_axis")},
    "EmbedLayerNormalization": {0: (2, 0), 1: (4, 0), 7: (3, 0)},
    "RotaryEmbedding": {1: (2, 0), 3: (1, 0)},
}


@dataclass(frozen=True)
class Input:
    """One input of a model.

    `shape` has an int per fixed axis, a name per symbolic one, None per unknown one; it is None itself when even the
    rank is unknown. `below` is the exclusive upper bound of an index, None when it is not used as one.
    """

    name: str
    dtype: ir.DataType
    shape: tuple[int | str | None, ...] | None
    sequence: bool = False
    optional: bool = False
    below: int | None = None

    def __str__(self) -> str:
        if self.shape is None:
            return f"{self.name}: {self.dtype}[...]"
        return f"{self.name}: {self.dtype}[{', '.join('?' if dim is None else str(dim) for dim in self.shape)}]"


def signature(model: ir.Model) -> tuple[Input, ...]:
    """Return the inputs a caller has to give; initializers that are also listed as inputs are left out."""
    graph = model.graph
    return tuple(_input(value) for value in graph.inputs if value.name not in graph.initializers)


def _input(value: ir.Value) -> Input:
    kind = value.type
    element = _element(kind)
    sequence = isinstance(kind, ir.SequenceType) or isinstance(getattr(kind, "elem_type", None), ir.SequenceType)
    shape = None if value.shape is None else tuple(_dim(dim) for dim in value.shape)
    below = index_bound(value) if element.is_integer() else None
    return Input(value.name or "", element, shape, sequence, isinstance(kind, ir.OptionalType), below)


def _element(kind: ir.TypeProtocol | None) -> ir.DataType:
    while isinstance(kind, (ir.SequenceType, ir.OptionalType)):
        kind = kind.elem_type
    return kind.dtype if kind is not None else ir.DataType.UNDEFINED


def _dim(dim: int | ir.SymbolicDim) -> int | str | None:
    return dim if isinstance(dim, int) else None if dim.value in WILD else dim.value


def index_bound(value: ir.Value) -> int | None:
    """Return the smallest size of an axis that `value` is an index into, None if it never is one.

    Axes of unknown size are skipped. Follows the value through casts and layout, also into subgraphs.
    """
    bounds = [size for use in _index_uses(value) if (size := _indexed_size(*use)) is not None]
    return min(bounds, default=None)


def _index_uses(value: ir.Value) -> Iterator[tuple[ir.Node, int]]:
    """Yield the uses of `value` and of what carries it on as (node, input number)."""
    waiting, seen = [value], {value}
    while waiting:
        for node, position in waiting.pop().uses():
            if node.op_type in INDEXERS:
                yield node, position
            elif CARRIERS.get(node.op_type, -1) in (None, position):
                waiting += [output for output in node.outputs if output not in seen]
                seen.update(node.outputs)


def _indexed_size(node: ir.Node, position: int) -> int | None:
    if position not in INDEXERS[node.op_type]:
        return None
    number, place = INDEXERS[node.op_type][position]
    data = node.inputs[number] if number < len(node.inputs) else None
    if data is None or data.shape is None:
        return None
    axis = node.attributes.get_int(place, 0) if isinstance(place, str) else place
    size = data.shape[axis] if -len(data.shape) <= axis < len(data.shape) else None
    return size if isinstance(size, int) else None
