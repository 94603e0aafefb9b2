import numpy as np
import pytest

import bevel
from bevel.errors import UnsupportedModel, UsageError
from bevel.ir import nested
from bevel.passes.execution import Execution
from bevel.passes.nest import NestChannels
from bevel.passes.pipeline import optimize
from tests import zoo
from tests.graphs import graph, snapshot

MLP = """
e1 (float[n, 6] x) => (float[n, 3] y) {
  h = Gemm (x, w1, b1)
  r = Relu (h)
  i = Gemm (r, w2, b2)
  s = Relu (i)
  y = Gemm (s, w3, b3)
}
"""
WEIGHTS = {"w1": (6, 32), "b1": (32,), "w2": (32, 24), "b2": (24,), "w3": (24, 3), "b3": (3,)}
RNG = np.random.default_rng(3)
FEEDS = [{"x": (RNG.standard_normal((64, 3)) @ RNG.standard_normal((3, 6))).astype(np.float32)} for _ in range(4)]


def answers(model):
    with Execution().open(model) as runs:
        return np.concatenate([runs.run(feed)["y"] for feed in FEEDS])


def member(model, text):
    small = model.clone()
    optimize(small, text, calibration=FEEDS)
    return small


def error(expected, model):
    return float(np.square(answers(model) - expected).mean())


@pytest.fixture
def elastic():
    model = graph(MLP, WEIGHTS)
    optimize(model, "nest{widths=0.25,0.5}", calibration=FEEDS)
    return model


def test_the_full_network_stays_and_fits_ride_along(elastic):
    assert np.allclose(answers(elastic), answers(graph(MLP, WEIGHTS)), rtol=1e-4, atol=1e-4)
    nest = nested.read(elastic)
    assert dict(nest.groups) == {"w1[1]": 32, "w2[1]": 24}
    assert [(fit.group, fit.width, fit.weight) for fit in nest.fits][:4] == [
        ("w1[1]", 8, "w2"),
        ("w1[1]", 8, "b2"),
        ("w1[1]", 16, "w2"),
        ("w1[1]", 16, "b2"),
    ]


def test_members_are_fitted_and_any_mix_can_be_taken(elastic, tmp_path):
    expected = answers(elastic)
    bevel.save(elastic, tmp_path / "elastic.onnx")
    loaded = bevel.load(tmp_path / "elastic.onnx")
    half = member(loaded, "extract-member{width=0.5}")
    assert half.graph.initializers["w2"].shape == (16, 12)
    assert not [name for name in half.graph.initializers if "nested" in name]
    mixed = member(loaded, 'extract-member{width=0.5 mix="w2*=0.25"}')
    assert mixed.graph.initializers["w2"].shape == (16, 6)
    assert error(expected, half) < error(expected, mixed) < np.square(expected).mean()
    cut = loaded.clone()
    for fit in nested.read(cut).fits:
        del cut.graph.initializers[fit.stored]
    assert error(expected, half) < 0.5 * error(expected, member(cut, "extract-member{width=0.5}"))


def test_importance_decides_which_prefix_it_is(elastic):
    model = graph(MLP, WEIGHTS)
    optimize(model, "nest{widths=0.5 importance=random}", calibration=FEEDS)
    expected = answers(model)
    assert error(expected, member(elastic, "extract-member{width=0.5}")) < error(
        expected, member(model, "extract-member{width=0.5}")
    )


@pytest.mark.parametrize("name", ["resnet", "llama", "mobilenet", "vit"])
def test_architectures_nest_and_give_members(name):
    model = bevel.load(zoo.model(name))
    optimize(model, "nest{samples=8}")
    before = sum(value.const_value.size for value in model.graph.initializers.values())
    for width in ("0.5", "0.3"):
        small = model.clone()
        optimize(small, f"extract-member{{width={width}}}")
        assert sum(value.const_value.size for value in small.graph.initializers.values()) < 0.7 * before


def test_what_cannot_be_is_refused(elastic):
    with pytest.raises(UnsupportedModel, match="not nested"):
        optimize(graph(MLP, WEIGHTS), "extract-member")
    with pytest.raises(UsageError, match="no width"):
        NestChannels(widths=("2",))
    for changes in ("reorder-channels{importance=random}", "prune-weights{sparsity=0.1}", "prune-channels{ratio=0.5}"):
        changed = elastic.clone()
        optimize(changed, changes, calibration=FEEDS)
        before = snapshot(changed)
        with pytest.raises(UnsupportedModel, match="nest the model again"):
            optimize(changed, "extract-member", calibration=FEEDS)
        assert snapshot(changed) == before
    elastic.metadata_props[nested.KEY] = "[]"
    with pytest.raises(UnsupportedModel, match="damaged"):
        nested.read(elastic)
