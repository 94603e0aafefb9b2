"""The inputs a model is run on: to verify a pass, to measure, to gather statistics.

They come from an `.npz` file (one array per input), a folder of such files or of ONNX test data, any Python iterable,
or are made up from the model's signature (`bevel.passes.synthesis`).
"""

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from os import PathLike, fspath
from pathlib import Path
from tokenize import TokenError
from typing import Any, TypeAlias
from zipfile import BadZipFile

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from bevel.errors import CalibrationError, nearest
from bevel.ir.signature import Input, signature

Feed: TypeAlias = dict[str, Any]
Source: TypeAlias = str | PathLike[str] | Iterable[Mapping[str, Any]] | Callable[[], Iterable[Mapping[str, Any]]]


# What numpy, zipfile and protobuf raise on damaged files; numpy reads headers with Python's own parser.
UNREADABLE = (
    *(OSError, ValueError, TypeError, LookupError, EOFError, MemoryError, OverflowError, NotImplementedError),
    *(SyntaxError, TokenError, BadZipFile, zlib.error, DecodeError),
)


def _never() -> bool:
    return False


@dataclass(frozen=True)
class Calibration:
    """A stream of feeds that can be read again and again.

    A feed maps input names to arrays (a list of arrays for a sequence, None for an absent optional). `source` says
    where they come from, for messages. `more` makes up so many feeds, where they are made up.
    """

    read: Callable[[], Iterable[Feed]]
    source: str
    more: Callable[[int], "Calibration"] | None = None
    likely: Callable[[], bool] = _never

    def __iter__(self) -> Iterator[Feed]:
        return iter(self.read())

    @property
    def made_up(self) -> bool:
        """Whether the feeds are no data of anybody's."""
        return self.more is not None

    def samples(self, count: int) -> Iterator[Feed]:
        """Yield feeds with about `count` samples, a sample being a row of the first axis; all there are, if fewer.

        Made-up feeds never run out.
        """
        feeds = self.more(count) if self.more is not None else self
        for feed in feeds:
            if count <= 0:
                return
            count -= _rows(feed)
            yield feed

    @classmethod
    def of(cls, source: Source, model: ir.Model) -> "Calibration":
        """Return the feeds in `source`, each checked against the signature of `model` as it is read.

        A one-shot iterator is kept in memory; a list or a callable is read anew each time. Raises `CalibrationError`
        for files that are absent, empty or do not fit.
        """
        inputs = signature(model)
        if isinstance(source, (str, PathLike)):
            return _from_path(Path(fspath(source)), inputs)
        if callable(source):
            return cls(lambda: (fitted(dict(feed), inputs, "calibration") for feed in source()), "a callable")
        feeds = source if isinstance(source, list) else list(source)
        return cls(lambda: (fitted(dict(feed), inputs, f"feed {n}") for n, feed in enumerate(feeds)), "an iterable")


def _rows(feed: Feed) -> int:
    """Return how many samples a feed holds: the length of the first axis, at least one."""
    lengths = [value.shape[0] for value in feed.values() if isinstance(value, np.ndarray) and value.ndim]
    return max(lengths, default=1) or 1


def _from_path(path: Path, inputs: tuple[Input, ...]) -> Calibration:
    if not path.exists():
        raise CalibrationError("no such file or folder", where=str(path))
    samples = _samples(path)
    if not samples:
        raise CalibrationError(
            "no calibration data", where=str(path), remedy="expected .npz or .npy files, or folders with input_0.pb"
        )
    return Calibration(lambda: (fitted(_read(file, inputs), inputs, str(file)) for file in samples), str(path))


def _samples(path: Path) -> list[Path]:
    """Return the files and test-data folders under `path` that hold one feed each, in the order of their names."""
    if path.is_file() or (path / "input_0.pb").exists():
        return [path]
    found = chain(path.glob("*.np[zy]"), (file.parent for file in path.glob("*/input_0.pb")))
    return sorted(found)


def _read(path: Path, inputs: tuple[Input, ...]) -> Feed:
    """Read one feed from an `.npz`, an `.npy` or a folder of `input_N.pb`; arrays only, no pickles."""
    try:
        if path.is_dir():
            return _read_protos(path, inputs)
        feed = _read_arrays(path, inputs)
    except UNREADABLE as error:
        raise CalibrationError(f"cannot be read: {error or type(error).__name__}", where=str(path)) from error
    axes = [array.shape[0] for array in feed.values() if array.ndim]
    if axes and not any(axes):
        raise CalibrationError("holds no samples: every array is empty", where=str(path), remedy="give at least one")
    return feed


