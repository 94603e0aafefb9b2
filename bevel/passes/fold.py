"""Fold BatchNormalization into the layer before it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np
import onnx_ir as ir

from bevel.ir.canonical.dead import remove_dead
from bevel.ir.canonical.shapes import resolve_shapes
from bevel.ir.names import free_names, value_names
from bevel.passes.base import Context, Outcome, Pass, Preserving, Promise
from bevel.passes.fitting.normalization import is_normalization
from bevel.passes.redundancy import bypass

Array = np.ndarray[Any, Any]

CAST, CAST_LIKE = "Cast", "CastLike"
# BatchNormalization's own defaults and its parameters after the data: scale, shift, mean, variance.
EPSILON: Final = 1e-5
PARAMETERS: Final = slice(1, 5)
# Before this opset, the operator trained unless told otherwise.
FIRST_OPSET: Final = 7


@dataclass(frozen=True)
class Site:
    """A normalization and the layer that can take it in, with the weight's axis of output channels and their groups."""

    norm: ir.Node
    layer: ir.Node
    axis: int
    groups: int


@dataclass(frozen=True)
class Fold(Pass):
    """Fold BatchNormalization into the convolution or Gemm before it.

    What it does: where a normalization in inference mode is the only reader of a Conv, ConvTranspose or Gemm, scales
    that layer's weights and shifts its bias, and takes the normalization out. The arithmetic is done in float64 and
    rounded once. Weights are computed when the model is saved or run. A weight with another use is left alone. Constant
    shape arithmetic is folded too (a CastLike becomes a Cast), never weights, so the file does not grow.

    Promise: Preserving.

    Example: fold

    Source: Jacob et al. 2018, Quantization and Training of Neural Networks, section 3.2.
    """

    name: ClassVar[str] = "fold"
    promise: ClassVar[Promise] = Preserving()

    def run(self, model: ir.Model, context: Context) -> Outcome:
        """Fold constants, then every normalization that can be."""
        _settle_types(model)
        resolve_shapes(model)
        sites = [] if model.opset_imports.get("", 0) < FIRST_OPSET else list(_sites(model))
        taken, folded = value_names(model), {site.layer.outputs[0] for site in sites}
        for site in sites:
            _fold(site, taken)
        remove_dead(model)
        notes = (f"{len(sites)} normalizations folded",)
        return Outcome(notes=notes, where=lambda value: None if value in folded else {})


def _conv_axis(layer: ir.Node) -> tuple[int, int]:
    return 0, 1


def _conv_transpose_axis(layer: ir.Node) -> tuple[int, int]:
    # weights are [in channels, out channels of one group, taps]
    return 1, layer.attributes.get_int("group", 1)


def _gemm_axis(layer: ir.Node) -> tuple[int, int]:
    return (0 if layer.attributes.get_int("transB", 0) else 1), 1


# The layers a normalization can be folded into: the weight's axis of output channels, and how many groups repeat it.
LAYERS: Final[dict[str, Callable[[ir.Node], tuple[int, int]]]] = {
    "Conv": _conv_axis,
    "ConvTranspose": _conv_transpose_axis,
    "Gemm": _gemm_axis,
}


def _settle_types(model: ir.Model) -> None:
    """Turn a cast to another value's type into a cast to that type, so that casts of constants can be folded."""
    for graph in model.graphs():
        for node in graph:
            like = node.inputs[1] if node.op_type == CAST_LIKE and not node.domain else None
            if like is None or like.dtype is None:
                continue
            attributes = [attribute for attribute in node.attributes.values() if attribute.name != "to"]
            cast = ir.Node("", CAST, [node.inputs[0]], [*attributes, ir.AttrInt64("to", like.dtype)], name=node.name)
            cast.metadata_props.update(node.metadata_props)
            ir.convenience.replace_nodes_and_values(graph, node, [node], [cast], node.outputs, cast.outputs)


def _sites(model: ir.Model) -> Iterator[Site]:
    for graph in model.graphs():
        for node in graph:
            site = _site(node)
            if site is not None:
                yield site


def _site(norm: ir.Node) -> Site | None:
    """Return the fold that `norm` allows, None if it has to stay."""
    if not is_normalization(norm) or len([value for value in norm.outputs if value.name]) != 1:
        return None
    data = norm.inputs[0]
    layer = data.producer() if data is not None else None
    if data is None or layer is None or layer.domain or layer.op_type not in LAYERS or layer.graph is not norm.graph:
        return None
    if len(data.uses()) != 1 or data.is_graph_output() or not _foldable_weights(norm, layer):
        return None
    return Site(norm, layer, *LAYERS[layer.op_type](layer))


