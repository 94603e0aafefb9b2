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


def take(at: Grower, x: str, shape: tuple[int, ...]) -> None:
    axis = at.draw(st.integers(0, len(shape) - 1))
    places = st.integers(-shape[axis], shape[axis] - 1)
    if at.draw(st.booleans()) and len(shape) > 1:
        at.node("Gather", [x, at.constant(np.array(at.draw(places)))], (*shape[:axis], *shape[axis + 1 :]), axis=axis)
        return
    first = at.draw(st.integers(0, shape[axis] - 1))
    run = list(range(first, at.draw(st.integers(first + 1, shape[axis]))))
    entries = at.draw(st.one_of(st.just(run), st.lists(places, min_size=1, max_size=5)))
    taken = (*shape[:axis], len(entries), *shape[axis + 1 :])
    at.node("Gather", [x, at.constant(np.array(entries))], taken, axis=axis)


def repeat(at: Grower, x: str, shape: tuple[int, ...]) -> None:
    axis = at.draw(st.integers(0, len(shape) - 1))
    if np.prod(shape) > 300:
        return
    if shape[axis] == 1 and at.draw(st.booleans()):
        wide = (*shape[:axis], at.draw(st.sampled_from([2, 3])), *shape[axis + 1 :])
        target = at.draw(
            st.sampled_from([wide, tuple(1 if place != axis else wide[axis] for place in range(len(wide)))])
        )
        at.node("Expand", [x, at.constant(np.array(target))], wide)
        return
    times = [at.draw(st.sampled_from([1, 2])) if place == axis else 1 for place in range(len(shape))]
    tiled = tuple(size * count for size, count in zip(shape, times, strict=True))
    at.node("Tile", [x, at.constant(np.array(times))], tiled)


def pad(at: Grower, x: str, shape: tuple[int, ...]) -> None:
    axis = at.draw(st.integers(0, len(shape) - 1))
    before, after = at.draw(st.integers(0, 2)), at.draw(st.integers(0, 2))
    pads = np.zeros((2, len(shape)), np.int64)
    pads[:, axis] = before, after
    mode = at.draw(st.sampled_from(["constant", "edge"]))
    padded = (*shape[:axis], shape[axis] + before + after, *shape[axis + 1 :])
    at.node("Pad", [x, at.constant(pads.ravel())], padded, mode=mode)


def unsqueeze(at: Grower, x: str, shape: tuple[int, ...]) -> None:
    axis = at.draw(st.integers(0, len(shape)))
    if len(shape) < 4:
        at.node("Unsqueeze", [x, at.constant(np.array([axis]))], (*shape[:axis], 1, *shape[axis:]))


def squeeze(at: Grower, x: str, shape: tuple[int, ...]) -> None:
    axis = next((place for place, size in enumerate(shape) if size == 1), None)
    if axis is not None and len(shape) > 1:
        at.node("Squeeze", [x, at.constant(np.array([axis]))], (*shape[:axis], *shape[axis + 1 :]))


def choose(at: Grower, x: str, shape: tuple[int, ...]) -> None:
    others = [name for name, other in at.values.items() if other == shape]
    other = at.draw(st.sampled_from(others))
    if at.draw(st.booleans()):
        condition = at.constant(at.rng.integers(0, 2, shape[at.draw(st.integers(0, len(shape) - 1)) :]).astype(bool))
    else:
        condition = f"c{len(at.nodes)}"
        at.nodes.append(helper.make_node("Greater", [other, at.constant(np.zeros(1, np.float32))], [condition]))
    at.node("Where", [condition, x, other], shape)


def contract(at: Grower, x: str, shape: tuple[int, ...]) -> None:
    letters = "abcd"[: len(shape)]
    width = at.draw(st.sampled_from([3, 4]))
    summed = at.draw(st.sampled_from(letters))
    given = summed + "e" if at.draw(st.booleans()) else "e" + summed
    result = "".join(at.draw(st.permutations(letters.replace(summed, "e"))))
    sizes = dict(zip(letters, shape, strict=True)) | {"e": width}
    weight = at.weight(*(sizes[letter] for letter in given))
    wide = tuple(sizes[letter] for letter in result)
    at.node("Einsum", [x, weight], wide, equation=f"{letters},{given}->{result}")


def sum_up(at: Grower, x: str, shape: tuple[int, ...]) -> None:
    if len(shape) > 1:
        axis = at.draw(st.integers(0, len(shape) - 1))
        rest = (*shape[:axis], *shape[axis + 1 :])
        at.node("ReduceSum", [x, at.constant(np.array([axis]))], rest, keepdims=0)


def gemm(at: Grower, x: str, shape: tuple[int, ...]) -> None:
    if len(shape) != 2:
        return
    turn_a, turn_b = at.draw(st.integers(0, 1)), at.draw(st.integers(0, 1))
    rows, inner = shape[::-1] if turn_a else shape
    width = at.draw(st.sampled_from([4, 6]))
    weight = at.weight(width, inner) if turn_b else at.weight(inner, width)
    at.node("Gemm", [x, weight, at.weight(width)], (rows, width), transA=turn_a, transB=turn_b, alpha=0.5)


def recur(at: Grower, x: str, shape: tuple[int, ...]) -> None:
    if len(shape) != 3:
        return
    hidden = at.draw(st.sampled_from([3, 4]))
    directions = at.draw(st.integers(1, 2))
    weights = [at.weight(directions, 4 * hidden, width) for width in (shape[2], hidden)]
    direction = "bidirectional" if directions == 2 else "forward"
    shapes = (shape[0], directions, shape[1], hidden), (directions, shape[1], hidden)
    inputs = [x, *weights, at.weight(directions, 8 * hidden)]
    y, _ = at.node("LSTM", inputs, *shapes, hidden_size=hidden, direction=direction)
    moved = (shape[0], shape[1], directions, hidden)
    (z,) = at.node("Transpose", [y], moved, perm=[0, 2, 1, 3])
    joined = (shape[0], shape[1], directions * hidden)
    at.node("Reshape", [z, at.constant(np.array(joined))], joined)


def branch(at: Grower, x: str, shape: tuple[int, ...]) -> None:
    width = at.draw(st.sampled_from([4, 6]))
    name, wide = f"v{len(at.nodes)}_0", (*shape[:-1], width)
    graphs = {}
    for side in ("then", "else"):
        inner = f"{name}_{side}"
        node = helper.make_node("MatMul", [x, at.weight(shape[-1], width)], [inner], name=f"{side}{len(at.nodes)}")
        output = helper.make_tensor_value_info(inner, TensorProto.FLOAT, wide)
        graphs[f"{side}_branch"] = helper.make_graph([node], side, [], [output])
    at.node("If", [at.constant(np.array(at.draw(st.booleans())))], wide, **graphs)


STEPS = (
    *(linear, pointwise, together, normalise, soft, turn, join, cut, part, reshape, reduce, product, convolve),
    *(take, repeat, pad, unsqueeze, squeeze, choose, contract, sum_up, gemm, recur, branch),
    *(linear, pointwise, convolve, linear, pointwise),
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
