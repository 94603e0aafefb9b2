"""A forecast says what `cost` says of the model after the edit."""

import numpy as np
import pytest

import bevel
from bevel.ir.cost import INDEX_TYPES, cost
from bevel.ir.edit import select
from bevel.ir.forecast import Forecast
from bevel.ir.groups import analyse
from bevel.passes.choice import outermost
from tests import zoo
from tests.graphs import calls, graph, mlp

MODELS = (
    "gpt",
    "llama",
    "llama-fused",
    "vit",
    "swin",
    "resnet",
    "resnext",
    "mobilenet",
    "shufflenet",
    "densenet",
    "lstm",
)


def widths(analysis, seed):
    """Random widths of every group that can lose entries, at most one factor of each axis."""
    rng = np.random.default_rng(seed)
    free = outermost(analysis, [group for group in analysis.groups if group.allows("select")])
    return {group.name: int(rng.integers(1, group.size + 1)) for group in free}


def cut(model, sizes):
    """Cut a clone, and tell what it costs without the shape operands that the edit wrote anew."""
    result = model.clone()
    select(result, {name: np.arange(size) for name, size in sizes.items()})
    old = set(model.graph.initializers)
    added = [value.const_value for name, value in result.graph.initializers.items() if name not in old]
    assert all(tensor.dtype in INDEX_TYPES for tensor in added)
    found = cost(result)
    return found.parameters, found.bytes - sum(tensor.nbytes for tensor in added), found.macs, found.uncounted


def forecast(model, sizes):
    analysis = analyse(model)
    found = Forecast(analysis).cost({analysis[name].dim: size for name, size in sizes.items()})
    return found.parameters, found.bytes, found.macs, found.uncounted


@pytest.mark.parametrize("name", MODELS)
def test_the_forecast_is_the_cost_after_the_edit(name):
    model = bevel.load(zoo.path(name))
    for seed in range(3):
        sizes = widths(analyse(model), seed)
        assert forecast(model, sizes) == cut(model, sizes)


def test_a_width_off_by_one_is_seen():
    model = mlp()
    (group,) = [group for group in analyse(model).groups if group.allows("select")]
    assert forecast(model, {group.name: 4}) == cut(model, {group.name: 4})
    assert forecast(model, {group.name: 5}) != cut(model, {group.name: 4})


def test_a_tensor_that_two_initializers_share_is_saved_once():
    model = graph(
        "m (float[n, 4] x) => (float[n, 4] y)"
        "{ h = MatMul (x, a)  g = MatMul (x, b)  s = Add (h, g)  y = MatMul (s, c) }",
        {"a": (4, 6), "b": (4, 6), "c": (6, 4)},
    )
    model.graph.initializers["b"].const_value = model.graph.initializers["a"].const_value
    sizes = {"a[1]": 3}
    assert forecast(model, sizes) == cut(model, sizes)


def test_nothing_changed_costs_what_it_costs():
    model = mlp()
    assert Forecast(analyse(model)).cost({}) == cost(model)


def test_a_dimension_of_no_entries_costs_nothing():
    analysis = analyse(mlp())
    assert Forecast(analysis).cost({analysis["w1[1]"].dim: 0}).macs == 0


def test_only_what_changes_is_computed():
    """One dimension of a hundred takes less than a fifth of the calls that all of them take."""
    layers, width = 100, 32
    body = " ".join(f"h{i} = MatMul (h{i - 1}, w{i})" for i in range(1, layers))
    model = graph(
        f"m (float[n, {width}] h0) => (float[n, {width}] h{layers - 1}) {{ {body} }}",
        {f"w{i}": (width, width) for i in range(1, layers)},
    )
    analysis = analyse(model)
    sizes = {group.dim: 7 for group in analysis.groups if group.allows("select")}
    forecast = Forecast(analysis)
    forecast.cost(sizes)  # what is kept from one forecast to the next
    one = {next(iter(sizes)): 7}
    assert calls(lambda: forecast.cost(one)) < calls(lambda: forecast.cost(sizes)) / 5
