"""Tensors in a file on disk, mapped while somebody looks and released at once after."""

import mmap
import os
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Final

import numpy as np
import onnx_ir as ir

HAD_EXTERNAL_DATA: Final = "bevel.external"
"""Key in `graph.meta` of a model that was read with external data."""

CHUNK: Final = 1 << 24
"""Bytes copied at a time from file to file."""


class MappedTensor(ir.ExternalTensor):
    """An external tensor that reads through an open file, and maps it anew for every reader.

    Being open, the file may be replaced on disk (by the very model being saved over itself) and is still the one that
    was loaded. Being mapped anew, its pages leave memory with the array that was given out.
    """

    __slots__ = ("file",)

    def __init__(self, tensor: ir.ExternalTensor, folder: str, file: BinaryIO) -> None:
        super().__init__(
            tensor.location,
            tensor.offset,
            tensor.length,
            tensor.dtype,
            shape=tensor.shape,
            name=tensor.name,
            doc_string=tensor.doc_string,
            metadata_props=dict(tensor.metadata_props),
            base_dir=folder,
        )
        self.file = file

    def numpy(self) -> np.ndarray:
        """Map the tensor; the array is read-only and holds the mapping."""
        if self.dtype.bitwidth < 8:
            packed = np.frombuffer(self.tobytes(), np.uint8)
            return ir.PackedTensor(packed, self.dtype, shape=self.shape).numpy()
        if self.size == 0:
            return np.empty(self.shape.numpy(), self.dtype.numpy())
        whole = mmap.mmap(self.file.fileno(), 0, access=mmap.ACCESS_READ)
        flat = np.frombuffer(whole, self.dtype.numpy(), self.size, self.offset or 0)
        return flat.reshape(self.shape.numpy())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    def tobytes(self) -> bytes:
        """Read the tensor's bytes into memory."""
        return b"".join(self.chunks())

    def tofile(self, file: Any) -> None:
        """Copy the tensor's bytes to another file, a chunk at a time."""
        for chunk in self.chunks():
            file.write(chunk)

    def chunks(self) -> Iterator[bytes]:
        """Read the tensor's bytes in pieces."""
        offset, left = self.offset or 0, self.nbytes
        while left > 0:
            chunk = os.pread(self.file.fileno(), min(CHUNK, left), offset)
            if not chunk:
                raise OSError(f"{self.path} became shorter while it was read")
            yield chunk
            offset, left = offset + len(chunk), left - len(chunk)

    def release(self) -> None:
        """Do nothing: nothing is held between readers."""


def replace_external(model: ir.Model, replaced: Callable[[ir.ExternalTensor, str], ir.TensorProtocol]) -> None:
    """Replace the external tensors among initializers and attributes; their owners' names go to messages."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = replaced(value.const_value, str(value.name))
    bodies = (model.graph, *(function.graph for function in model.functions.values()))
    for node in (node for body in bodies for node in body.all_nodes()):
        for name, attribute in node.attributes.items():
            if isinstance(attribute.value, ir.ExternalTensor):
                node.attributes[name] = ir.AttrTensor(name, replaced(attribute.value, node.name or node.op_type))
