import numpy as np
import pytest

import bevel
from bevel.errors import EditRefused, PromiseBroken, UnsupportedModel, UsageError
from bevel.ir.blocks import find_blocks
from bevel.passes.blocks.bridging import fit
from bevel.passes.blocks.influence import Drift
from bevel.passes.drop_blocks import DropBlocks
from bevel.passes.pipeline import optimize
from bevel.testing import check_pass
from tests import zoo
from tests.graphs import graph, proto

STREAM = """
m (float[n, 4] x) => (float[n, 4] y) {
  n1 = LayerNormalization (x, g1)  b1 = MatMul (n1, w1)  x1 = Add (x, b1)
  n2 = LayerNormalization (x1, g2)  b2 = MatMul (n2, w2)  x2 = Add (b2, x1)
  n3 = LayerNormalization (x2, g3)  b3 = MatMul (n3, w3)  y = Add (x2, b3)
}
"""
POST = """
m (float[n, 4] x) => (float[n, 4] y) {
  b1 = MatMul (x, w1)  s1 = Add (x, b1)  x1 = LayerNormalization (s1, g1)
  b2 = MatMul (x1, w2)  s2 = Add (x1, b2)  x2 = LayerNormalization (s2, g2)
  b3 = MatMul (x2, w3)  s3 = Add (x2, b3)  y = LayerNormalization (s3, g3)
}
"""
WEIGHTS = {**{f"w{n}": (4, 4) for n in (1, 2, 3)}, **{f"g{n}": (4,) for n in (1, 2, 3)}}


def stream(text=STREAM, scales=(1.0, 0.01, 0.1)):
    """Three blocks whose branches are so large, norms without a gain."""
    source = proto(text, WEIGHTS)
    for initializer in source.graph.initializer:
        if initializer.name[0] == "w":
            array = numpy(initializer) * np.float32(scales[int(initializer.name[1]) - 1])
            initializer.raw_data = array.tobytes()
        else:
            initializer.raw_data = np.ones(4, np.float32).tobytes()
    return bevel.load(source)


def numpy(initializer):
    return np.frombuffer(initializer.raw_data, np.float32).reshape(initializer.dims)


def weights(model):
    return {name for name in model.graph.initializers if name[0] == "w"}


def feeds(count=1, rows=16):
    rng = np.random.default_rng(0)
    return [{"x": rng.standard_normal((rows, 4)).astype(np.float32)} for _ in range(count)]


@pytest.mark.parametrize("by", ["angular", "output"])
@pytest.mark.parametrize("text", [STREAM, POST])
@pytest.mark.parametrize(("count", "left"), [(1, {"w1", "w3"}), (2, {"w1"}), (3, set())])
def test_the_smallest_branches_go_first(text, by, count, left):
    model = stream(text)
    step = check_pass(DropBlocks(count=count, by=by), model, feeds())
    assert step.error == 0
    optimize(model, DropBlocks(count=count, by=by), calibration=feeds())
    assert weights(model) == left
    assert [value.name for value in model.graph.outputs] == ["y"]


def test_a_dropped_block_leaves_no_node_behind():
    model = stream()
    optimize(model, "drop-blocks{count=2}", calibration=feeds())
    assert [node.op_type for node in model.graph] == ["LayerNormalization", "MatMul", "Add", "Identity"]
    assert set(model.graph.initializers) == {"w1", "g1"}


def test_a_share_is_rounded_down():
    model = stream()
    report = optimize(model, "drop-blocks{ratio=0.3}", calibration=feeds())
    assert weights(model) == {"w1", "w2", "w3"}
    assert report.steps[0].notes[0] == "0 of 3 blocks dropped"
    optimize(model, "drop-blocks{ratio=0.4}", calibration=feeds())
    assert weights(model) == {"w1", "w3"}


def test_the_ends_are_protected_and_patterns_choose():
    protected, skipped, only = stream(scales=(0.01, 1, 0.01)), stream(), stream()
    optimize(protected, "drop-blocks{count=1 protect=1}", calibration=feeds())
    assert weights(protected) == {"w1", "w3"}
    optimize(skipped, "drop-blocks{count=1 skip=w2}", calibration=feeds())
    assert weights(skipped) == {"w1", "w2"}
    optimize(only, "drop-blocks{count=1 only=w1}", calibration=feeds())
    assert weights(only) == {"w2", "w3"}


