"""External data: found beside the model and nowhere else, as long as the tensors say."""

import os
from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir

from bevel.errors import InvalidModel, MissingData
from bevel.frontends.onnx.tensors import byte_count


def attach(model: ir.Model, where: str, path: Path | None) -> None:
    """Check every external tensor of the model against the files beside it, and let it know its folder."""
    for name, tensor in external_tensors(model):
        label = f"{where}: external data of {name!r}"
        if path is None:
            raise MissingData(
                "cannot be found: the model was not given by its path", where=label, remedy="load it by its path"
            )
        folder, file = locate(tensor, path, label)
        check_extent(tensor, file, label)
        tensor.base_dir = folder


def external_tensors(model: ir.Model) -> Iterator[tuple[str, ir.ExternalTensor]]:
    """Give the external tensors among initializers and attributes, with the name to call them by."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                yield str(value.name), value.const_value
    bodies = (model.graph, *(function.graph for function in model.functions.values()))
    for node in (node for body in bodies for node in body.all_nodes()):
        for tensor in (tensor for attribute in node.attributes.values() for tensor in tensors_of(attribute)):
            if isinstance(tensor, ir.ExternalTensor):
                yield str(node.name or node.op_type), tensor


def tensors_of(attribute: ir.Attr) -> tuple[ir.TensorProtocol, ...]:
    """Give the tensors an attribute holds."""
    if attribute.is_ref():
        return ()
    if attribute.type == ir.AttributeType.TENSOR:
        return (attribute.as_tensor(),)
    return tuple(attribute.as_tensors()) if attribute.type == ir.AttributeType.TENSORS else ()


def locate(tensor: ir.ExternalTensor, path: Path, where: str) -> tuple[str, Path]:
    """Give the model's folder and the data file in it.

    Links are followed, for the data as for the model itself: a download cache keeps both under other names, and the
    data must be in the folder where the model really is.
    """
    location = os.fspath(tensor.location)
    if not location or "\0" in location or Path(location).is_absolute() or ".." in Path(location).parts:
        raise MissingData(
            f"is said to be at {location!r}, outside the model's folder",
            where=where,
            remedy="move the data beside the model and save the model with a relative location",
        )
    for folder in (path.parent, path.resolve().parent):
        file = folder / location
        if file.is_file():
            break
    else:
        raise MissingData(f"{location!r} does not exist", where=where, remedy=f"put it into {path.parent}")
    if folder.resolve() not in file.resolve().parents or file.stat().st_nlink > 1:
        raise MissingData(
            f"{location!r} is a link to a file elsewhere", where=where, remedy="copy the data beside the model"
        )
    return str(folder), file


def check_extent(tensor: ir.ExternalTensor, file: Path, where: str) -> None:
    """Refuse an extent that is not what the shape needs, or reaches beyond the end of the file."""
    needed = byte_count(tensor.size, tensor.dtype)
    offset = tensor.offset or 0
    if offset < 0 or tensor.length not in (None, needed):
        raise InvalidModel(
            f"has {tensor.length} bytes at {offset}, the shape {tensor.shape} needs {needed}",
            where=where,
            remedy="the model and its data do not belong together; download or export both again",
        )
    size = file.stat().st_size
    if offset + needed > size:
        raise MissingData(
            f"ends at byte {offset + needed}, but {file.name!r} has only {size}",
            where=where,
            remedy="the data file is truncated or another model's; download or export it again",
        )
