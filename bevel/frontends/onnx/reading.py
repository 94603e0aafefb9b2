"""From a source to an `onnx_ir.Model` that is known to be well-formed."""

import io
import os
from pathlib import Path
from typing import BinaryIO, Final

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from bevel.errors import InvalidModel, UnsupportedModel, UsageError
from bevel.frontends.onnx.external import attach
from bevel.frontends.onnx.graphs import check_graphs
from bevel.frontends.onnx.header import check_header, name_standard
from bevel.frontends.onnx.order import put_in_order
from bevel.frontends.onnx.sparse import densify
from bevel.ir.canonical.shapes import UNNOTED

Source = str | os.PathLike[str] | bytes | BinaryIO | onnx.ModelProto | ir.Model

LARGEST_PROTOBUF: Final = 2**31 - 1
"""Bytes; no protobuf message can be larger, so no valid ONNX file is (its external data can)."""

PIECE: Final = 2**20
"""Bytes that are read at once of what does not say how long it is."""

# What onnx_ir raises on what it cannot represent; it wraps most of it in the first.
DESERIALIZATION_ERRORS: Final = (
    ir.serde.SerdeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    NotImplementedError,
    AssertionError,
)


def read(source: Source) -> tuple[ir.Model, str]:
    """Read and check a source; give the model and the name by which messages call its source."""
    if isinstance(source, ir.Model):
        return copied(source), "the model"
    if isinstance(source, onnx.ModelProto):
        proto = onnx.ModelProto()
        proto.CopyFrom(source)
        return checked(proto, "the model", None), "the model"
    if isinstance(source, bytes | bytearray | memoryview):
        return checked(parse(bytes(source), "<bytes>"), "<bytes>", None), "<bytes>"
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        return checked(parse(contents(path), str(path)), str(path), path), str(path)
    if not hasattr(source, "read"):
        raise UsageError(
            f"cannot load a model from a {type(source).__name__}",
            remedy="give a path, bytes, a file opened in binary mode, an onnx.ModelProto or an onnx_ir.Model",
        )
    return from_file(source)


def from_file(file: BinaryIO) -> tuple[ir.Model, str]:
    """Read a model from an open binary file; external data is looked for beside it, if it has a name."""
    name = getattr(file, "name", None)
    path = Path(name) if isinstance(name, str) and Path(name).is_file() else None
    where = str(path) if path else "<stream>"
    if not isinstance(file.read(0), bytes):
        raise UsageError("the file is open in text mode", where=where, remedy="open it with mode 'rb'")
    return checked(parse(bounded(file, where), where), where, path), where


def contents(path: Path) -> bytes:
    """Read a file that may be an ONNX model by its size."""
    try:
        size = path.stat().st_size
        if path.is_dir():
            raise InvalidModel("is a folder", where=str(path), remedy="name the .onnx file in it")
        if size > LARGEST_PROTOBUF:
            raise too_large(f"{size} bytes", str(path))
        if path.is_file():
            return path.read_bytes()
        with path.open("rb") as device:
            return bounded(device, str(path))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InvalidModel(f"cannot be read: {reason}", where=str(path), remedy="check the path") from error


def bounded(file: BinaryIO, where: str) -> bytes:
    """Read a file to its end; one that has none, as devices and pipes may, is no model."""
    held = io.BytesIO()
    while part := file.read(PIECE):
        held.write(part)
        if held.tell() > LARGEST_PROTOBUF:
            raise too_large(f"more than {LARGEST_PROTOBUF} bytes", where)
    return held.getvalue()


def too_large(size: str, where: str) -> InvalidModel:
    """Say that a file has more bytes than a model can."""
    return InvalidModel(
        f"has {size}, more than a protobuf message can have", where=where, remedy="save the model with external data"
    )


def parse(data: bytes, where: str) -> onnx.ModelProto:
    """Parse the bytes of a model."""
    if not data:
        raise InvalidModel("is empty", where=where, remedy="download or export the model again")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        raise InvalidModel(
            f"is truncated, or no ONNX model ({len(data)} bytes)",
            where=where,
            remedy="download or export the model again; Git LFS pointers and archives must be resolved first",
        ) from error
    return proto


def checked(proto: onnx.ModelProto, where: str, path: Path | None) -> ir.Model:
    """Check a parsed model from the outside in, and turn it into an `onnx_ir.Model` in topological order."""
    check_header(proto, where)
    name_standard(proto)
    densify(proto, where)
    in_order = check_graphs(proto, where)
    try:
        model = ir.from_proto(proto)
    except DESERIALIZATION_ERRORS as error:
        raise UnsupportedModel(
            f"cannot be represented: {root_cause(error)}", where=where, remedy="export the model again without it"
        ) from error
    if all(value.metadata_props for value in proto.graph.value_info):  # which is ours: provenance, and what was taken
        model.graph.meta[UNNOTED] = True
    attach(model, where, path)
    if not in_order:
        put_in_order(model, where)
    return model


def root_cause(error: BaseException) -> str:
    """Give the first line of what was raised first."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0][:300]


def copied(model: ir.Model) -> ir.Model:
    """Copy a model that was built in memory, and check what such a model can get wrong."""
    try:
        clone = model.clone()
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError) as error:
        raise InvalidModel(
            f"cannot be copied: {root_cause(error)}", where="the model", remedy="check it with onnx_ir"
        ) from error
    put_in_order(clone, "the model")
    return clone