@pytest.mark.parametrize(("greedy", "left", "error"), [("false", {"w2"}, 0.64), ("true", {"w1"}, 0.43)])
def test_greedy_sees_that_blocks_undo_each_other(greedy, left, error):
    """The blocks multiply the stream by 2, 0.5 and 1.4: the third matters least, and then the second."""
    text = """
    m (float[n, 4] x) => (float[n, 4] y) {
      b1 = MatMul (x, w1)  x1 = Add (x, b1)
      b2 = MatMul (x1, w2)  x2 = Add (x1, b2)
      b3 = MatMul (x2, w3)  y = Add (x2, b3)
    }
    """
    source = proto(text, {"w1": (4, 4), "w2": (4, 4), "w3": (4, 4)})
    for initializer, factor in zip(source.graph.initializer, (1, -0.5, 0.4), strict=True):
        initializer.raw_data = (factor * np.eye(4)).astype(np.float32).tobytes()
    model = bevel.load(source)
    report = optimize(model, f"drop-blocks{{count=2 by=output greedy={greedy}}}", calibration=feeds())
    assert weights(model) == left
    assert f"the outputs move by {error} " in report.steps[0].notes[1]


@pytest.mark.parametrize("form", ["linear", "diagonal"])
@pytest.mark.parametrize("text", [STREAM, POST])
def test_a_linear_map_takes_the_place_of_a_run(text, form):
    model = stream(text, (1, 1, 1))
    step = check_pass(DropBlocks(count=2, replace=form), model, feeds(8))
    assert step.error <= step.verdict.promise.rtol
    plain, mapped = (float(note.split(" by ")[1].split()[0]) for note in step.notes[1:3])
    assert mapped < plain


def test_a_branch_that_is_linear_is_replaced_without_loss():
    text = "m (float[n, 4] x) => (float[n, 4] y) { r = MatMul (x, w)  b = MatMul (r, v)  y = Add (x, b) }"
    model = graph(text, {"w": (4, 4), "v": (4, 4)})
    report = optimize(model, "drop-blocks{count=1 replace=linear}", calibration=feeds(4, 400))
    assert report.error < 0.03  # the damping's
    assert [node.op_type for node in model.graph] == ["MatMul", "Add", "Identity"]


def test_a_fit_with_hardly_any_samples_stays_near_the_bypass():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 64))
    bridge = fit(iter([(x, x + 0.1 * rng.standard_normal((4, 64)))]), "linear")
    assert np.abs(bridge.change).max() < 0.1


ZOO = ["gpt", "bert", "llama", "vit", "swin", "resnet", "mobilenet", "convnext", "gated"]


@pytest.mark.parametrize("style", ["dynamo", "torchscript"])
@pytest.mark.parametrize("name", ZOO)
def test_networks_keep_the_promise(name, style):
    model = bevel.load(zoo.path(name, style))
    calibration = [feed for feed, _ in zoo.trials(name)]
    for options in ("", " replace=linear", " by=output unit=layer"):
        result = model.clone()
        (step,) = optimize(result, f"drop-blocks{{count=1{options}}}", calibration=calibration).steps
        assert step.error <= step.verdict.promise.rtol
        assert step.cost.parameters < bevel.ir.cost.cost(model).parameters
        assert len(find_blocks(result).blocks) < len(find_blocks(model).blocks)


def test_a_layer_takes_all_its_blocks_along():
    model = bevel.load(zoo.path("bert"))
    (step,) = optimize(model, "drop-blocks{count=1 unit=layer only=encoder.layer.1}").steps
    assert "1 of 1 layers dropped" in step.notes[0]
    assert not [name for name in model.graph.initializers if name.startswith("encoder.layer.1.")]
    assert "made-up" in step.notes[1]


def test_a_bypass_to_the_wrong_value_is_caught(monkeypatch):
    from bevel.ir import bypass

    def wrong(graph, old, new, names, right=bypass.redirect):
        right(graph, old, graph.inputs[0], names)

    monkeypatch.setattr("bevel.ir.bypass.redirect", wrong)
    model = stream()
    with pytest.raises(PromiseBroken, match="drop-blocks: promised Masked"):
        optimize(model, "drop-blocks{count=1}", calibration=feeds())
    assert len(model.graph) == 9


def test_a_map_that_is_not_the_fitted_one_is_caught(monkeypatch):
    from bevel.ir.bridge import Bridge

    monkeypatch.setattr(Bridge, "whole", Bridge.added)
    with pytest.raises(PromiseBroken, match="drop-blocks: promised Masked"):
        optimize(stream(), "drop-blocks{count=1 replace=linear}", calibration=feeds())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (DropBlocks(count=4), EditRefused, "4 to drop, but only 3 blocks"),
        (DropBlocks(count=2, protect=1), EditRefused, "only 1 block"),
        (DropBlocks(greedy=True), UsageError, "by=output"),
        (DropBlocks(only=("w7",)), UsageError, "no block is asked for"),
    ],
)
def test_what_cannot_be_done_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        check_pass(options, stream(), feeds())


