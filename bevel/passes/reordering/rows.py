"""The rows of weights that make the entries of a group, and the columns of those that read them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from bevel.ir.content import content
from bevel.ir.groups import Analysis
from bevel.passes.base import Context
from bevel.passes.fitting.layers import Layer, layers
from bevel.passes.importance import lift
from bevel.passes.importance.weights import flat, sum_of_squares
from bevel.passes.reordering.held import Holdings
from bevel.passes.reordering.targets import Target

Array = np.ndarray[Any, Any]


def norms(analysis: Analysis, targets: Sequence[Target], context: Context) -> dict[Target, Array]:
    """Return the norm of the rows of weights that make each entry: of heads, those of the keys; of pairs, the larger.

    Entries that no layer makes are scored by `magnitude`. Source: Trukhanov and Soloveychik 2024, Accurate Block
    Quantization in LLMs with Outliers (K-sort).
    """
    holdings = Holdings(analysis)
    made = {layer.weight for layer in layers(analysis.model) if min(layer.sizes) > 1}
    found: dict[Target, Array] = {}
    for target in targets:
        squares = [np.square(each) for each in _norms(analysis, target, holdings, made)]
        found[target] = np.sqrt(np.sum(squares, axis=0)) if squares else _magnitude(analysis, target, context)
    return found


def _norms(analysis: Analysis, target: Target, holdings: Holdings, made: set[ir.Value]) -> Iterator[Array]:
    paths: dict[tuple[ir.Value, int], set[tuple[int, ...]]] = {}
    for place in holdings.sources(target):
        if place.value in made:
            paths.setdefault((place.value, place.axis), set()).add(place.path)
    for (value, axis), only in paths.items():
        axes = analysis.axes(value)
        assert axes is not None and value.const_value is not None
        with content(value.const_value) as array:
            rows = np.sqrt(sum_of_squares(flat(array, axis)), dtype=np.float64)
        yield target.lifted(rows, axes[axis], only)


def _magnitude(analysis: Analysis, target: Target, context: Context) -> Array:
    scores = lift.score("magnitude", analysis, [target.group], context)
    return np.tile(scores.get(target.name, np.zeros(target.group.size)), (target.shape[0], 1))


def columns(analysis: Analysis, layer: Layer, target: Target, numbers: Array) -> Array:
    """Return the largest of the numbers of a layer's inputs for each entry."""
    axes = analysis.axes(layer.weight)
    assert axes is not None
    channels = numbers.reshape(-1, layer.sizes[layer.in_axis], layer.taps).max((0, 2))
    return target.lifted(channels, axes[layer.in_axis])


def readers(analysis: Analysis, targets: Sequence[Target]) -> Mapping[Layer, list[Target]]:
    """Return the layers whose weights sum over targets, in the order of the graph."""
    found: dict[Layer, list[Target]] = {}
    for layer in layers(analysis.model):
        axes = analysis.axes(layer.weight)
        if axes is not None:
            reading = [target for target in targets if target.cells(axes[layer.in_axis])]
            if reading:
                found[layer] = reading
    return found


def inputs(analysis: Analysis, layer: Layer, target: Target, orders: Array) -> Array:
    """Return from where each of a layer's inputs is taken with these orders."""
    axes = analysis.axes(layer.weight)
    assert axes is not None
    places = target.places(axes[layer.in_axis], orders)
    return (places[:, None] * layer.taps + np.arange(layer.taps)).ravel()
