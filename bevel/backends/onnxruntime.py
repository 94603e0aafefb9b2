"""Run models in ONNX Runtime: to verify, to measure, to gather statistics.

It is imported when the first model is run: what runs none is done in 20 MB less.
"""

import ctypes
import io
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from functools import cache
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from bevel.backends import files
from bevel.backends.chance import steadied
from bevel.backends.loops import refuse_endless
from bevel.backends.scans import transposed_first
from bevel.errors import BevelError, UnsupportedModel

# Up to this many bytes of initializers, a model is handed over in memory (which holds it three times for a moment);
# above, through a temporary file that ONNX Runtime maps.
IN_MEMORY_BYTES = 256 * 2**20
# Up to this many, a draft is handed over without a copy of the graph; above, tensors outweigh it.
DRAFT_BYTES = 16 * 2**20
# Enough for speed; fixed, so that sums are cut in the same way on machines with more cores.
THREADS = min(4, os.cpu_count() or 1)
WARM_UP_RUNS = 2
# Channels per block of MLAS's convolutions (NCHWc) and columns per strip of its matrix products with AVX-512.
KERNEL_BLOCK = 16
LEAST_ROUNDS = 3

MESSAGE_LIMIT = 400
RUNNING = r"Non-zero status code returned while running (\w+) node\. Name:'(.*?)' Status Message: "
# What to do about its messages; without one of these, the file is at fault.
REMEDIES = (
    (
        r"No Op registered for|is not a registered function/op|No opset import for domain",
        "ONNX Runtime has no such operator in that opset: convert the model again, without it or for a newer opset, or "
        "skip the check with --no-verify",
    ),
    (
        r"Failed to construct locale",
        "the model asks for a locale that this machine lacks: install it (locale -a lists those it has), or skip the "
        "check with --no-verify",
    ),
    (
        r"Could not find an implementation for",
        "its CPU kernels lack that version or element type of the operator: export the model with opset 7 or newer and "
        "in float32, or skip the check with --no-verify",
    ),
)
REPAIR = "the file must run in ONNX Runtime as it is: repair or export it again, or skip the check with --no-verify"
PROVIDERS = ["CPUExecutionProvider"]
RAW_TYPES = {
    ir.DataType.BFLOAT16,
    ir.DataType.FLOAT8E4M3FN,
    ir.DataType.FLOAT8E4M3FNUZ,
    ir.DataType.FLOAT8E5M2,
    ir.DataType.FLOAT8E5M2FNUZ,
    ir.DataType.FLOAT8E8M0,
}

Array = np.ndarray[Any, Any]


class Level(Enum):
    """How much ONNX Runtime may rewrite a model before it runs it.

    `AS_WRITTEN` runs the nodes one by one: what verification uses, so that both models go through the same kernels
    and a difference is the pass's. `AS_DEPLOYED` is ONNX Runtime's default: what latency is measured with.
    """

    AS_WRITTEN = "ORT_DISABLE_ALL"
    AS_DEPLOYED = "ORT_ENABLE_ALL"


