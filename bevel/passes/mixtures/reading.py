"""The weights of experts, read from what their layers compute: the graph may hold them in any arrangement.

What comes of the rows before the activation is linear in them: run on the unit vectors it says the weights, however a
stack, a transpose, a chunk or interleaved halves have them. Likewise for what comes after.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from bevel.ir.piece import piece
from bevel.passes.base import Runs, Runtime
from bevel.passes.mixtures.chains import Chain, Unlike, is_float
from bevel.passes.mixtures.description import Activation, Expert

Array = np.ndarray[Any, Any]
Weights = Mapping[ir.Value, Array]

# How far the middle of two rows' results may be from the result of their middle, where something is linear: float32
# rounds at 6e-8 and sums of a few thousand terms at 1e-5; what bends a row does so by more than this share of it.
LINEAR: Final = 1e-4
PAIRS: Final = 12
CHUNK: Final = 1024
"""Unit vectors that are run at a time."""


@dataclass(frozen=True)
class Layout:
    """How rows lie in an array: which axis has the rows, which the channels; all others have one entry."""

    rank: int
    rows: int
    channels: int

    @staticmethod
    def of(array: Array, count: int, width: int | None = None) -> Layout:
        """Return the layout of an array with so many rows; raises `Unlike` if it has none."""
        places = [place for place, size in enumerate(array.shape) if size == count]
        wide = [place for place, size in enumerate(array.shape) if size != 1 and place != places[0]] if places else []
        if not places or len(wide) > 1 or array.size % count or (width is not None and array.size != count * width):
            raise Unlike(f"values of the shape {list(array.shape)} are read between the layers of an expert")
        channels = wide[0] if wide else next(place for place in reversed(range(array.ndim)) if place != places[0])
        return Layout(array.ndim, places[0], channels)

    def place(self, rows: Array) -> Array:
        """Return rows `[rows, channels]` in this layout."""
        shape = [1] * self.rank
        shape[self.rows], shape[self.channels] = rows.shape
        return (rows if self.rows < self.channels else rows.T).reshape(shape)

    def rows_of(self, array: Array) -> Array:
        """Return an array in this layout as rows `[rows, channels]`."""
        return np.moveaxis(array, self.rows, 0).reshape(array.shape[self.rows], -1)


@dataclass(frozen=True, eq=False)
class Form:
    """Where the parts of an expert's layers meet: what the activation reads, what it gives, and what the last gives."""

    chain: Chain
    given: Layout
    roots: tuple[ir.Value, ...]
    hidden: ir.Value
    read: Layout
    tail: ir.Value

    def activation(self, model: ir.Model) -> Activation:
        """Return what is between the layers."""
        found = piece(model, self.roots, [self.hidden])
        for value in found.graph.inputs:
            value.shape = ir.Shape([None, None])
        for node in found.graph:
            for value in node.outputs:
                value.shape = None
        return Activation(found)


def form(model: ir.Model, chain: Chain, given: Layout, width: int, weights: Weights, runtime: Runtime) -> Form:
    """Find the parts of an expert, by which values are linear in what it reads, `width` channels."""
    rows = _triples(width, weights)
    arrays = _run(model, chain.given, given.place(rows), chain.nodes, weights, runtime)
    values = list(arrays)
    linear = {chain.given} | {value for value in values if _is_linear(_as_rows(arrays[value], given, len(rows)))}
    roots = _roots(chain, linear, arrays)
    if not 1 <= len(roots) <= 2:
        told = "nothing bends what its layers give" if not roots else f"its activation reads {len(roots)} values"
        raise Unlike(f"{told}, before {chain.hidden.name!r}")
    hidden = _unfolded(chain, roots, arrays)
    sizes = {arrays[value].size for value in (*roots, hidden)}
    if len(sizes) != 1:
        raise Unlike(f"its activation changes how many entries there are, before {hidden.name!r}")
    last = _run(model, chain.read, arrays[chain.hidden], chain.after, weights, runtime)
    tail = [value for value in chain.tails if last[value].size == last[chain.tails[0]].size][-1]
    return Form(chain, given, roots, hidden, Layout.of(arrays[chain.hidden], len(rows)), tail)


def _triples(width: int, weights: Weights) -> Array:
    """Return rows, other rows, and the means of both, of a number that is no size of any weight."""
    sizes = _sizes(width, weights)
    pairs = next(count for count in range(PAIRS, PAIRS + len(sizes) + 1) if 3 * count not in sizes)
    rows = np.random.default_rng(0).standard_normal((2 * pairs, width))
    return np.concatenate([rows, (rows[:pairs] + rows[pairs:]) / 2]).astype(np.float32)


def _sizes(width: int, weights: Weights) -> set[int]:
    """Return what is long in a weight: so many rows could not be told from its channels or entries."""
    return {size for array in weights.values() for size in array.shape} | {width}


def _as_rows(array: Array, like: Layout, count: int) -> Array:
    if array.ndim == like.rank and array.shape[like.rows] == count:
        return np.moveaxis(array, like.rows, 0).reshape(count, -1)
    return Layout.of(array, count).rows_of(array)


def _is_linear(rows: Array) -> bool:
    first, second, middle = np.split(rows, 3)
    return bool(np.abs(middle - (first + second) / 2).max(initial=0) <= LINEAR * np.abs(rows).max(initial=1e-30))


