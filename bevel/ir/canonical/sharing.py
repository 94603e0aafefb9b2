"""Vectors and scalars get one use each, and find together again when the model is saved.

Exporters merge equal initializers: freshly initialised gains of all normalisations become one tensor, the `64` in
all Reshape targets one constant. A structural edit at one use would then drag all others along. Matrices and larger
stay as they are: an embedding tied to its head is tied on purpose. So does what is known to be one parameter of a
module (`bevel.ir.provenance`), whatever its size.
"""

from typing import Final

import onnx_ir as ir

from bevel.ir.canonical.constants import known, replace_by_initializer
from bevel.ir.names import free_names, value_names
from bevel.ir.provenance import provenance

ORIGIN: Final = "bevel.shared"
"""Key in `value.meta`: the name of the initializer that this one was copied from."""


def separate_shared(model: ir.Model) -> None:
    """Give each use of a vector, scalar or single number its own initializer `name`, `name/2`, `name/3`, ..."""
    names = value_names(model)
    for graph in list(model.graphs()):
        for value in list(graph.initializers.values()):
            if is_separable(value):
                separate(graph, value, names)


def lift_identities(model: ir.Model) -> None:
    """Resolve Identity nodes over initializers, by which an exporter wrote that two parameters are equal.

    A vector becomes an initializer of its own again, under its own name; a matrix stays tied.
    """
    for graph in list(model.graphs()):
        for node in graph:
            tensor = known(node.inputs[0]) if node.domain == "" and node.op_type == "Identity" else None
            if tensor is not None and not node.outputs[0].is_graph_output():
                lift_identity(graph, node, tensor)


def lift_identity(graph: ir.Graph, node: ir.Node, tensor: ir.TensorProtocol) -> None:
    """Replace an Identity over an initializer by another one, or by that one."""
    (source,), output = node.inputs, node.outputs[0]
    assert source is not None and source.name
    if is_small(tensor):
        constant = replace_by_initializer(output, tensor)
        constant.meta[ORIGIN] = source.meta.setdefault(ORIGIN, source.name)
    else:
        output.replace_all_uses_with(source)
    graph.remove(node, safe=True)


def is_small(tensor: ir.TensorProtocol) -> bool:
    """Tell whether a tensor is a vector, a scalar or a single number: too small to be tied on purpose."""
    return len(tensor.shape) <= 1 or tensor.size == 1


def is_separable(value: ir.Value) -> bool:
    """Tell whether the initializer has more than one use and is too small to be tied on purpose."""
    tensor = value.const_value
    if (
        tensor is None
        or value.is_graph_input()
        or provenance(value) is not None
        or len(value.uses()) + value.is_graph_output() < 2
    ):
        return False
    return is_small(tensor)


def separate(graph: ir.Graph, value: ir.Value, names: set[str]) -> None:
    """Leave the first use (or the graph output) with the original, give every other use a copy."""
    assert value.name
    others = tuple(value.uses())[0 if value.is_graph_output() else 1 :]
    for (node, index), name in zip(others, free_names(value.name, names), strict=False):
        copy = copy_of(value, name)
        graph.initializers.add(copy)
        node.replace_input_with(index, copy)


def copy_of(value: ir.Value, name: str) -> ir.Value:
    """Make an initializer over the same tensor under another name, which remembers where it came from."""
    copy = ir.Value(
        name=name,
        shape=value.shape,
        type=value.type,
        doc_string=value.doc_string,
        const_value=value.const_value,
        metadata_props=dict(value.metadata_props),
    )
    copy.meta.update(value.meta)
    copy.meta[ORIGIN] = value.meta.setdefault(ORIGIN, value.name)
    return copy


def merge_shared(model: ir.Model) -> None:
    """Make initializers one again that were separated and are still equal, under the original name if it is free."""
    names = value_names(model)
    for graph in list(model.graphs()):
        families: dict[str, list[ir.Value]] = {}
        for value in graph.initializers.values():
            if ORIGIN in value.meta:
                families.setdefault(value.meta[ORIGIN], []).append(value)
        for origin, family in families.items():
            merge_family(graph, origin, family, names)


def merge_family(graph: ir.Graph, origin: str, family: list[ir.Value], names: set[str]) -> None:
    """Merge the equal ones among initializers of one origin."""
    kept: dict[object, ir.Value] = {}
    for value in family:
        first = kept.setdefault(content(value), value)
        if first is not value and not value.is_graph_output():
            value.replace_all_uses_with(first)
            del graph.initializers[str(value.name)]
    if len(kept) == 1 and origin not in names:
        (only,) = kept.values()
        only.name = origin
        names.add(origin)


def content(value: ir.Value) -> object:
    """Give what two initializers must have in common to be one."""
    tensor = value.const_value
    assert tensor is not None
    if isinstance(tensor, ir.StringTensor):
        return tensor.dtype, tuple(tensor.shape.numpy()), tuple(tensor.string_data())
    return tensor.dtype, tuple(tensor.shape.numpy()), tensor.tobytes()
