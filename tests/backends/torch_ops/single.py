"""Models of one node, converted to torch and run beside ONNX Runtime or the reference evaluator."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx.reference import ReferenceEvaluator

import bevel
from bevel.backends.torch import to_torch
from bevel.backends.torch.types import to_array, to_tensor

Array = np.ndarray[Any, Any]
RTOL = 1e-5
"""Two float32 libraries that sum a few dozen numbers in different orders."""


def model_of(
    op_type: str,
    inputs: Sequence[Array | None],
    opset: int,
    *,
    constants: Sequence[int] = (),
    outputs: Sequence[int] = (1,),
    domain: str = "",
    **attributes: Any,
) -> onnx.ModelProto:
    """One node; inputs at the places in `constants` are initializers, and `outputs` are the outputs' element types."""
    names = [f"x{place}" if array is not None else "" for place, array in enumerate(inputs)]
    results = [f"y{place}" for place in range(len(outputs))]
    node = onnx.helper.make_node(op_type, names, results, domain=domain, **attributes)
    given = [(place, array) for place, array in enumerate(inputs) if array is not None]
    graph = onnx.helper.make_graph(
        [node],
        "single",
        [
            onnx.helper.make_tensor_value_info(
                f"x{place}", onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
            )
            for place, array in given
            if place not in constants
        ],
        [onnx.helper.make_tensor_value_info(name, kind, None) for name, kind in zip(results, outputs, strict=True)],
        [onnx.numpy_helper.from_array(array, f"x{place}") for place, array in given if place in constants],
    )
    return onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid(domain, opset)], ir_version=min(10, onnx.IR_VERSION)
    )


def converted(model: onnx.ModelProto) -> Any:
    return to_torch(bevel.load(model))


def by_torch(model: onnx.ModelProto, feed: dict[str, Array]) -> list[Array]:
    result = converted(model)(*[to_tensor(feed[value.name]) for value in model.graph.input])
    return [to_array(value) for value in (result if isinstance(result, tuple) else (result,))]


def by_onnxruntime(model: onnx.ModelProto, feed: dict[str, Array]) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, feed)


def by_reference(model: onnx.ModelProto, feed: dict[str, Array]) -> list[Array]:
    return [np.asarray(value) for value in ReferenceEvaluator(model).run(None, feed)]


def feed_of(model: onnx.ModelProto, inputs: Sequence[Array | None]) -> dict[str, Array]:
    wanted = {value.name for value in model.graph.input}
    return {f"x{i}": x for i, x in enumerate(inputs) if x is not None and f"x{i}" in wanted}


def same(got: Sequence[Array], wanted: Sequence[Array], rtol: float = RTOL) -> bool:
    """Whether all outputs have the same types, shapes and numbers."""
    return all(
        a.dtype == b.dtype and a.shape == b.shape and np.allclose(a, b, rtol, rtol, equal_nan=True)
        for a, b in zip(got, wanted, strict=True)
    )