def _roots(chain: Chain, linear: set[ir.Value], arrays: Weights) -> tuple[ir.Value, ...]:
    """Return what bends read, before numbers that it is multiplied by or that are added, in the order of the graph."""
    inside = set(chain.nodes)
    found: dict[ir.Value, None] = {}
    for node in chain.nodes:
        if all(value in linear for value in node.outputs if is_float(value)):
            continue
        for value in node.inputs:
            if value is not None and value in linear and value in arrays:
                found[_before_numbers(value, inside, arrays)] = None
    return tuple(sorted(found, key=list(arrays).index))


def _before_numbers(value: ir.Value, inside: set[ir.Node], arrays: Weights) -> ir.Value:
    while (node := value.producer()) in inside and node is not None:
        data = [each for each in node.inputs if each is not None and each in arrays]
        others = [each for each in node.inputs if each is not None and each not in arrays]
        single = all(is_float(each) and each.const_value is not None and each.const_value.size == 1 for each in others)
        if len(data) != 1 or not single or len(node.outputs) != 1 or arrays[data[0]].shape != arrays[value].shape:
            break
        (value,) = data
    return value


def _unfolded(chain: Chain, roots: Sequence[ir.Value], arrays: Weights) -> ir.Value:
    """Return what the last product reads, before axes of one entry are put in."""
    value = chain.hidden
    while (node := value.producer()) is not None and value not in roots:
        data = [each for each in node.inputs if each is not None and each in arrays]
        if len(data) != 1 or not np.array_equal(arrays[data[0]].ravel(), arrays[value].ravel()):
            break
        (value,) = data
    if value in roots:
        raise Unlike(f"nothing bends what its layers give, before {value.name!r}")
    return value


def _run(
    model: ir.Model, given: ir.Value, array: Array, nodes: Sequence[ir.Node], weights: Weights, runtime: Runtime
) -> dict[ir.Value, Array]:
    """Return the floats that nodes make of a value."""
    wanted = [value for node in nodes for value in node.outputs if is_float(value)]
    source = opened(model, [given], wanted, list(weights))
    with runtime.open(source) as runs:
        return dict(zip(wanted, answers(runs, source, [given, *weights], [array, *weights.values()]), strict=True))


def opened(
    model: ir.Model, given: Sequence[ir.Value], wanted: Sequence[ir.Value], weights: Sequence[ir.Value] = ()
) -> ir.Model:
    """Return a part of a model, with weights among its inputs, that takes and gives arrays of any sizes."""
    found = piece(model, [*given, *weights], wanted)
    for value in (*found.graph.inputs, *(value for node in found.graph for value in node.outputs)):
        value.const_value = None
        value.shape = None if value.shape is None else ir.Shape([None] * len(value.shape))
    return found


def answers(runs: Runs, source: ir.Model, values: Sequence[ir.Value], arrays: Sequence[Array]) -> list[Array]:
    """Run a model, and return its outputs in order."""
    found = runs.run({value.name or "": array for value, array in zip(values, arrays, strict=True)})
    return [np.asarray(found[value.name or ""]) for value in source.graph.outputs]


def experts(model: ir.Model, shape: Form, stacks: Sequence[Weights], width: int, runtime: Runtime) -> Iterator[Expert]:
    """Yield the experts that the parts are with some weights."""
    given, names = shape.chain.given, list(shape.chain.weights)
    first, second = opened(model, [given], shape.roots, names), opened(model, [shape.chain.read], [shape.tail], names)
    with runtime.open(first) as ups, runtime.open(second) as downs:
        for weights in stacks:
            read = _affine(ups, first, given, shape.given, width, weights)
            size = read[0][1].size
            ((down, constant),) = _affine(downs, second, shape.chain.read, shape.read, size, weights)
            yield Expert(tuple(up for up, _ in read), tuple(bias for _, bias in read), down, constant)


def _affine(
    runs: Runs, source: ir.Model, given: ir.Value, layout: Layout, width: int, weights: Weights
) -> list[tuple[Array, Array]]:
    """Return the weights `[channels, entries]` and constants of what is linear, each output of a model."""
    inputs, sizes = [given, *weights], _sizes(width, weights)

    def run(rows: Array) -> list[Array]:
        count = next(number for number in range(len(rows), len(rows) + len(sizes) + 1) if number not in sizes)
        padded = np.pad(rows, ((0, count - len(rows)), (0, 0)))
        found = answers(runs, source, inputs, [layout.place(padded), *weights.values()])
        return [_as_rows(array, layout, count)[: len(rows)] for array in found]

    constants = [array[0] for array in run(np.zeros((2, width), np.float32))]
    parts: list[list[Array]] = [[] for _ in constants]
    for start in range(0, width, CHUNK):
        count = max(min(CHUNK, width - start), 2)
        found = run(np.eye(count, width, start, dtype=np.float32))
        for part, array, constant in zip(parts, found, constants, strict=True):
            part.append(array[: width - start] - constant)
    return [(np.concatenate(part), constant) for part, constant in zip(parts, constants, strict=True)]


def channels_of(array: Array, places: Mapping[bytes, int], width: int) -> int:
    """Return which axis of an array has the channels: along it, its entries are rows."""
    for axis in reversed(range(array.ndim)):
        if array.shape[axis] == width:
            row = np.moveaxis(array, axis, -1).reshape(-1, width)[:1]
            if all(np.ascontiguousarray(each).tobytes() in places for each in row):
                return axis
    raise Unlike("its experts do not read rows of what the router reads")


def layout_of(array: Array, rows: Array) -> Layout:
    """Return how rows lie in what the experts read."""
    places = {row.tobytes(): place for place, row in enumerate(rows)}
    channels = channels_of(array, places, rows.shape[1])
    others = [axis for axis in range(array.ndim) if axis != channels]
    return Layout(array.ndim, max(others, key=lambda axis: (array.shape[axis], -axis)), channels)
