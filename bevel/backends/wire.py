"""An ONNX file as bytes, written front to back without ever being whole in memory.

A protobuf message is the concatenation of its fields, in any order. So all but the large tensors is serialised by
protobuf, and those are written around it: key, length, content.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final

import onnx
import onnx_ir as ir

from bevel.errors import UnsupportedModel
from bevel.ir.canonical.shapes import UNNOTED
from bevel.ir.mapped import replace_external

STREAMED_ABOVE: Final = 1024
"""Bytes; smaller tensors are serialised with the rest."""

GRAPH_KEY: Final = onnx.ModelProto.GRAPH_FIELD_NUMBER << 3 | 2
INITIALIZER_KEY: Final = onnx.GraphProto.INITIALIZER_FIELD_NUMBER << 3 | 2
RAW_DATA_KEY: Final = onnx.TensorProto.RAW_DATA_FIELD_NUMBER << 3 | 2


@dataclass(frozen=True)
class Entry:
    """One initializer: its serialised fields, and the tensor whose bytes follow them (None if they are included)."""

    fields: bytes
    tensor: ir.TensorProtocol | None

    def length(self) -> int:
        """Give the length of the message."""
        if self.tensor is None:
            return len(self.fields)
        return len(self.fields) + len(head(RAW_DATA_KEY, self.tensor.nbytes)) + self.tensor.nbytes


@dataclass(frozen=True)
class Plan:
    """A file to write: the model without its graph, the graph without its initializers, and those."""

    model: bytes
    graph: bytes
    entries: tuple[Entry, ...]
    external: tuple[ir.TensorProtocol, ...]


def plan_of(model: ir.Model, data_name: str | None) -> Plan:
    """Lay out the file of a model, with its large tensors in a data file of the given name, or in the file itself.

    The model is consumed: its large initializers become references.
    """
    streamed = large_initializers(model, data_name is not None)
    take_in(model, {id(tensor) for _, tensor in streamed})
    refer(streamed, data_name or "streamed")
    proto = proto_of(model)
    if model.graph.meta.get(UNNOTED):
        unnote(proto.graph)
    inline = {} if data_name else {value.name: tensor for value, tensor in streamed if value.graph is model.graph}
    entries = tuple(entry_of(tensor, inline.get(tensor.name)) for tensor in proto.graph.initializer)
    del proto.graph.initializer[:]
    graph = proto.graph.SerializeToString(deterministic=True)
    proto.ClearField("graph")
    external = tuple(tensor for _, tensor in streamed) if data_name else ()
    return Plan(proto.SerializeToString(deterministic=True), graph, entries, external)


def proto_of(model: ir.Model) -> onnx.ModelProto:
    """Serialise a model; raises `UnsupportedModel` with the cause if that cannot be done."""
    try:
        return ir.to_proto(model)
    except (ir.serde.SerdeError, ValueError, TypeError) as error:
        raise UnsupportedModel(
            f"cannot be written: {root_cause(error)}", where="the model", remedy="repair the part of the model it names"
        ) from error


def unname(graph: onnx.GraphProto, names: re.Pattern[str]) -> None:
    """Make the sizes unknown that have such names, in a graph and those inside it."""
    for each in graphs_of(graph):
        for value in (*each.input, *each.output, *each.value_info):
            for dim in value.type.tensor_type.shape.dim:
                if names.search(dim.dim_param):
                    dim.ClearField("dim_param")


def unnote(graph: onnx.GraphProto) -> None:
    """Leave out what is known of values but inputs, outputs and those with metadata, in a graph and those inside it."""
    for each in graphs_of(graph):
        kept = [value for value in each.value_info if value.metadata_props]
        del each.value_info[:]
        each.value_info.extend(kept)


def graphs_of(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph and those inside it."""
    yield graph
    for attribute in (attribute for node in graph.node for attribute in node.attribute):
        for inner in (attribute.g, *attribute.graphs):
            if inner.node:
                yield from graphs_of(inner)


