"""Valid graphs that nobody designed: each is optimized and verified, and no promise is ever broken."""

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import bevel
from bevel.errors import BevelError, PromiseBroken

PIPELINE = "simplify,fold,reorder-channels,prune-channels{ratio=0.4}"


class Grower:
    """Adds nodes to a graph, each on a value whose shape is known."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.rng = np.random.default_rng(draw(st.integers(0, 2**16)))
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.values: dict[str, tuple[int, ...]] = {
            "x": (2, draw(st.sampled_from([4, 6])), draw(st.sampled_from([4, 6, 12])))
        }

    def weight(self, *shape: int) -> str:
        return self.constant((self.rng.standard_normal(shape) / max(shape[-1:], default=1) ** 0.5).astype(np.float32))

    def constant(self, array: np.ndarray) -> str:
        self.constants.append(numpy_helper.from_array(array, f"w{len(self.constants)}"))
        return self.constants[-1].name

    def node(self, op: str, inputs: list[str], *shapes: tuple[int, ...], **attributes: object) -> list[str]:
        names = [f"v{len(self.nodes)}_{index}" for index in range(len(shapes))]
        self.nodes.append(helper.make_node(op, inputs, names, name=f"n{len(self.nodes)}", **attributes))
        self.values.update(zip(names, shapes, strict=True))
        return names

    def grow(self) -> None:
        name = self.draw(st.sampled_from(list(self.values)[-4:]))
        step = self.draw(st.sampled_from(STEPS))
        step(self, name, self.values[name])


def linear(at: Grower, x: str, shape: tuple[int, ...]) -> None:
    width = at.draw(st.sampled_from([4, 6, 12]))
    (y,) = at.node("MatMul", [x, at.weight(shape[-1], width)], (*shape[:-1], width))
    at.node("Add", [y, at.weight(width)], (*shape[:-1], width))


def pointwise(at: Grower, x: str, shape: tuple[int, ...]) -> None:
    at.node(at.draw(st.sampled_from(["Relu", "Tanh", "Sigmoid", "Erf", "Identity"])), [x], shape)


def together(at: Grower, x: str, shape: tuple[int, ...]) -> None:
    others = [name for name, other in at.values.items() if other == shape]
    at.node(at.draw(st.sampled_from(["Add", "Mul", "Max"])), [x, at.draw(st.sampled_from(others))], shape)


def normalise(at: Grower, x: str, shape: tuple[int, ...]) -> None:
    at.node("LayerNormalization", [x, at.weight(shape[-1]), at.weight(shape[-1])], shape, axis=-1)


def soft(at: Grower, x: str, shape: tuple[int, ...]) -> None:
    at.node("Softmax", [x], shape, axis=at.draw(st.integers(0, len(shape) - 1)))


def turn(at: Grower, x: str, shape: tuple[int, ...]) -> None:
    order = at.draw(st.permutations(range(len(shape))))
    at.node("Transpose", [x], tuple(shape[place] for place in order), perm=order)


def join(at: Grower, x: str, shape: tuple[int, ...]) -> None:
    axis = at.draw(st.integers(0, len(shape) - 1))
    others = [name for name, other in at.values.items() if other == shape]
    joined = (*shape[:axis], 2 * shape[axis], *shape[axis + 1 :])
    if joined[axis] <= 48:
        at.node("Concat", [x, at.draw(st.sampled_from(others))], joined, axis=axis)


def cut(at: Grower, x: str, shape: tuple[int, ...]) -> None:
    axis = at.draw(st.integers(0, len(shape) - 1))
    if shape[axis] < 2:
        return
    first = at.draw(st.integers(1, shape[axis] - 1))
    sizes = (first, shape[axis] - first)
    parts = [(*shape[:axis], size, *shape[axis + 1 :]) for size in sizes]
    at.node("Split", [x, at.constant(np.array(sizes))], *parts, axis=axis)


def part(at: Grower, x: str, shape: tuple[int, ...]) -> None:
    axis = at.draw(st.integers(0, len(shape) - 1))
    start = at.draw(st.integers(0, shape[axis] - 1))
    end = at.draw(st.integers(start + 1, shape[axis]))
    bounds = [at.constant(np.array([number])) for number in (start, end, axis)]
    at.node("Slice", [x, *bounds], (*shape[:axis], end - start, *shape[axis + 1 :]))


def reshape(at: Grower, x: str, shape: tuple[int, ...]) -> None:
    size, target = int(np.prod(shape)), []
    while size > 1 and len(target) < 3:
        factor = at.draw(st.sampled_from([number for number in range(1, size + 1) if size % number == 0]))
        target.append(factor)
        size //= factor
    target.append(size)
    at.node("Reshape", [x, at.constant(np.array(target))], tuple(target))


def reduce(at: Grower, x: str, shape: tuple[int, ...]) -> None:
    axis = at.draw(st.integers(0, len(shape) - 1))
    kept = (*shape[:axis], 1, *shape[axis + 1 :])
    at.node(
        at.draw(st.sampled_from(["ReduceSum", "ReduceMean", "ReduceMax"])), [x, at.constant(np.array([axis]))], kept
    )


def product(at: Grower, x: str, shape: tuple[int, ...]) -> None:
    if len(shape) >= 2:
        turned = (*shape[:-2], shape[-1], shape[-2])
        order = [*range(len(shape) - 2), len(shape) - 1, len(shape) - 2]
        (y,) = at.node("Transpose", [x], turned, perm=order)
        at.node("MatMul", [x, y], (*shape[:-1], shape[-2]))


def convolve(at: Grower, x: str, shape: tuple[int, ...]) -> None:
    if len(shape) != 3:
        return
    groups = at.draw(st.sampled_from([number for number in (1, 2, shape[1]) if shape[1] % number == 0]))
    width = groups * at.draw(st.sampled_from([1, 2, 3]))
    weight = at.weight(width, shape[1] // groups, 3)
    (y,) = at.node("Conv", [x, weight, at.weight(width)], (shape[0], width, shape[2]), group=groups, pads=[1, 1])
    scale = [at.weight(width), at.weight(width), at.weight(width), at.constant(np.full(width, 0.5, np.float32))]
    at.node("BatchNormalization", [y, *scale], (shape[0], width, shape[2]))


STEPS = (
    *(linear, pointwise, together, normalise, soft, turn, join, cut, part, reshape, reduce, product, convolve),
    *(linear, pointwise, convolve),
)


@st.composite
def models(draw: st.DrawFn) -> onnx.ModelProto:
    at = Grower(draw)
    for _ in range(draw(st.integers(2, 14))):
        at.grow()
    name = list(at.values)[-1]
    linear(at, name, at.values[name])
    name = list(at.values)[-1]
    graph = helper.make_graph(
        at.nodes,
        "random",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, at.values["x"])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, at.values[name])],
        at.constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.mark.slow
@settings(max_examples=200, deadline=30_000, derandomize=True, suppress_health_check=list(HealthCheck))
@given(models())
def test_every_random_graph_ends_verified_or_refused(proto: onnx.ModelProto) -> None:
    model = bevel.load(proto)
    try:
        bevel.optimize(model, PIPELINE)
    except PromiseBroken:
        raise
    except BevelError as refusal:
        assert refusal.what
