"""External data: found beside the model and nowhere else, as long as the tensors say."""

import os
from pathlib import Path
from typing import BinaryIO

import onnx_ir as ir

from bevel.errors import InvalidModel, MissingData
from bevel.frontends.onnx.tensors import byte_count
from bevel.ir.mapped import HAD_EXTERNAL_DATA, MappedTensor, replace_external


def attach(model: ir.Model, where: str, path: Path | None) -> None:
    """Check every external tensor of the model against the files beside it, and open those files."""
    opened: dict[Path, BinaryIO] = {}

    def attached(tensor: ir.ExternalTensor, owner: str) -> MappedTensor:
        label = f"{where}: external data of {owner!r}"
        if path is None:
            raise MissingData(
                "cannot be found: the model was not given by its path", where=label, remedy="load it by its path"
            )
        file = locate(tensor, path, label)
        check_extent(tensor, file, label)
        if file not in opened:
            opened[file] = file.open("rb")
        return MappedTensor(tensor, str(path.parent), opened[file])

    replace_external(model, attached)
    if opened:
        model.graph.meta[HAD_EXTERNAL_DATA] = True


def locate(tensor: ir.ExternalTensor, path: Path, where: str) -> Path:
    """Give the data file in the model's folder.

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
    folders = (path.parent, path.resolve().parent)
    file = next((folder / location for folder in folders if (folder / location).is_file()), None)
    if file is None:
        raise MissingData(f"{location!r} does not exist", where=where, remedy=f"put it into {path.parent}")
    inside = any(folder.resolve() in file.resolve().parents for folder in folders)
    if not inside or file.stat().st_nlink > 1:
        raise MissingData(
            f"{location!r} is a link to a file elsewhere", where=where, remedy="copy the data beside the model"
        )
    return file


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
