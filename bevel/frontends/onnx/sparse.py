"""Sparse tensors of a parsed model are made dense, as ONNX Runtime makes them when it loads a file."""

import math
from collections.abc import Iterable, Iterator
from typing import Any, Final

import numpy as np
import onnx

from bevel.errors import InvalidModel, UnsupportedModel
from bevel.frontends.onnx.tensors import AGAIN, check_tensor, element_type

LARGEST_DENSE: Final = 2**31 - 1
"""Bytes a sparse tensor may take when it is dense: what fits in a file without external data."""


def densify(proto: onnx.ModelProto, where: str) -> None:
    """Make initializers and constants that are sparse dense, in place, in all graphs and functions.

    Raises `InvalidModel` where one contradicts itself, and `UnsupportedModel` where the dense one would be too large.
    """
    for graph in _graphs(proto):
        for sparse in graph.sparse_initializer:
            name = sparse.values.name
            graph.initializer.append(_dense(sparse, f"{where}: sparse initializer {name!r}"))
        del graph.sparse_initializer[:]
        _densify_constants(graph.node, where)
    for function in proto.functions:
        _densify_constants(function.node, where)


def _graphs(proto: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """Yield the main graph, and all graphs inside it and inside functions."""
    yield proto.graph
    yield from _inside(proto.graph.node)
    for function in proto.functions:
        yield from _inside(function.node)


def _inside(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.GraphProto]:
    for node in nodes:
        for attribute in node.attribute:
            for graph in (*((attribute.g,) if attribute.HasField("g") else ()), *attribute.graphs):
                yield graph
                yield from _inside(graph.node)


def _densify_constants(nodes: Iterable[onnx.NodeProto], where: str) -> None:
    for node in nodes:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "sparse_value" and attribute.HasField("sparse_tensor"):
                dense = _dense(attribute.sparse_tensor, f"{where}: node {node.name or node.output[0]!r} (Constant)")
                attribute.CopyFrom(onnx.helper.make_attribute("value", dense))


def _dense(sparse: onnx.SparseTensorProto, where: str) -> onnx.TensorProto:
    check_tensor(sparse.values, where)
    check_tensor(sparse.indices, where)
    values, places, shape = sparse.values, sparse.indices, tuple(sparse.dims)
    if onnx.TensorProto.EXTERNAL in (values.data_location, places.data_location):
        raise UnsupportedModel("is sparse and in an external file", where=where, remedy="store it dense")
    kind = element_type(values.data_type, where)
    if kind.is_string():
        raise UnsupportedModel("is a sparse tensor of strings", where=where, remedy="store it dense")
    if any(size < 0 for size in shape) or math.prod(shape) * kind.itemsize > LARGEST_DENSE:
        raise UnsupportedModel(f"is sparse, and too large as a dense {list(shape)}", where=where, remedy=AGAIN)
    dense = np.zeros(math.prod(shape), kind.numpy())
    dense[_flat(places, values, shape, where)] = onnx.numpy_helper.to_array(values)
    return onnx.numpy_helper.from_array(dense.reshape(shape), values.name)


def _flat(
    indices: onnx.TensorProto, values: onnx.TensorProto, shape: tuple[int, ...], where: str
) -> np.ndarray[Any, Any]:
    """Return the places of values in the flat tensor; they are given so, or axis by axis."""
    count, given = list(values.dims), list(indices.dims)
    if indices.data_type != onnx.TensorProto.INT64 or len(count) != 1 or given not in (count, [*count, len(shape)]):
        raise InvalidModel(f"has values of shape {count} at places of shape {given}", where=where, remedy=AGAIN)
    places = onnx.numpy_helper.to_array(indices)
    limits = np.array([math.prod(shape)] if places.ndim == 1 else shape)
    if ((places < 0) | (places >= limits)).any():
        raise InvalidModel(f"has places outside of its shape {list(shape)}", where=where, remedy=AGAIN)
    return places if places.ndim == 1 else np.ravel_multi_index(tuple(places.T), shape)