def root_cause(error: BaseException) -> str:
    """Give what was raised first."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error)


Initializer = tuple[ir.Value, ir.TensorProtocol]


def large_initializers(model: ir.Model, inner: bool) -> list[Initializer]:
    """Give the initializers that are streamed: the large ones of the main graph, and of those inside it if asked for.

    Only a data file can take those of inner graphs.
    """
    values = (value for graph in (model.graphs() if inner else (model.graph,)) for value in graph.initializers.values())
    pairs = ((value, value.const_value) for value in values)
    return [(value, tensor) for value, tensor in pairs if tensor is not None and is_streamed(tensor)]


def is_streamed(tensor: ir.TensorProtocol) -> bool:
    """Tell whether a tensor is written around what protobuf serialises."""
    return tensor.dtype != ir.DataType.STRING and tensor.nbytes > STREAMED_ABOVE


def take_in(model: ir.Model, streamed: set[int]) -> None:
    """Read the external tensors that are not streamed: their files are those the model was loaded from."""

    def held(tensor: ir.ExternalTensor, owner: str) -> ir.TensorProtocol:
        if id(tensor) in streamed:
            return tensor
        return ir.Tensor(
            tensor.numpy(),
            dtype=tensor.dtype,
            name=tensor.name,
            doc_string=tensor.doc_string,
            metadata_props=dict(tensor.metadata_props),
        )

    replace_external(model, held)


def refer(streamed: list[Initializer], location: str) -> None:
    """Put references in the place of initializers, one after the other."""
    offset = 0
    for value, tensor in streamed:
        value.const_value = reference(value, tensor, location, offset)
        offset += tensor.nbytes


def reference(value: ir.Value, tensor: ir.TensorProtocol, location: str, offset: int) -> ir.ExternalTensor:
    """Make an external tensor that says where a tensor's bytes will be."""
    return ir.ExternalTensor(
        location,
        offset,
        tensor.nbytes,
        tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=str(value.name),
        doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props),
    )


def entry_of(proto: onnx.TensorProto, tensor: ir.TensorProtocol | None) -> Entry:
    """Serialise an initializer, without the reference if its bytes will follow."""
    if tensor is not None:
        proto.ClearField("external_data")
        proto.ClearField("data_location")
    return Entry(proto.SerializeToString(deterministic=True), tensor)


def write_model(file: BinaryIO, plan: Plan) -> None:
    """Write the model file."""
    bodies = [head(INITIALIZER_KEY, entry.length()) for entry in plan.entries]
    size = len(plan.graph) + sum(map(len, bodies)) + sum(entry.length() for entry in plan.entries)
    file.write(plan.model + head(GRAPH_KEY, size) + plan.graph)
    for body, entry in zip(bodies, plan.entries, strict=True):
        file.write(body + entry.fields)
        if entry.tensor is not None:
            file.write(head(RAW_DATA_KEY, entry.tensor.nbytes))
            write_tensor(file, entry.tensor)


def write_data(file: BinaryIO, plan: Plan) -> None:
    """Write the data file."""
    for tensor in plan.external:
        write_tensor(file, tensor)


def write_tensor(file: BinaryIO, tensor: ir.TensorProtocol) -> None:
    """Write a tensor's bytes, and let go of them."""
    if isinstance(tensor, ir.ExternalTensor):
        tensor.tofile(file)
        return
    data = tensor.tobytes()
    if len(data) != tensor.nbytes:
        raise UnsupportedModel(
            f"has {len(data)} bytes, its shape says {tensor.nbytes}",
            where=f"tensor {tensor.name!r}",
            remedy="the pass that made it is at fault",
        )
    file.write(data)


def head(key: int, length: int) -> bytes:
    """Encode the key of a field and the length of its content.

    >>> head(RAW_DATA_KEY, 300)
    b'J\\xac\\x02'
    """
    return varint(key) + varint(length)


def varint(number: int) -> bytes:
    """Encode a number in groups of seven bits, the lowest first."""
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    return bytes([*encoded, number])