class Session:
    """A model loaded in ONNX Runtime, on the CPU, whose random operators draw the same in each run.

    Raises `UnsupportedModel` with ONNX Runtime's message when it does not load, or if a loop in it has no end. Close
    it, or use it in a `with`, to give its memory back. `draft` is for what no promise is judged by, nor a latency: a
    small model is loaded as passes see it, not as it would be saved, in half the time; and outputs that are kept keep
    their own memory alone, not all of the arena that they came from.
    """

    def __init__(
        self, model: ir.Model, *, level: Level = Level.AS_DEPLOYED, threads: int = THREADS, draft: bool = False
    ) -> None:
        self.outputs = tuple(value.name or "" for value in model.graph.outputs)
        self._raw = any(value.dtype in RAW_TYPES for value in (*model.graph.inputs, *model.graph.outputs))
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._draft = draft
        refuse_endless(model)
        model = transposed_first(steadied(model))
        size = files.tensor_bytes(model)
        big = size > IN_MEMORY_BYTES
        options = _options(level, threads, mapped=big, arena=not draft)
        try:
            with _translated("cannot be loaded"):
                given = self._handed_over(model, big, draft and size <= DRAFT_BYTES and not files.has_external(model))
                self._session: Any = _library().InferenceSession(given, options, PROVIDERS)
        except BevelError:
            self.close()
            raise

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Give the memory and the temporary file back."""
        self._session = None
        if self._draft:  # many follow each other, and what they gave is large
            _trimming()(0)
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def run(self, feed: Mapping[str, Any]) -> dict[str, Any]:
        """Return every output by name: an array, a list of them for a sequence, None for an absent optional.

        Raises `UnsupportedModel` with ONNX Runtime's message when the model does not run on `feed`.
        """
        given = {name: value for name, value in feed.items() if value is not None}
        with _translated("does not run"):
            results = self._run_raw(given) if self._raw else self._session.run(list(self.outputs), given)
        return dict(zip(self.outputs, results, strict=True))

    def _run_raw(self, feed: Mapping[str, Any]) -> list[Any]:
        """Run a model with inputs or outputs of types that numpy itself does not have."""
        values = {name: _to_ortvalue(np.asarray(value)) for name, value in feed.items()}
        return [_from_ortvalue(value) for value in self._session.run_with_ort_values(list(self.outputs), values)]

    def _handed_over(self, model: ir.Model, big: bool, draft: bool) -> bytes | str:
        if draft:
            return files.draft(model)
        if not big:
            stream = io.BytesIO()
            files.save(model, stream, external_data=False)
            return stream.getvalue()
        self._folder = tempfile.TemporaryDirectory(prefix="bevel-")
        path = Path(self._folder.name) / "model.onnx"
        files.save(model, path, external_data=True)
        return str(path)


class Runnable(Protocol):
    """What can be run on a feed."""

    def run(self, feed: Mapping[str, Any]) -> dict[str, Any]:
        """Return every output by name."""


def latency(session: Runnable, feed: Mapping[str, Any], *, runs: int = 30) -> float:
    """Return the median time of one run in milliseconds."""
    return latencies([session], feed, runs=runs)[0]


def latencies(
    sessions: Sequence[Runnable], feed: Mapping[str, Any], *, runs: int = 30, seconds: float = 2.0
) -> tuple[float, ...]:
    """Return the median time of one run of each session in milliseconds.

    Over `runs` rounds or those that fit in `seconds`, at least three. The sessions take turns, so that whatever else
    the machine does falls on all of them alike.
    """
    for session in sessions:
        for _ in range(WARM_UP_RUNS):
            session.run(feed)
    rounds: list[list[float]] = []
    start = time.perf_counter()
    while len(rounds) < LEAST_ROUNDS or (len(rounds) < runs and time.perf_counter() - start < seconds):
        rounds.append([_seconds(session, feed) for session in sessions])
    return tuple(median(times) * 1000 for times in zip(*rounds, strict=True))


def _seconds(session: Runnable, feed: Mapping[str, Any]) -> float:
    before = time.perf_counter()
    session.run(feed)
    return time.perf_counter() - before


@cache
def _library() -> Any:
    """Return ONNX Runtime."""
    import onnxruntime

    return onnxruntime


@cache
def _errors() -> tuple[type[Exception], ...]:
    """Return what its bindings raise: exceptions of their own, and plain ones for inputs they do not recognise."""
    from onnxruntime.capi import onnxruntime_pybind11_state as bindings

    own = (kind for kind in vars(bindings).values() if isinstance(kind, type) and issubclass(kind, Exception))
    return (*own, RuntimeError, ValueError, TypeError)


@cache
def _trimming() -> Callable[[int], object]:
    """Return what gives free memory back to the system, where the C library has it: glibc keeps it."""
    found: Callable[[int], object] = getattr(ctypes.CDLL(None), "malloc_trim", lambda keep: None)
    return found


def _options(level: Level, threads: int, *, mapped: bool, arena: bool) -> Any:
    options = _library().SessionOptions()
    options.graph_optimization_level = getattr(_library().GraphOptimizationLevel, level.value)
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.use_deterministic_compute = True
    options.log_severity_level = 4
    options.enable_cpu_mem_arena = arena
    if mapped and level is Level.AS_WRITTEN:  # prepacking would copy every weight out of the map
        options.add_session_config_entry("session.disable_prepacking", "1")
    return options


def _to_ortvalue(array: Array) -> Any:
    code = ir.DataType.from_numpy(array.dtype) if array.dtype.kind not in "OUST" else ir.DataType.STRING
    if code not in RAW_TYPES:
        return _library().OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array).reshape(array.shape))
    raw = np.ascontiguousarray(array).reshape(array.shape).view(np.dtype(f"u{array.dtype.itemsize}"))
    return _library().OrtValue.ortvalue_from_numpy_with_onnx_type(raw, int(code))


def _from_ortvalue(value: Any) -> Any:
    if not value.has_value() or not value.is_tensor():
        return None
    code = ir.DataType(value.element_type())
    if code not in RAW_TYPES:
        return value.numpy()
    raw = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
    return np.frombuffer(raw, code.numpy()).reshape(value.shape())


@contextmanager
def _translated(what: str) -> Iterator[None]:
    """Turn ONNX Runtime's exceptions, which have no common type but their module's, into `UnsupportedModel`."""
    try:
        yield
    except _errors() as error:
        message = one_line(str(error))
        raise UnsupportedModel(
            f"{what} in ONNX Runtime {_library().__version__}: {message}", remedy=remedy_for(message)
        ) from error


def remedy_for(message: str) -> str:
    """Return what to do about a message of ONNX Runtime's.

    >>> remedy_for("No Op registered for Erfc with domain_version of 17").split(":")[0]
    'ONNX Runtime has no such operator in that opset'
    >>> remedy_for("Failed to construct locale with name:en_US.UTF-8").split(":")[0]
    'the model asks for a locale that this machine lacks'
    """
    return next((remedy for pattern, remedy in REMEDIES if re.search(pattern, message)), REPAIR)


def one_line(message: str) -> str:
    """Return ONNX Runtime's message without its prefix, source paths and line breaks.

    >>> one_line("[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : Could not find\\nan implementation for Foo(1)")
    'Could not find an implementation for Foo(1)'
    """
    plain = re.sub(r"\[ONNXRuntimeError\] : \d+ : \w+ : ", "", message)
    plain = re.sub(RUNNING, r"\1 \2: ", plain)
    plain = re.sub(r"\S+\.(cc|h):\d+ (?=\S)", "", plain)
    return " ".join(plain.split()).replace(" : ", ": ")[:MESSAGE_LIMIT]
