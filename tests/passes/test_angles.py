import numpy as np
import pytest

import bevel
from bevel.ir.blocks import find_blocks
from bevel.ir.repetition import layers
from bevel.passes.base import Context
from bevel.passes.blocks.angles import angles
from bevel.passes.calibration import Calibration
from bevel.passes.execution import Execution
from tests import zoo
from tests.graphs import proto

TURN = "m (float[n, 2] x) => (float[n, 2] y) { b = MatMul (x, w)  y = Add (x, b) }"


def context(model, feeds):
    return Context(0, Calibration.of(feeds, model), Execution())


def turned(matrix, rows, opset=21):
    """The angular distance of a block whose branch multiplies by `matrix`."""
    source = proto(TURN, {"w": (2, 2)})
    source.opset_import[0].version = opset
    source.graph.initializer[0].raw_data = np.asarray(matrix, np.float32).tobytes()
    model = bevel.load(source)
    blocks = find_blocks(model).blocks
    return angles(model, blocks, context(model, [{"x": np.asarray(rows, np.float32)}]))[blocks[0].name]


@pytest.mark.parametrize("opset", [11, 13, 21])
@pytest.mark.parametrize(
    ("matrix", "distance"),
    [
        ([[0, 0], [0, 0]], 0.0),
        ([[3, 0], [0, 3]], 0.0),
        ([[0, 1], [-1, 0]], 0.25),
        ([[-1, 1], [-1, -1]], 0.5),
        ([[-2, 0], [0, -2]], 1.0),
    ],
)
def test_known_turns(matrix, distance, opset):
    assert turned(matrix, [[1, 0], [2, 5], [-3, 1]], opset) == pytest.approx(distance, abs=1e-7)


def test_every_token_counts_the_same():
    """One row is turned by a right angle, one of three stays: the mean does not see their lengths."""
    distance = turned([[-1, 1], [0, 0]], [[9, 0], [0, 1], [0, 1]])
    assert distance == pytest.approx((0.5 + 0 + 0) / 3)


@pytest.mark.parametrize(
    ("name", "axis"), [("gpt", 2), ("bert", 2), ("swin", 3), ("resnet", 1), ("convnext", 1), ("gated", 1)]
)
@pytest.mark.parametrize("style", zoo.STYLES)
def test_the_distance_is_taken_over_channels(name, axis, style):
    """What numpy computes from the two values themselves."""
    model = bevel.load(zoo.path(name, style))
    feed = zoo.trials(name)[0][0]
    blocks = layers(find_blocks(model).innermost)
    assert {block.axis for block in blocks} == {axis}
    found = angles(model, blocks, context(model, [feed]))
    wanted = model.clone()
    values = {value.name: value for node in wanted.graph for value in node.outputs}
    names = {name for block in blocks for name in (block.start.name, block.end.name)}
    wanted.graph.outputs.extend(
        values[name] for name in sorted(names - {output.name for output in wanted.graph.outputs})
    )
    with Execution().open(wanted) as runs:
        answer = runs.run(feed)
    for block in blocks:
        a, b = (answer[value.name].astype(np.float64) for value in (block.start, block.end))
        cosine = (a * b).sum(axis) / np.linalg.norm(a, axis=axis) / np.linalg.norm(b, axis=axis)
        assert found[block.name] == pytest.approx((np.arccos(np.clip(cosine, -1, 1)) / np.pi).mean(), abs=1e-6)


def test_the_model_stays_as_it_was():
    model = bevel.load(zoo.path("gpt"))
    before = [node.name for node in model.graph], [value.name for value in model.graph.outputs]
    angles(model, find_blocks(model).blocks, context(model, [zoo.trials("gpt")[0][0]]))
    assert ([node.name for node in model.graph], [value.name for value in model.graph.outputs]) == before
