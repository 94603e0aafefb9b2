"""What select-finetune learnt, apart from the weights: small, kept as a safetensors file, added to them and taken off.

It speaks of places of the original weights, so it fits any copy of the model that was given to `select_finetune`.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from bevel.errors import UsageError
from bevel.ir.content import content
from bevel.writing import temporary, written

Array = np.ndarray[Any, Any]

KEY: Final = "bevel.adapter"
VERSION: Final = 1


@dataclass(frozen=True, eq=False)
class Delta:
    """What was learnt for some rows (`axis` 0) or columns (1) of a weight of a shape: `values` are added at `index`.

    `checksum` is of what these rows or columns were before.
    """

    weight: str
    shape: tuple[int, ...]
    axis: int
    index: Array
    values: Array
    checksum: int

    def onto(self, array: Array, sign: int) -> Array:
        """Return the weight with the values added, or taken off again; sums are taken in the values' type."""
        result = array.copy()
        place = (self.index, slice(None)) if self.axis == 0 else (slice(None), self.index)
        result[place] = (array[place].astype(self.values.dtype) + sign * self.values).astype(array.dtype)
        return result


@dataclass(frozen=True, eq=False)
class Adapter:
    """What was learnt, weight by weight."""

    deltas: tuple[Delta, ...]

    @property
    def parameters(self) -> int:
        """How many numbers were trained."""
        return sum(delta.values.size for delta in self.deltas)

    def apply(self, model: ir.Model, *, force: bool = False) -> None:
        """Add what was learnt to a model's weights, in place.

        Weights are new, lazy tensors. Raises `UsageError`, naming the weights, where the model is another one, has its
        channels in another order, or has an adapter already; then nothing is written. With `force`, shapes must fit
        only: so two adapters are added up.
        """
        self._check(model, force)
        self._add(model, 1)

    def remove(self, model: ir.Model) -> None:
        """Take off what `apply` added: each weight is what it was up to one rounding. A clone kept before is exact."""
        self._check(model, force=True)
        self._add(model, -1)

    def _add(self, model: ir.Model, sign: int) -> None:
        for delta in self.deltas:
            _write(model.graph.initializers[delta.weight], delta, sign)

    def _check(self, model: ir.Model, force: bool) -> None:
        values = model.graph.initializers
        wrong = [text for delta in self.deltas for text in _mismatch(delta, values, force)]
        if wrong:
            raise UsageError(
                f"the adapter does not fit this model: {'; '.join(wrong)}",
                where="adapter",
                remedy="apply it to the model that was given to select_finetune, in its original order",
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file, which appears whole or not at all."""
        target = Path(path)
        tensors = {f"{n}.{part}": getattr(delta, part) for n, delta in enumerate(self.deltas) for part in _PARTS}
        about = [
            {"weight": delta.weight, "shape": delta.shape, "axis": delta.axis, "checksum": delta.checksum}
            for delta in self.deltas
        ]
        metadata = {KEY: json.dumps({"version": VERSION, "deltas": about})}
        save_file = _safetensors().numpy.save_file
        with written(target), temporary(target) as new:
            save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, new, metadata)
            new.replace(target)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Adapter:
        """Read what `save` wrote. Raises `UsageError` if the file is none."""
        reader = _safetensors()
        try:
            with reader.safe_open(path, "np") as file:
                about = _about((file.metadata() or {}).get(KEY), path)
                return Adapter(tuple(_delta(file, number, each) for number, each in enumerate(about)))
        except (OSError, reader.SafetensorError) as error:
            raise UsageError(f"cannot be read: {error}", where=str(path)) from error


_PARTS: Final = ("index", "values")


def _about(text: str | None, path: str | os.PathLike[str]) -> list[Mapping[str, Any]]:
    read = json.loads(text) if text else {}
    if read.get("version") != VERSION:
        raise UsageError("is no adapter that this version can read", where=str(path), remedy="write it anew")
    found: list[Mapping[str, Any]] = read["deltas"]
    return found


def _delta(file: Any, number: int, about: Mapping[str, Any]) -> Delta:
    index, values = (file.get_tensor(f"{number}.{part}") for part in _PARTS)
    return Delta(about["weight"], tuple(about["shape"]), about["axis"], index, values, about["checksum"])


def _safetensors() -> Any:
    """Return the package that reads and writes adapters."""
    try:
        import_module("safetensors.numpy")
    except ModuleNotFoundError as error:
        raise UsageError(
            "safetensors is not installed, which adapters are kept in", remedy="pip install 'bevel[torch]'"
        ) from error
    return import_module("safetensors")


def checksum(tensor: ir.TensorProtocol, axis: int, index: Array) -> int:
    """Return a number that tells some rows or columns of a weight from others."""
    with content(tensor) as array:
        return zlib.crc32(np.ascontiguousarray(np.take(array, index, axis)).tobytes())


def _mismatch(delta: Delta, values: Mapping[str, ir.Value], force: bool) -> Iterator[str]:
    tensor = values[delta.weight].const_value if delta.weight in values else None
    if tensor is None:
        yield f"{delta.weight!r} is missing"
    elif tuple(tensor.shape.numpy()) != tuple(delta.shape):
        yield f"{delta.weight!r} is {list(tensor.shape.numpy())}, not {list(delta.shape)}"
    elif not force and checksum(tensor, delta.axis, delta.index) != delta.checksum:
        yield f"{delta.weight!r} holds other numbers"


def _write(value: ir.Value, delta: Delta, sign: int) -> None:
    source = value.const_value
    assert source is not None

    def add() -> ir.TensorProtocol:
        with content(source) as array:
            return ir.Tensor(delta.onto(array, sign), dtype=source.dtype, name=value.name)

    value.const_value = ir.LazyTensor(add, dtype=source.dtype, shape=ir.Shape(source.shape.numpy()), name=value.name)
