"""quantize-blocks on stacks of matrices: recurrences, experts, and transposed convolutions in groups."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import bevel
from bevel.passes.formats import block_format
from bevel.passes.quantization.targets import found
from tests.graphs import proto
from tests.passes.test_quantize_blocks import operators, run

RECURRENT = """
recurrent (float[5, n, 24] x) => (float[5, 2, n, 16] y) {
  y, last, cell = LSTM <hidden_size = 16, direction = "bidirectional"> (x, w, r)
}
"""
GATED = """
gated (float[5, n, 24] x) => (float[5, 1, n, 16] y) {
  y, last = GRU <hidden_size = 16> (x, w, r)
}
"""
GROUPED = """
grouped (float[n, 8, 5, 5] x) => (float[n, 12, 7, 7] y) {
  y = ConvTranspose <group = 2> (x, k)
}
"""
EXPERTS = """
experts (float[n, 32] x) => (float[n, 32] y) {
  s = MatMul (x, router)
  y = com.microsoft.MoE <k = 2, ATTRIBUTES> (x, s, up, up_bias, down)
}
"""
FIRST = {"router": (32, 4), "up": (4, 64, 32), "up_bias": (4, 64), "down": (4, 32, 64)}
SIDE_BY_SIDE = {**FIRST, "up": (4, 128, 32), "up_bias": (4, 128)}
CASES = {
    RECURRENT: ({"w": (2, 64, 24), "r": (2, 64, 16)}, (5, 3, 24)),
    GATED: ({"w": (1, 48, 24), "r": (1, 48, 16)}, (5, 3, 24)),
    GROUPED: ({"k": (8, 6, 3, 3)}, (2, 8, 5, 5)),
    EXPERTS: (FIRST, (9, 32)),
}
PLAIN = 'activation_type = "silu"'
# Two products of activations rounded to 8 bits, each by at most 1/254 of the largest of its block.
EIGHT_BITS = 0.03


def loaded(text, weights):
    model = proto(text, weights)
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    return bevel.load(model)


def rounded_in_numpy(model, name, block):
    """The model with every weight as numpy says that it is after quantization."""
    model = model.clone()
    for target in found(model, (), ("router",))[0]:
        with target.reading() as matrix:
            matrix = block_format(name).round_trip(matrix, target.axis("in"), block)
        target.weight.const_value = ir.tensor(matrix.reshape(target.shape), name=target.name)
    return model


def off(model, reference, shape):
    x = {"x": np.random.default_rng(1).standard_normal(shape).astype(np.float32)}
    wanted = run(reference, x)
    return np.abs(run(model, x) - wanted).max() / np.abs(wanted).max()


@pytest.mark.parametrize("text", [RECURRENT, GATED, GROUPED, EXPERTS])
def test_portable_models_equal_numpy(text):
    weights, shape = CASES[text]
    model = loaded(text.replace("ATTRIBUTES", PLAIN), weights)
    rows, floats = rounded_in_numpy(model, "uint4", 8), model.clone()
    bevel.optimize(model, "quantize-blocks{format=uint4 block=8 emit=portable skip=router}")
    assert off(model, rows, shape) < 1e-6 < off(floats, rows, shape)


@pytest.mark.parametrize(
    ("attributes", "weights"),
    [
        (PLAIN, FIRST),
        (PLAIN + ", normalize_routing_weights = 1", FIRST),
        ('activation_type = "swiglu", swiglu_fusion = 1', SIDE_BY_SIDE),
    ],
)
@pytest.mark.parametrize("name", ["int4", "uint4", "int8", "uint2"])
def test_experts_of_codes_equal_numpy_but_for_activations_of_eight_bits(attributes, weights, name):
    model = loaded(EXPERTS.replace("ATTRIBUTES", attributes), weights)
    reference = rounded_in_numpy(model, name, 16)
    bevel.optimize(model, f"quantize-blocks{{format={name} block=16 skip=router}}")
    assert "QMoE" in operators(model)
    assert off(model, reference, (9, 32)) < EIGHT_BITS


@pytest.mark.parametrize(
    ("attributes", "spec", "why"),
    [
        (PLAIN, "format=int4 block=20", "QMoE has no such blocks"),
        (PLAIN, "format=nf4", "QMoE has no levels of nf4"),
        (PLAIN, "format=int4 skip=down", "QMoE needs both weights"),
        ('activation_type = "swiglu", swiglu_fusion = 2', "format=int4", "side by side"),
    ],
)
def test_experts_that_no_kernel_reads_stay_experts_of_floats(attributes, spec, why):
    model = loaded(EXPERTS.replace("ATTRIBUTES", attributes), FIRST)
    report = bevel.optimize(model, f"quantize-blocks{{{spec}}}", verify=False)
    assert "QMoE" not in operators(model)
    assert why in str(report)
