"""Several formats: weights that the outputs feel get more bits, for a mean or to keep the error below a limit."""

import numpy as np
import onnx_ir as ir
import pytest

import bevel
from bevel.errors import PromiseBroken, UsageError
from bevel.passes.allocation.menu import Menu
from bevel.passes.quantization.mixture import Mixture, within
from tests.graphs import graph

# Two branches: what `loud` gives is a hundred times as large as what `quiet` gives.
BRANCHES = """
net (float[n, 64] x) => (float[n, 32] y) {
  a = MatMul (x, loud)
  b = MatMul (x, quiet)
  c = MatMul (x, silent)
  s = Sum (a, b, c)
  y = Relu (s)
}
"""
SHAPES = {"loud": (64, 32), "quiet": (64, 32), "silent": (64, 32)}
FEEDS = [{"x": np.random.default_rng(seed).standard_normal((32, 64)).astype(np.float32)} for seed in range(3)]


def branches() -> ir.Model:
    model = graph(BRANCHES, SHAPES)
    for name, factor in (("quiet", 1e-2), ("silent", 1e-4)):
        array = model.graph.initializers[name].const_value.numpy() * np.float32(factor)
        model.graph.initializers[name].const_value = ir.tensor(array, name=name)
    return model


def bits_of(model: ir.Model) -> dict[str, int]:
    """Return how many bits each product's kernel takes its weights in, by the weight's name; 32 if it is no kernel."""
    names = [node.inputs[1].name.partition(".")[0] for node in model.graph if "MatMul" in node.op_type]
    bits = [node.attributes.get_int("bits", 32) for node in model.graph if "MatMul" in node.op_type]
    return dict(zip(names, bits, strict=True))


def run(spec: str, **options):
    model = branches()
    report = bevel.optimize(model, f"quantize-blocks{{{spec}}}", calibration=FEEDS, **options)
    return model, report.steps[0]


def test_weights_that_the_outputs_feel_get_more_bits() -> None:
    model, step = run("formats=int2,int4,int8 bits=5.7")
    found = bits_of(model)
    assert found["loud"] == 8 and found["loud"] > found["quiet"] >= found["silent"] == 2
    assert "bits an element" in step.notes[0] and "1 in int8" in step.notes[0]


def test_a_mixture_is_nearer_than_one_format_of_as_many_bits() -> None:
    _, mixed = run("formats=int2,int4,int8 bits=5")
    _, plain = run("format=int4")
    assert mixed.verdict.error < plain.verdict.error / 2
    assert float(mixed.notes[0].split()[-4]) <= 5.0


def test_weights_stay_in_floats_where_the_limit_asks_for_it() -> None:
    with pytest.raises(PromiseBroken):
        run("format=int2", max_error=1e-5)
    model, step = run("format=int2", max_error=0.05)
    assert bits_of(model) == {"loud": 32, "quiet": 2, "silent": 2}
    assert step.verdict.error <= 0.05
    assert any("to keep the error below the limit: loud" in note for note in step.notes)


def test_nothing_is_mixed_where_the_limit_holds_anyway(monkeypatch) -> None:
    monkeypatch.setattr("bevel.passes.quantize_blocks.mixture", lambda *_: pytest.fail("mixed"))
    model, _ = run("format=int8", max_error=0.05)
    assert set(bits_of(model).values()) == {8}


def test_a_limit_bounds_what_bits_ask_for() -> None:
    model, step = run("formats=int2,int4,int8 bits=3", max_error=0.03)
    assert step.verdict.error <= 0.03 and bits_of(model)["loud"] == 8


def test_nothing_but_the_formats_that_are_asked_for_is_used() -> None:
    model, _ = run("formats=int2,int8 bits=32")
    assert set(bits_of(model).values()) == {32}
    with pytest.raises(PromiseBroken, match="worst"):
        run("formats=int2,int3 bits=3", max_error=1e-5)


@pytest.mark.parametrize(
    ("spec", "why"),
    [("formats=int2,int4", "chosen for"), ("bits=4", "several formats"), ("formats=int2,in5t", "in5t")],
)
def test_what_is_not_asked_for_clearly_is_refused(spec: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        run(spec)


def test_the_search_returns_the_most_that_holds() -> None:
    class Known(Mixture):
        def saving(self, required):
            return {"a": str(round(required))}

        def saved(self, choice):
            return float(choice["a"])

    menus = [Menu(np.arange(2), np.array([0.0, 100.0]), np.array([0.0, 1.0]))]
    for limit in (12, 57.5, 99):
        found = within(Known([], menus), None, lambda choice: float(choice["a"]), limit)
        assert limit - 2 <= float(found["a"]) <= limit
