"""Exports kept in a folder: each as an ONNX file in which the parameters are inputs, for they come from the module.

A file's name says what the export depends on, and what the file holds: a damaged one is seen and made again.
"""

import hashlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from bevel.errors import UsageError
from bevel.frontends.onnx.reading import DESERIALIZATION_ERRORS
from bevel.frontends.torch.state import State
from bevel.frontends.torch.tensors import shared
from bevel.ir.provenance import provenance

logger = logging.getLogger(__name__)


def kept(folder: str | os.PathLike[str], key: str, state: State, make: Callable[[], ir.Model]) -> ir.Model:
    """Return the export that is kept under `key`, with the parameters of `state`; make and keep it if there is none."""
    place = Path(folder)
    try:
        place.mkdir(parents=True, exist_ok=True)
        found = next((model for file in sorted(place.glob(f"{key}-*.onnx")) if (model := read(file))), None)
        if found is None:
            model = make()
            write(place, key, model)
            return model
    except OSError as error:
        raise UsageError(
            f"cannot be used: {error.strerror or error}", where=f"cache {place}", remedy="name a folder to write to"
        ) from error
    logger.info("export taken from %s", place)
    attach(found, state)
    return found


def read(file: Path) -> ir.Model | None:
    """Read a kept export; remove one that is damaged."""
    data = file.read_bytes()
    if file.stem.rpartition("-")[2] == digest(data):
        try:
            model: ir.Model = ir.from_proto(onnx.ModelProto.FromString(data))
            return model
        except (DecodeError, *DESERIALIZATION_ERRORS) as error:
            logger.info("%s cannot be read: %s", file, error)
    file.unlink(missing_ok=True)
    return None


def write(folder: Path, key: str, model: ir.Model) -> None:
    """Keep an export; readers see all of the file or none."""
    data = ir.to_proto(detached(model)).SerializeToString(deterministic=True)
    draft = folder / f".{uuid4().hex}.tmp"
    try:
        draft.write_bytes(data)
        draft.replace(folder / f"{key}-{digest(data)}.onnx")
    finally:
        draft.unlink(missing_ok=True)


def digest(data: bytes) -> str:
    """Return what tells one content from another."""
    return hashlib.sha256(data).hexdigest()[:32]


def detached(model: ir.Model) -> ir.Model:
    """Copy a model, with inputs in the place of the initializers that are parameters."""
    copy = model.clone()
    for name, value in list(copy.graph.initializers.items()):
        if provenance(value) is not None:
            del copy.graph.initializers[name]
            value.const_value = None
            copy.graph.inputs.append(value)
    return copy


def attach(model: ir.Model, state: State) -> None:
    """Turn the inputs that are parameters into initializers again."""
    graph = model.graph
    for value in list(graph.inputs):
        source = provenance(value)
        if source is not None:
            graph.inputs.remove(value)
            value.const_value = shared(state[source.names[0]], str(value.name))
            graph.register_initializer(value)
