"""Small models from ONNX text, with seeded weights."""

import sys
from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir

import bevel


def proto(text: str, weights: dict[str, tuple[int, ...]] | None = None, seed: int = 0) -> onnx.ModelProto:
    """Parse a graph; `weights` are float32 initializers by name and shape, drawn from a standard normal."""
    model = onnx.parser.parse_model('<ir_version: 10, opset_import: ["" : 21]> ' + text)
    rng = np.random.default_rng(seed)
    for name, shape in (weights or {}).items():
        array = rng.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return model


def graph(text: str, weights: dict[str, tuple[int, ...]] | None = None, seed: int = 0) -> ir.Model:
    return bevel.load(proto(text, weights, seed))


MLP = """
mlp (float[n, 6] x) => (float[n, 3] y) {
  h = Gemm (x, w1, b1)
  r = Relu (h)
  y = MatMul (r, w2)
}
"""
MLP_WEIGHTS = {"w1": (6, 8), "b1": (8,), "w2": (8, 3)}


def mlp(seed: int = 0) -> ir.Model:
    return graph(MLP, MLP_WEIGHTS, seed)


def snapshot(model: ir.Model) -> bytes:
    return ir.to_proto(model).SerializeToString(deterministic=True)


def calls(run: Callable[[], object]) -> int:
    """Count the calls that Python code makes in a run: how much work it is, the same on every machine."""
    count = 0

    def counted(_frame: object, event: str, _argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(counted)
    try:
        run()
    finally:
        sys.setprofile(before)
    return count
