"""Models out: to an ONNX file, or a binary stream.

A file appears complete or not at all: it is written beside its place and then renamed. Tensors are written one at a
time, so a model larger than memory can be saved.
"""

import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final

import onnx
import onnx_ir as ir

from bevel.backends.wire import Plan, plan_of, proto_of, unname, write_data, write_model
from bevel.errors import UsageError
from bevel.ir.canonical.arithmetic import merge_arithmetic
from bevel.ir.canonical.shapes import MINTED, forget_contents, forget_minted_names
from bevel.ir.canonical.sharing import merge_shared
from bevel.ir.mapped import HAD_EXTERNAL_DATA
from bevel.writing import is_device, temporary, written

LARGEST_INLINE: Final = 1_900_000_000
"""Bytes of tensors; above it they go to a file of their own, for no protobuf message can reach 2 GiB."""

LARGEST_MOVED_INLINE: Final = 100_000_000
"""Bytes; above it, a model that came with external data leaves with it."""

NEWEST_IR_VERSION: Final = 13
"""What ONNX Runtime reads today; newer packages write more by default."""


def save(model: ir.Model, destination: str | os.PathLike[str] | BinaryIO, *, external_data: bool | None = None) -> None:
    """Write the model to a file or binary stream; the same model gives the same bytes.

    Initializers that canonicalisation separated, and that are still equal, are one again. Tensors go to `<name>.data`
    beside the file if `external_data` says so; if it says nothing, above 1.9 GB, or 0.1 GB if they came from such a
    file. The model may have been loaded from the very files it replaces, and stays usable.
    """
    model = ready_to_save(model)
    external = needs_external_data(model) if external_data is None else external_data
    if not isinstance(destination, str | os.PathLike):
        save_to_stream(model, destination, external)
        return
    path = Path(destination)
    with written(path):
        if is_device(path):
            with path.open("wb") as device:
                save_to_stream(model, device, external)
        else:
            save_to_path(model, path.resolve() if path.is_symlink() else path, external)


def ready_to_save(model: ir.Model) -> ir.Model:
    """Copy the model (its tensors are shared) and undo in the copy what only passes need."""
    copy = model.clone()
    undo_preparations(copy)
    return copy


def draft(model: ir.Model) -> bytes:
    """Give a model's bytes as passes see it, for a run between two edits: nothing is undone, so nothing is copied.

    Sizes that only inference has named are unknown in it: ONNX Runtime takes equal names for equal sizes. Its tensors
    have to be in memory (`has_external`).
    """
    proto = proto_of(model)
    proto.ir_version = readable_ir_version(model)
    unname(proto.graph, MINTED)
    content: bytes = proto.SerializeToString()
    return content


def has_external(model: ir.Model) -> bool:
    """Tell whether tensors lie in files beside the model's own."""
    values = (value for graph in model.graphs() for value in graph.initializers.values())
    return bool(model.graph.meta.get(HAD_EXTERNAL_DATA)) or any(
        isinstance(value.const_value, ir.ExternalTensor) for value in values
    )


def undo_preparations(model: ir.Model) -> None:
    """Undo what only passes need, in place: the model is as it leaves."""
    merge_shared(model)
    merge_arithmetic(model)
    forget_contents(model)
    forget_minted_names(model)
    model.ir_version = readable_ir_version(model)


def readable_ir_version(model: ir.Model) -> int:
    """Give the version of the format to write: the model's own, or the newest that ONNX Runtime reads."""
    needed = [onnx.helper.make_opsetid(domain, version) for domain, version in model.opset_imports.items()]
    return min(model.ir_version, max(NEWEST_IR_VERSION, least_ir_version(needed)))


def least_ir_version(opsets: list[onnx.OperatorSetIdProto]) -> int:
    """Give the first version of the format that knows the operator sets; unknown ones do not count."""
    return int(onnx.helper.find_min_ir_version_for(opsets, ignore_unknown=True))


def needs_external_data(model: ir.Model) -> bool:
    """Tell whether tensors go to a file of their own: because they must, or because they came so and are large."""
    had = bool(model.graph.meta.get(HAD_EXTERNAL_DATA))
    return tensor_bytes(model) > (LARGEST_MOVED_INLINE if had else LARGEST_INLINE)


def tensor_bytes(model: ir.Model) -> int:
    """Give the bytes of all initializers."""
    tensors = (value.const_value for graph in model.graphs() for value in graph.initializers.values())
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def save_to_stream(model: ir.Model, stream: BinaryIO, external: bool) -> None:
    """Write one self-contained file to a stream."""
    if external:
        raise UsageError(
            "a stream cannot take external data, and the model is above 1.9 GB or external data was asked for",
            remedy="give the path of a file",
        )
    write_model(stream, plan_of(model, None))


def save_to_path(model: ir.Model, path: Path, external: bool) -> None:
    """Write the file, and its data file if there is one, beside their places, then rename both."""
    data = path.with_name(f"{path.name}.data")
    plan = plan_of(model, data.name if external else None)
    with temporary(path) as new, temporary(data) as new_data:
        if plan.external:
            with new_data.open("xb") as file:
                write_data(file, plan)
        with new.open("xb") as file:
            write_model(file, plan)
        put_in_place(plan, new, path, new_data, data)


def put_in_place(plan: Plan, new: Path, path: Path, new_data: Path, data: Path) -> None:
    """Rename the model and its data into place; if the model cannot be, the old data comes back."""
    for old, fresh in ((path, new), (data, new_data)):
        if old.exists() and fresh.exists():
            fresh.chmod(stat.S_IMODE(old.stat().st_mode))
    if not plan.external:
        new.replace(path)
        return
    with temporary(data.with_name(f"{data.name}.old")) as kept:
        if data.exists():
            data.replace(kept)
        try:
            new_data.replace(data)
            new.replace(path)
        except OSError:
            data.unlink(missing_ok=True)
            with suppress(FileNotFoundError):
                kept.replace(data)
            raise
