"""What layers read, centred: the middle of each channel's range moves into the biases of the layers that read it.

    W x + b = W (x - z) + (b + W z)

A vector that is added to give `x` takes up the subtraction: a bias of the layer before, or of a norm. Where there is
none, as in front of the step of a Mamba block, an addition does it, if that takes off enough.

Source: Wei et al. 2023, Outlier Suppression+; Xu et al. 2025, MambaQuant (the step's shift).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from bevel.ir.action import ADDED, Action
from bevel.ir.coupling import find_action, load_rules
from bevel.ir.names import Names
from bevel.ir.resize import add_initializer
from bevel.passes.base import Context
from bevel.passes.fitting.layers import Layer, hold
from bevel.passes.fitting.moments import reached
from bevel.passes.fitting.shift import bias_of
from bevel.passes.patterns import asked
from bevel.passes.scaling.motions import readers

Array = np.ndarray[Any, Any]

ADDITION: Final = "Add"
# An addition has to take off a quarter of the largest magnitude.
WORTH: Final = 0.75


@dataclass(frozen=True, eq=False)
class Shift:
    """What layers read, the layers and their biases, and the vector that is added to give it, if there is one."""

    data: ir.Value
    layers: tuple[Layer, ...]
    biases: tuple[ir.Value, ...]
    offset: ir.Value | None


@dataclass(frozen=True)
class Centred:
    """How much of its largest magnitude was left of what was centred, and whether that took an addition."""

    left: float
    addition: bool


def centre(model: ir.Model, context: Context, only: Sequence[str], skip: Sequence[str]) -> list[Centred]:
    """Centre what layers read, in place, wherever their biases can take up the rest."""
    load_rules()
    wanted = {each.layers[0].node: each for each in _shifts(model) if _named(each, only, skip)}
    ranges = {}
    for node, walk in reached(model, list(wanted), context):
        ranges[wanted[node]] = _range(walk.values(wanted[node].data))
    names, done = Names(model), []
    for each, (low, high) in ranges.items():
        middle = (low + high) / 2
        left = float(((high - low) / 2).max() / max(np.abs(low).max(), np.abs(high).max(), np.finfo(np.float32).tiny))
        if middle.any() and (each.offset is not None or left <= WORTH):
            _carry_out(each, middle, names)
            done.append(Centred(left, each.offset is None))
    return done


def _shifts(model: ir.Model) -> Iterator[Shift]:
    for data, found in readers(model).items():
        biases = [bias for layer in found if layer.channel_axis == -1 and (bias := bias_of(layer)) is not None]
        alone = len(data.uses()) == len(found) == len(biases) and not data.is_graph_output()
        if alone and data.producer() is not None and data.dtype is not None:
            yield Shift(data, tuple(found), tuple(biases), _offset(data, found[0]))


def _named(each: Shift, only: Sequence[str], skip: Sequence[str]) -> bool:
    return asked({name for layer in each.layers for name in layer.names}, only, skip)


def _offset(data: ir.Value, layer: Layer) -> ir.Value | None:
    """Return the vector of all channels that the node that gives a value adds as the last thing."""
    maker = data.producer()
    action = None if maker is None else find_action(maker.domain, maker.op_type)
    if maker is None or not isinstance(action, Action):
        return None
    terms = action.terms_of([index for index, value in enumerate(maker.inputs) if value is not None])
    adds = action == ADDED or (action.turned is not None and len(terms) > 1)
    indices = [term.times[0] for term in (terms if action == ADDED else terms[-1:])] if adds else []
    vectors = [value for index in indices if (value := maker.inputs[index]) is not None and _is_vector(value, layer)]
    return vectors[0] if len(vectors) == 1 else None


def _is_vector(value: ir.Value, layer: Layer) -> bool:
    tensor = value.const_value
    own = value.is_initializer() and not value.is_graph_input() and len(value.uses()) == 1
    return own and tensor is not None and tuple(tensor.shape.numpy()) == (layer.sizes[layer.in_axis],)


def _range(arrays: Iterator[Array]) -> tuple[Array, Array]:
    """Return the least and the largest number along the last axis."""
    rows = [array.reshape(-1, array.shape[-1]).astype(np.float64) for array in arrays]
    return np.min([each.min(0) for each in rows], axis=0), np.max([each.max(0) for each in rows], axis=0)


def _carry_out(each: Shift, middle: Array, names: Names) -> None:
    for layer, bias in zip(each.layers, each.biases, strict=True):
        hold(bias, _content(bias) + layer.content()[0] @ middle)
    if each.offset is not None:
        hold(each.offset, _content(each.offset) - middle)
    else:
        _add(each, -middle, names)


def _content(value: ir.Value) -> Array:
    assert value.const_value is not None
    return value.const_value.numpy().astype(np.float64)


def _add(each: Shift, vector: Array, names: Names) -> None:
    """Let the layers read the value with a vector added."""
    node, data = each.layers[0].node, each.data
    graph = node.graph
    assert isinstance(graph, ir.Graph) and data.dtype is not None
    name = names.free(f"{data.name}.centred")
    added = add_initializer(graph, f"{name}.shift", ir.tensor(vector.astype(data.dtype.numpy())), names)
    addition = ir.node(ADDITION, [data, added], name=name)
    addition.outputs[0].name, addition.outputs[0].type, addition.outputs[0].shape = name, data.type, data.shape
    graph.insert_before(node, addition)
    for layer in each.layers:
        layer.node.replace_input_with(0, addition.outputs[0])
