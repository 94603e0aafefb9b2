"""The conformance cases of the onnx package, with their inputs and expected outputs in memory."""

import pickle
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper
from onnx.backend.test.loader import load_model_tests
from onnxruntime.capi import onnxruntime_pybind11_state as status

from tests.zoo.store import kept

KINDS = ("simple", "pytorch-converted", "pytorch-operator")
REFUSALS = (status.Fail, status.InvalidArgument, status.InvalidGraph, status.NotImplemented, status.RuntimeException)

Value = Any  # an array, a list of arrays (a sequence), or None (an optional without content)


@dataclass(frozen=True)
class Case:
    """One test of the onnx package: a model, a feed by input name, and the outputs in order."""

    name: str
    model: onnx.ModelProto
    feed: dict[str, Value]
    outputs: tuple[Value, ...]
    rtol: float
    atol: float

    def agrees(self, outputs: Sequence[Value]) -> bool:
        """Whether `outputs` are the expected ones within the case's own tolerance."""
        pairs = zip(outputs, self.outputs, strict=True)
        return all(close(got, expected, self.rtol, self.atol) for got, expected in pairs)


@cache
def node_tests() -> tuple[Case, ...]:
    """The single-operator cases that ONNX Runtime loads, runs and gets right."""
    return load("node-tests.pickle", node_cases)


@cache
def model_tests() -> tuple[Case, ...]:
    """The same of the small models: hand-made ones, and modules exported by early PyTorch."""
    return load("model-tests.pickle", model_cases)


def load(name: str, cases: Callable[[], Iterator[Case]]) -> tuple[Case, ...]:
    """Read the kept list, or make it: generating and trying all cases takes half a minute."""
    content = kept(name, lambda: pickle.dumps([flat(case) for case in cases() if runs(case)]))
    return tuple(Case(name, onnx.load_from_string(model), *rest) for name, model, *rest in read(content))


def flat(case: Case) -> tuple[Any, ...]:
    return case.name, case.model.SerializeToString(), case.feed, case.outputs, case.rtol, case.atol


def read(path: Path) -> list[Any]:
    return list(pickle.loads(path.read_bytes()))


def runs(case: Case) -> bool:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(case.model.SerializeToString(), options, ["CPUExecutionProvider"])
        return case.agrees(session.run(None, case.feed))
    except (*REFUSALS, TypeError, ValueError, RuntimeError):  # the binding's own refusals of types it cannot carry
        return False


def close(got: Value, expected: Value, rtol: float, atol: float) -> bool:
    if expected is None or got is None:
        return expected is None and got is None
    if isinstance(expected, list):
        return len(got) == len(expected) and all(close(a, b, rtol, atol) for a, b in zip(got, expected, strict=True))
    got, expected = np.asarray(got), np.asarray(expected)
    if got.shape != expected.shape or got.dtype != expected.dtype:
        return False
    if got.dtype.kind in "OSUT":
        return bool((got.astype(str) == expected.astype(str)).all())
    return bool(np.allclose(numeric(got), numeric(expected), rtol, atol, equal_nan=True))


def numeric(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """As numpy's own numbers: it compares no bfloat16, 8-bit or 4-bit ones."""
    return array if array.dtype.kind in "biufc" else array.astype(np.float64)


def node_cases() -> Iterator[Case]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the generators divide by zero on purpose
        tests = load_model_tests(kind="node")
    for test in tests:
        for inputs, outputs in test.data_sets:
            yield case_of(test.name, test.model, [value_of(x) for x in inputs], [value_of(x) for x in outputs], test)


def model_cases() -> Iterator[Case]:
    for kind in KINDS:
        for test in load_model_tests(kind=kind):
            folder = Path(test.model_dir)
            model = onnx.load(folder / "model.onnx")
            for data in sorted(folder.glob("test_data_set_*")):
                inputs = [stored(data / f"input_{i}.pb", x.type) for i, x in enumerate(fed(model))]
                outputs = [stored(data / f"output_{i}.pb", x.type) for i, x in enumerate(model.graph.output)]
                yield case_of(test.name, model, inputs, outputs, test)


def case_of(name: str, model: onnx.ModelProto, inputs: list[Value], outputs: list[Value], test: Any) -> Case:
    feed = {value.name: array for value, array in zip(fed(model), inputs, strict=False)}
    return Case(name, model, feed, tuple(outputs), test.rtol, test.atol)


def fed(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The inputs that a caller gives: old files list their initializers too."""
    held = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in held]


def value_of(value: Any) -> Value:
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    if isinstance(value, list):
        return [value_of(item) for item in value]
    return value if value is None else np.asarray(value)


def stored(path: Path, kind: onnx.TypeProto) -> Value:
    """A value from its file: a tensor, a sequence or an optional, as the model's signature says."""
    content = path.read_bytes()
    if kind.HasField("sequence_type"):
        return numpy_helper.to_list(onnx.SequenceProto.FromString(content))
    if kind.HasField("optional_type"):
        return numpy_helper.to_optional(onnx.OptionalProto.FromString(content))
    return numpy_helper.to_array(onnx.TensorProto.FromString(content))