def _read_arrays(path: Path, inputs: tuple[Input, ...]) -> Feed:
    loaded = np.load(path, allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        return {_only(inputs, path).name: loaded}
    with loaded:
        return dict(loaded.items())


def _only(inputs: tuple[Input, ...], path: Path) -> Input:
    if len(inputs) != 1:
        raise CalibrationError(
            f"one array, but the model has {len(inputs)} inputs", where=str(path), remedy="use .npz with named arrays"
        )
    return inputs[0]


def _read_protos(folder: Path, inputs: tuple[Input, ...]) -> Feed:
    files = [folder / f"input_{n}.pb" for n in range(len(list(folder.glob("input_*.pb"))))]
    if len(files) > len(inputs):
        raise CalibrationError(f"{len(files)} inputs, the model has {len(inputs)}", where=str(folder))
    return {wanted.name: read_proto(file, wanted) for wanted, file in zip(inputs, files, strict=False)}


def read_proto(path: Path, wanted: Input) -> Any:
    """Read one ONNX test-data file: a tensor, a sequence of them, or an optional."""
    data = path.read_bytes()
    if wanted.optional:
        return onnx.numpy_helper.to_optional(onnx.OptionalProto.FromString(data))
    if wanted.sequence:
        return onnx.numpy_helper.to_list(onnx.SequenceProto.FromString(data))
    return onnx.numpy_helper.to_array(onnx.TensorProto.FromString(data))


def fitted(feed: Feed, inputs: tuple[Input, ...], where: str) -> Feed:
    """Return `feed` in the signature's order; raise `CalibrationError` on names, types, ranks or sizes that differ."""
    known = {wanted.name for wanted in inputs}
    for name in feed:
        if name not in known:
            raise CalibrationError(f"the model has no input {name!r}", where=where, remedy=nearest(name, known))
    missing = [wanted for wanted in inputs if wanted.name not in feed and not wanted.optional]
    if missing:
        raise CalibrationError(f"input missing: {', '.join(map(str, missing))}", where=where)
    sizes: dict[str, int] = {}
    return {
        wanted.name: _fitted_value(feed[wanted.name], wanted, sizes, where) for wanted in inputs if wanted.name in feed
    }


def _fitted_value(value: Any, wanted: Input, sizes: dict[str, int], where: str) -> Any:
    if value is None and wanted.optional:
        return None
    if wanted.sequence:
        return [_fitted_array(item, wanted, {}, where) for item in value]
    return _fitted_array(value, wanted, sizes, where)


def _fitted_array(value: Any, wanted: Input, sizes: dict[str, int], where: str) -> np.ndarray[Any, Any]:
    array = _retyped(np.asarray(value), wanted)
    if not _same_type(array, wanted.dtype):
        raise CalibrationError(f"wants {wanted}, not {array.dtype}", where=f"{where}: {wanted.name}")
    if wanted.shape is None or wanted.sequence:
        return array
    if array.ndim != len(wanted.shape):
        raise CalibrationError(f"wants {wanted}, not the shape {list(array.shape)}", where=f"{where}: {wanted.name}")
    for dim, size in zip(wanted.shape, array.shape, strict=True):
        expected = sizes.setdefault(dim, size) if isinstance(dim, str) else size if dim is None else dim
        if expected != size:
            told = f"{dim} is {expected} in another axis" if isinstance(dim, str) else f"wants {wanted}"
            raise CalibrationError(f"{told}, not the shape {list(array.shape)}", where=f"{where}: {wanted.name}")
    return array


def _retyped(array: np.ndarray[Any, Any], wanted: Input) -> np.ndarray[Any, Any]:
    """Give back the type that `.npz` and protobuf files lose: bfloat16 and float8 come as raw bytes."""
    if array.dtype.kind == "V" and not wanted.dtype.is_string() and array.dtype.itemsize == wanted.dtype.itemsize:
        return array.view(wanted.dtype.numpy())
    return array


def _same_type(array: np.ndarray[Any, Any], dtype: ir.DataType) -> bool:
    if dtype.is_string():
        return array.dtype.kind in "OUST"
    return dtype == ir.DataType.UNDEFINED or array.dtype == dtype.numpy()
