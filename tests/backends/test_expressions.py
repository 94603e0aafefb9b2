import numpy as np
import onnx_ir as ir
import pytest

from bevel.backends.torch.expressions import Expression, Host, evaluate

INT, FLOAT = ir.DataType.INT64, ir.DataType.FLOAT
BATCH, LENGTH = Expression("batch"), Expression("length")


def host(*entries, shape=None, kind=INT):
    array = np.empty(len(entries), object)
    array[:] = entries
    return Host(array if shape is None else array.reshape(shape), kind)


def run(op_type, *inputs, **attributes):
    values = [ir.Value(name=f"x{place}") for place in range(len(inputs))]
    result = evaluate(ir.node(op_type, values, attributes), inputs)
    return None if result is None else result.code()


@pytest.mark.parametrize(
    ("op_type", "inputs", "attributes", "code"),
    [
        ("Gather", (host(BATCH, LENGTH), host(1, shape=())), {}, "length"),
        ("Concat", (host(BATCH), host(-1), host(64)), {"axis": 0}, "[batch, -1, 64]"),
        ("Unsqueeze", (host(BATCH, shape=()), host(0)), {}, "[batch]"),
        ("Slice", (host(BATCH, 3, LENGTH), host(1), host(3), host(0)), {}, "[3, length]"),
        ("Mul", (host(BATCH, shape=()), host(12, shape=())), {}, "batch * 12"),
        ("Mul", (host(BATCH, shape=()), host(1, shape=())), {}, "batch"),
        ("Add", (host(LENGTH, shape=()), host(0, shape=())), {}, "length"),
        ("Div", (host(LENGTH, shape=()), host(2, shape=())), {}, "length // 2"),
        ("Div", (host(7, shape=()), host(2, shape=())), {}, "3"),
        ("Sub", (host(LENGTH, shape=()), host(1, shape=())), {}, "length - 1"),
        ("Equal", (host(BATCH, -1), host(-1, -1)), {}, "[False, True]"),
        ("Max", (host(LENGTH, shape=()), host(1, shape=())), {}, "torch.sym_max(length, 1)"),
        ("ReduceProd", (host(BATCH, 3, LENGTH),), {"keepdims": 0}, "batch * 3 * length"),
        ("Cast", (host(BATCH),), {"to": int(ir.DataType.INT32)}, "[batch]"),
    ],
)
def test_shape_arithmetic_is_written_as_python(op_type, inputs, attributes, code):
    written = run(op_type, *inputs, **attributes)
    assert written is not None and written.replace("(batch * 3)", "batch * 3") == code


@pytest.mark.parametrize(
    ("op_type", "inputs", "attributes"),
    [
        ("Div", (host(LENGTH - 5, shape=()), host(2, shape=())), {}),  # -3 / 2 is -1 in ONNX and -2 in Python
        ("Div", (host(7, shape=()), host(-2, shape=())), {}),
        ("Mod", (host(LENGTH - 5, shape=()), host(2, shape=())), {}),
        ("Cast", (host(LENGTH),), {"to": int(FLOAT)}),  # Python's floats round otherwise
        ("Mul", (host(0.7, kind=FLOAT), host(10.0, kind=FLOAT)), {}),
        ("Gather", (host(3, 4), host(LENGTH, shape=())), {}),
        ("Slice", (host(3, 4), host(LENGTH), host(2), host(0)), {}),
    ],
)
def test_what_python_would_compute_otherwise_is_left_to_torch(op_type, inputs, attributes):
    assert run(op_type, *inputs, **attributes) is None


def test_choosing_between_sizes_by_a_comparison():
    condition = evaluate(
        ir.node("Equal", [ir.Value(name="a"), ir.Value(name="b")]), [host(BATCH, shape=()), host(1, shape=())]
    )
    assert run("Where", condition, host(LENGTH, shape=()), host(2, shape=())) == "(length if batch == 1 else 2)"
