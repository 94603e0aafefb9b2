"""Conformance cases run through a conversion to PyTorch, and how each ends."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import torch

import bevel
from bevel.backends.torch import to_torch
from bevel.backends.torch.types import to_array, to_tensor
from tests.zoo.conformance import Case, close, numeric

Convert = Callable[[onnx.ModelProto], Callable[[list[Any]], Sequence[Any]]]
STATES = ("right", "rounded", "random", "refused", "wrong", "failed")
RANDOM = {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
FLOATS = {onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
# Half-precision kernels round at every node or at the last: two such roundings on each side differ by four units.
ROUNDINGS = 4


def ours(model: onnx.ModelProto) -> Callable[[list[Any]], Sequence[Any]]:
    module = to_torch(bevel.load(model))
    return lambda inputs: several(module(*inputs), len(model.graph.output))


def several(result: Any, count: int) -> Sequence[Any]:
    return result if count != 1 and isinstance(result, tuple | list) else (result,)


def attempt(convert: Convert, case: Case) -> tuple[str, str]:
    """Convert and run one case; say how it ended, and why."""
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            outputs = convert(case.model)(list(arguments(case)))
            given = [array_of(value, kind.type) for value, kind in zip(outputs, case.model.graph.output, strict=True)]
    except (bevel.BevelError, NotImplementedError) as error:
        return "refused", " ".join(str(error).split())
    except Exception as error:  # noqa: BLE001  whatever another converter raises is its result
        return "failed", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    pairs = list(zip(given, case.outputs, strict=True))
    if all(close(got, want, case.rtol, case.atol) for got, want in pairs):
        return "right", ""
    if is_random(case.model) and all(got.shape == want.shape and got.dtype == want.dtype for got, want in pairs):
        return "random", ""
    if all(is_rounded(got, want) for got, want in pairs):
        return "rounded", ""
    return "wrong", differences(given, case.outputs)


def is_random(model: onnx.ModelProto) -> bool:
    return bool(RANDOM & {node.op_type for graph in (model.graph, *model.functions) for node in graph.node})


def is_rounded(got: Any, want: Any) -> bool:
    """Whether two float tensors differ by a few roundings of their type, relative to the largest value."""
    if not isinstance(want, np.ndarray) or got.shape != want.shape or got.dtype != want.dtype:
        return False
    if onnx.helper.np_dtype_to_tensor_dtype(want.dtype) not in FLOATS:
        return False
    a, b = numeric(got).astype(np.float64), numeric(want).astype(np.float64)
    limit = ROUNDINGS * float(ml_dtypes.finfo(want.dtype).eps) * np.abs(b).max()
    return bool(np.array_equal(np.isnan(a), np.isnan(b)) and np.nanmax(np.abs(a - b)) <= limit)


def arguments(case: Case) -> Iterator[Any]:
    for value in case.model.graph.input:
        if value.name in case.feed:
            yield value_of(case.feed[value.name])


def value_of(value: Any) -> Any:
    if isinstance(value, list):
        return [value_of(item) for item in value]
    if value is None or value.dtype.kind in "OSUT":
        return value if value is None else value.astype(object)
    return to_tensor(value)


def array_of(value: Any, kind: onnx.TypeProto) -> Any:
    """An output as the case holds it: in the element type that the model declares."""
    if kind.HasField("optional_type"):
        return None if value is None else array_of(value, kind.optional_type.elem_type)
    if kind.HasField("sequence_type"):
        return [array_of(item, kind.sequence_type.elem_type) for item in value]
    if isinstance(value, torch.Tensor):
        wanted = to_tensor(np.zeros(0, onnx.helper.tensor_dtype_to_np_dtype(kind.tensor_type.elem_type))).dtype
        return to_array(value, kind.tensor_type.elem_type if value.dtype is wanted else None)
    return np.asarray(value)


def differences(got: Sequence[Any], want: Sequence[Any]) -> str:
    return "; ".join(f"{describe(a)} instead of {describe(b)}" for a, b in zip(got, want, strict=True))[:300]


def describe(value: Any) -> str:
    if not isinstance(value, np.ndarray):
        return repr(value)[:60]
    return f"{value.dtype}{list(value.shape)} {np.array2string(value.ravel()[:4], precision=4)}"
