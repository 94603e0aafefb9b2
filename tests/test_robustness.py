"""Damaged files end in a model or in a BevelError, quickly: never in another library's traceback."""

import random
import time
from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from bevel.errors import BevelError
from bevel.frontends.onnx import load

MUTANTS = 500
SECONDS = 5.0  # for one file; they take some milliseconds

RNG = np.random.default_rng(0)


def tensor(name: str, *shape: int) -> TensorProto:
    return numpy_helper.from_array(RNG.standard_normal(shape).astype(np.float32), name)


def convolutional() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["c0"], name="conv0", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c0", "scale", "shift", "mean", "var"], ["n0"], name="norm0"),
        helper.make_node("Relu", ["n0"], ["r0"], name="relu0"),
        helper.make_node("GlobalAveragePool", ["r0"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "w1", "b1"], ["y"], name="head", transB=1),
    ]
    weights = [tensor("w0", 8, 3, 3, 3), tensor("b0", 8), tensor("scale", 8), tensor("shift", 8), tensor("mean", 8)]
    weights += [numpy_helper.from_array(np.ones(8, np.float32), "var"), tensor("w1", 10, 8), tensor("b1", 10)]
    return packed(nodes, weights, ["N", 3, 8, 8], ["N", 10], opset=13)


def attention() -> onnx.ModelProto:
    nodes = [
        helper.make_node("MatMul", ["x", "wq"], ["q"], name="q"),
        helper.make_node("Shape", ["q"], ["shape"], name="shape"),
        helper.make_node("Constant", [], ["zero"], name="zero", value=numpy_helper.from_array(np.array([0]), "v")),
        helper.make_node("Gather", ["shape", "zero"], ["batch"], name="batch"),
        helper.make_node("Concat", ["batch", "rest"], ["target"], name="target", axis=0),
        helper.make_node("Reshape", ["q", "target"], ["heads"], name="split"),
        helper.make_node("Transpose", ["heads"], ["turned"], name="turn", perm=[0, 2, 1, 3]),
        helper.make_node("Softmax", ["turned"], ["y"], name="softmax", axis=-1),
    ]
    weights = [tensor("wq", 8, 8), numpy_helper.from_array(np.array([-1, 2, 4]), "rest")]
    return packed(nodes, weights, ["N", 5, 8], ["N", 2, "S", 4], opset=17)


def branching() -> onnx.ModelProto:
    value = helper.make_tensor_value_info
    then = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["t"])], "then", [], [value("t", TensorProto.FLOAT, None)]
    )
    other = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["e"])], "else", [], [value("e", TensorProto.FLOAT, None)]
    )
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], name="sum", keepdims=0),
        helper.make_node("Greater", ["sum", "limit"], ["positive"], name="test"),
        helper.make_node("If", ["positive"], ["y"], name="if", then_branch=then, else_branch=other),
    ]
    weights = [tensor("w", 4, 4), numpy_helper.from_array(np.array(0, np.float32), "limit")]
    return packed(nodes, weights, ["N", 4], ["N", 4], opset=17)


def packed(nodes, weights, input_shape, output_shape, opset: int) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, input_shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, output_shape)],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def flip_bits(proto: onnx.ModelProto, rng: random.Random) -> bytes:
    data = bytearray(proto.SerializeToString())
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def cut(proto: onnx.ModelProto, rng: random.Random) -> bytes:
    data = proto.SerializeToString()
    start = rng.randrange(len(data))
    return data[:start] if rng.random() < 0.7 else data[:start] + data[start + rng.randrange(1, 50) :]


def edit(proto: onnx.ModelProto, rng: random.Random) -> bytes:
    """Change one field of one message: a number, a name, an element more or fewer."""
    for _ in range(rng.choice((1, 1, 1, 3))):
        message, descriptor = pick_field(proto, rng)
        change(message, descriptor, rng)
    return proto.SerializeToString()


def pick_field(message, rng: random.Random):
    """Walk down to a field at random, more often into messages than not."""
    while True:
        fields = [descriptor for descriptor, _ in message.ListFields()]
        if not fields:
            return message, rng.choice(message.DESCRIPTOR.fields)
        descriptor = rng.choice(fields)
        if descriptor.message_type is None or rng.random() < 0.1:
            return message, descriptor
        value = getattr(message, descriptor.name)
        message = rng.choice(value) if descriptor.is_repeated else value


STRANGE = (0, 1, -1, 2, 7, 99, 2**31 - 1, -(2**31))


def change(message, descriptor, rng: random.Random) -> None:
    value = getattr(message, descriptor.name)
    if descriptor.is_repeated:
        change_repeated(value, descriptor, rng)
    elif descriptor.message_type is not None or rng.random() < 0.3:
        message.ClearField(descriptor.name)
    elif isinstance(value, str):
        setattr(message, descriptor.name, rng.choice(("", "x", "y", "Relu", "../../etc/passwd", value + "'")))
    elif isinstance(value, bytes):
        setattr(message, descriptor.name, value[: len(value) // 2] if rng.random() < 0.5 else value + b"\xff")
    elif isinstance(value, float):
        setattr(message, descriptor.name, rng.choice((0.0, -1.0, float("nan"), float("inf"))))
    elif descriptor.enum_type is not None:
        setattr(message, descriptor.name, rng.choice([item.number for item in descriptor.enum_type.values]))
    else:
        setattr(message, descriptor.name, rng.choice(STRANGE))


def change_repeated(value, descriptor, rng: random.Random) -> None:
    index = rng.randrange(len(value)) if len(value) else None
    if index is None:
        return
    if rng.random() < 0.4:
        del value[index]
    elif descriptor.message_type is not None:
        value.add().CopyFrom(value[index])
    elif isinstance(value[index], int):
        value[index] = rng.choice(STRANGE)
    else:
        value.append(value[index])


Mutation = Callable[[onnx.ModelProto, random.Random], bytes]
MUTATIONS: tuple[Mutation, ...] = (flip_bits, cut, edit, edit)
SOURCES = (convolutional, attention, branching)


def outcome(data: bytes) -> str:
    try:
        return type(load(data)).__name__
    except BevelError as error:
        assert error.what and error.where
        return type(error).__name__


def test_every_damaged_file_ends_in_a_model_or_a_clear_error_in_time():
    rng = random.Random(0)
    seen: Counter[str] = Counter()
    for number in range(MUTANTS):
        proto = SOURCES[number % len(SOURCES)]()
        data = MUTATIONS[number % len(MUTATIONS)](proto, rng)
        start = time.perf_counter()
        seen[outcome(data)] += 1
        assert time.perf_counter() - start < SECONDS, f"mutant {number} took too long"
    assert seen["Model"] > 0 and seen["InvalidModel"] > 100 and sum(seen.values()) == MUTANTS


@pytest.mark.parametrize("source", SOURCES)
def test_the_undamaged_models_load(source):
    assert isinstance(load(source().SerializeToString()), ir.Model)