def test_a_model_without_blocks_is_refused():
    with pytest.raises(EditRefused, match="no residual blocks"):
        optimize(bevel.load(zoo.path("vgg")), "drop-blocks")


def test_a_convolution_in_the_skip_is_named():
    text = "m (float[n, 4, 5, 5] x) => (float[n, 6, 5, 5] y) { a = Conv (x, w)  s = Conv (x, v)  y = Add (a, s) }"
    with pytest.raises(EditRefused, match=r"its stream goes through '.*' \(Conv\)"):
        optimize(graph(text, {"w": (6, 4, 1, 1), "v": (6, 4, 1, 1)}), "drop-blocks")


def test_drift_is_relative_to_the_reference():
    found = Drift()
    found.add({"y": np.array([3.0, 4.0])}, {"y": np.array([3.0, 3.0])})
    assert found.error == pytest.approx(1 / 5)
    labels = Drift()
    labels.add({"y": np.array([1, 2, 3, 4])}, {"y": np.array([1, 2, 3, 5])})
    assert labels.error == 0.25


def test_an_old_opset_has_no_switches():
    source = proto(STREAM.replace("LayerNormalization (", "Add ("), WEIGHTS)
    source.opset_import[0].version = 8
    with pytest.raises(UnsupportedModel, match="no Where"):
        optimize(bevel.load(source), "drop-blocks{count=1 by=output}", calibration=feeds())


def grown(seed):
    """A random graph of values `[n, 4]`, each computed from recent ones; whatever nothing reads is an output."""
    rng = np.random.default_rng(seed)
    values, nodes, weights = ["x"], [], {}
    for place in range(rng.integers(10, 24)):
        operator = str(rng.choice(["MatMul", "Add", "Add", "Add", "Relu", "LayerNormalization", "Mul", "Identity"]))
        recent = [values[-min(int(rng.geometric(0.45)), len(values))] for _ in range(2)]
        if operator in ("MatMul", "LayerNormalization"):
            weights[f"w{place}"] = (4, 4) if operator == "MatMul" else (4,)
            recent[1] = f"w{place}"
        nodes.append((f"v{place}", operator, recent[: 1 if operator in ("Relu", "Identity") else 2]))
        values.append(f"v{place}")
    read = {name for _, _, operands in nodes for name in operands}
    outputs = ", ".join(f"float[n, 4] {name}" for name, _, _ in nodes if name not in read)
    body = "  ".join(f"{name} = {operator} ({', '.join(operands)})" for name, operator, operands in nodes)
    return graph(f"m (float[n, 4] x) => ({outputs}) {{ {body} }}", weights, seed)


WITH_BLOCKS = [seed for seed in range(40) if find_blocks(grown(seed)).innermost]


@pytest.mark.parametrize("seed", WITH_BLOCKS)
def test_random_graphs_keep_the_promise(seed):
    model = grown(seed)
    for options in ("ratio=0.5", "ratio=1.0 by=output unit=layer", "ratio=1.0 replace=linear"):
        (step,) = optimize(model.clone(), f"drop-blocks{{{options}}}").steps
        assert step.verdict.kept


def test_sums_of_one_stream_are_dropped_together():
    """After the first is gone, what the others need alone is not what it was."""
    text = """
    m (float[n, 4] x) => (float[n, 4] y) {
      i = Identity (x)  r = MatMul (i, w)  g = Sigmoid (r)  a = Add (i, g)  b = Add (x, a)  y = Add (a, b)
    }
    """
    model = graph(text, {"w": (4, 4)})
    assert check_pass(DropBlocks(ratio=1.0), model).error == 0
    optimize(model, "drop-blocks{ratio=1.0}")
    assert not model.graph.initializers


def test_a_fused_norm_goes_with_its_block():
    source = proto(
        """
        m (float[n, t, 4] x) => (float[n, t, 4] y) {
          a = MatMul (x, w)  x1 = com.microsoft.SkipLayerNormalization (a, x, g, h)
          b = MatMul (x1, v)  y = com.microsoft.SkipLayerNormalization (x1, b, g, h)
        }
        """,
        {"w": (4, 4), "v": (4, 4), "g": (4,), "h": (4,)},
    )
    source.opset_import.add(domain="com.microsoft", version=1)
    model = bevel.load(source)
    assert check_pass(DropBlocks(count=1), model).error == 0
    optimize(model, "drop-blocks{count=1}")
    assert [node.op_type for node in model.graph][:2] == ["MatMul", "SkipLayerNormalization"]
    assert len([node for node in model.graph if node.op_type == "MatMul"]) == 1
