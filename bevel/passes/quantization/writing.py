"""Put quantized weights into a model: their tensors, at once or when they are read, and the nodes that read them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from bevel.ir.canonical.dead import remove_dead
from bevel.ir.names import Names
from bevel.ir.resize import add_initializer
from bevel.passes.quantization.forms import BYTE, Found, Storage
from bevel.passes.quantization.targets import Target

Array = np.ndarray[Any, Any]


@dataclass
class Last:
    """The weight that was quantized last: its tensors are written one after the other, so it is computed once."""

    form: Storage[Any] | None = None
    arrays: dict[str, Array] | None = None


@dataclass(frozen=True, eq=False)
class Stored:
    """A form and its tensors."""

    form: Storage[Any]
    tensors: dict[str, ir.TensorProtocol]


def stored(form: Storage[Any], found: Found) -> Stored:
    """Return a weight as tensors that are kept in memory."""
    arrays = form.arrays(found)
    return Stored(form, {part: _tensor(form, part, array) for part, array in arrays.items()})


def stored_lazily(form: Storage[Any], quantize: Callable[[], Found], last: Last) -> Stored:
    """Return a weight as tensors that are computed whenever they are read."""

    def lazy(part: str) -> ir.TensorProtocol:
        def read() -> ir.TensorProtocol:
            if last.form is not form or last.arrays is None:
                last.form, last.arrays = form, form.arrays(quantize())
            return _tensor(form, part, last.arrays[part])

        shape, kind = form.layout[part]
        return ir.LazyTensor(read, kind, ir.Shape(shape), name=_name(form, part))

    return Stored(form, {part: lazy(part) for part in form.layout})


class Shown:
    """Lets a model have the floats that quantized weights stand for, so that what follows sees them; then no more."""

    def __init__(self) -> None:
        self._originals: dict[ir.Value, ir.TensorProtocol] = {}
        self._alone: Sequence[ir.Value] = ()

    def __enter__(self) -> "Shown":
        return self

    def __exit__(self, *_: object) -> None:
        for weight, tensor in self._originals.items():
            weight.const_value = tensor

    def show(self, target: Target, found: Found) -> None:
        """Let a weight have its floats until the end."""
        tensor = target.tensor
        self._originals[target.weight] = tensor
        array = found.decode().reshape(target.shape).astype(tensor.dtype.numpy())
        target.weight.const_value = ir.Tensor(array, dtype=tensor.dtype, name=target.name)

    def show_alone(self, pairs: Sequence[tuple[Target, Found]]) -> None:
        """Let some weights have their floats until others are shown alone."""
        for weight in self._alone:
            weight.const_value = self._originals.pop(weight)
        for target, found in pairs:
            self.show(target, found)
        self._alone = [target.weight for target, _ in pairs]


def write(model: ir.Model, weights: Iterable[Stored]) -> None:
    """Let every reader of a weight read its tensors, and take out what nothing needs any more."""
    names = Names(model)
    for weight in weights:
        values = {
            part: add_initializer(model.graph, _name(weight.form, part), tensor, names)
            for part, tensor in weight.tensors.items()
        }
        weight.form.wire(model, values, names)
    remove_dead(model)


def _name(form: Storage[Any], part: str) -> str:
    return f"{form.target.name}.{part}"


def _tensor(form: Storage[Any], part: str, array: Array) -> ir.TensorProtocol:
    shape, kind = form.layout[part]
    if kind.bitwidth < BYTE:
        return ir.PackedTensor(array, kind, shape=ir.Shape(shape), name=_name(form, part))
    return ir.Tensor(array.view(kind.numpy()).reshape(shape), dtype=kind, name=_name(form, part))