def _foldable_weights(norm: ir.Node, layer: ir.Node) -> bool:
    """Say whether all parameters are constants of one floating type, and the layer's are its alone."""
    own = [value for value in layer.inputs[1:3] if value is not None]
    parameters = [value for value in (*own, *norm.inputs[PARAMETERS]) if value is not None]
    if len(parameters) != len(own) + 4 or not all(_is_constant(value) for value in parameters):
        return False
    if any(len(value.uses()) != 1 or value.is_graph_output() for value in own):
        return False
    if len(own) == 2 and not _is_vector(own[1], norm.inputs[1]):
        return False
    kinds = {value.const_value.dtype for value in parameters if value.const_value is not None}
    scaled = layer.attributes.get_float("alpha", 1.0) == 1.0 == layer.attributes.get_float("beta", 1.0)
    return len(kinds) == 1 and kinds.pop().is_floating_point() and scaled


def _is_constant(value: ir.Value) -> bool:
    return value.is_initializer() and not value.is_graph_input() and value.const_value is not None


def _is_vector(value: ir.Value, like: ir.Value | None) -> bool:
    """Say whether a bias has one entry per channel, as the normalization's scale `like` has."""
    left, right = value.const_value, like.const_value if like is not None else None
    return left is not None and right is not None and tuple(left.shape) == tuple(right.shape)


def _fold(site: Site, taken: set[str]) -> None:
    """Give the layer its new weight and bias, and take the normalization out."""
    graph, weight = site.layer.graph, site.layer.inputs[1]
    scale, shift, mean, variance = (_tensor(value) for value in site.norm.inputs[PARAMETERS])
    epsilon = site.norm.attributes.get_float("epsilon", EPSILON)
    old_weight = _tensor(weight)
    bias = site.layer.inputs[2] if len(site.layer.inputs) > 2 else None
    old_bias = None if bias is None else _tensor(bias)
    assert isinstance(graph, ir.Graph) and weight is not None

    def new_weight() -> Array:
        return scaled(old_weight.numpy(), gain(scale.numpy(), variance.numpy(), epsilon), site.axis, site.groups)

    def new_bias() -> Array:
        start = 0.0 if old_bias is None else old_bias.numpy()
        factor = gain(scale.numpy(), variance.numpy(), epsilon)
        return shifted(start, factor, mean.numpy(), shift.numpy())

    weight.const_value = _lazy(new_weight, old_weight, weight.name)
    if bias is None:
        bias = _new_bias(site, graph, taken)
    bias.const_value = _lazy(new_bias, shift, bias.name)
    bypass(graph, site.norm, site.layer.outputs[0], site.norm.outputs[0])


def gain(scale: Array, variance: Array, epsilon: float) -> Array:
    """Return what a normalization multiplies each channel with, in float64."""
    return scale.astype(np.float64) / np.sqrt(variance.astype(np.float64) + epsilon)


def scaled(weight: Array, factor: Array, axis: int, groups: int) -> Array:
    """Scale a weight's output channels, which lie along `axis`; with groups, input channels of group g meet its own.

    >>> scaled(np.ones((2, 1, 1)), np.array([2.0, 3.0]), 1, 2).ravel().tolist()
    [2.0, 3.0]
    """
    wide = weight.astype(np.float64)
    if groups == 1:
        return wide * factor.reshape([-1 if place == axis else 1 for place in range(wide.ndim)])
    # [in, out of a group, taps] = [groups * in of a group, out of a group, taps]
    split = wide.reshape(groups, -1, *wide.shape[1:])
    by_group = factor.reshape(groups, 1, -1, *[1] * (wide.ndim - 2))
    return (split * by_group).reshape(wide.shape)


def shifted(bias: Array | float, factor: Array, mean: Array, shift: Array) -> Array:
    """Return the folded bias: (bias - mean) * factor + shift."""
    wide = np.asarray(bias, dtype=np.float64)
    return (wide - mean.astype(np.float64)) * factor + shift.astype(np.float64)


def _tensor(value: ir.Value | None) -> ir.TensorProtocol:
    assert value is not None and value.const_value is not None
    return value.const_value


def _lazy(compute: Callable[[], Array], like: ir.TensorProtocol, name: str | None) -> ir.LazyTensor:
    """Return a tensor of the type and shape of `like` that is computed, and rounded once, when it is read."""
    kind = like.dtype.numpy()
    return ir.LazyTensor(
        lambda: ir.tensor(compute().astype(kind)), dtype=like.dtype, shape=ir.Shape(like.shape.numpy()), name=name
    )


def _new_bias(site: Site, graph: ir.Graph, taken: set[str]) -> ir.Value:
    """Give a layer without a bias one, under the name of the normalization's shift where nothing else uses that."""
    shift = site.norm.inputs[2]
    assert shift is not None
    if len(shift.uses()) > 1 or shift.graph is not graph:
        name = next(free_names(shift.name or "shift", taken))
        shift = ir.Value(name=name, shape=shift.shape, type=shift.type, const_value=shift.const_value)
        graph.register_initializer(shift)
    site.layer.resize_inputs(3)
    site.layer.replace_input_with(2, shift)
    return shift
