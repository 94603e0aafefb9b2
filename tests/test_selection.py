"""select-finetune: what is chosen, that the function stays, that only slices are trained, and every way back."""

import subprocess
import sys

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

import bevel
from bevel import selection as package
from bevel.backends.onnxruntime import Session
from bevel.errors import EditRefused, PromiseBroken, UsageError
from bevel.ir.edit import permute
from bevel.selection import Adapter, select_finetune, slices
from tests import zoo
from tests.graphs import graph, mlp
from tests.passes.nets import CONVS, CONVS_WEIGHTS, GROUPED, GROUPED_WEIGHTS

# Two gated layers without a residual stream: the weights between them have a hidden axis on either side.
GATED = """
gated (float[n, 6] x) => (float[n, 3] y) {
  g0 = MatMul (x, gate)
  s0 = Sigmoid (g0)
  u0 = MatMul (x, up)
  h0 = Mul (s0, u0)
  z = Gemm <transB = 1> (h0, middle, shift)
  h1 = Relu (z)
  y = MatMul (h1, down)
}
"""
GATED_WEIGHTS = {"gate": (6, 8), "up": (6, 8), "middle": (10, 8), "shift": (10,), "down": (10, 3)}

# Queries, keys and values of four heads, two wide, in one matrix.
FUSED = """
fused (float[n, s, 8] x) => (float[n, s, 8] y)
<int64[4] heads = {0, -1, 4, 2}, int64[3] flat = {0, -1, 8}> {
  a = MatMul (x, qkv)
  q0, k0, v0 = Split <axis = 2, num_outputs = 3> (a)
  q1 = Reshape (q0, heads)
  k1 = Reshape (k0, heads)
  v1 = Reshape (v0, heads)
  q = Transpose <perm = [0, 2, 1, 3]> (q1)
  k = Transpose <perm = [0, 2, 3, 1]> (k1)
  v = Transpose <perm = [0, 2, 1, 3]> (v1)
  z = MatMul (q, k)
  p = Softmax (z)
  o0 = MatMul (p, v)
  o1 = Transpose <perm = [0, 2, 1, 3]> (o0)
  o = Reshape (o1, flat)
  y = MatMul (o, wo)
}
"""


def gated():
    return graph(GATED, GATED_WEIGHTS)


def grouped():
    return graph(GROUPED, GROUPED_WEIGHTS)


def weights(model):
    return {name: value.const_value.numpy().copy() for name, value in model.graph.initializers.items()}


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def frozen(module):
    return {
        name: tensor.detach().numpy().copy() for name, tensor in module.named_parameters() if not tensor.requires_grad
    }


def trained(selection, seed=0, scale=0.1):
    """Give every slice something to say."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name in selection.slices:
            parameter = selection.module.get_parameter(name)
            parameter.copy_(torch.randn_like(parameter) * scale)
    return selection


def rows(shape=(4, 6), seed=3):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def answer(model, x):
    with Session(model) as session:
        return next(iter(session.run({"x": x}).values()))


EVERYTHING = {"down": 0.3, "up": 0.2}


def test_the_function_stays_and_nothing_of_the_model_changes():
    model, x = gated(), rows()
    before = weights(model)
    selection = select_finetune(model, **EVERYTHING)
    np.testing.assert_allclose(selection.module(torch.from_numpy(x)).detach(), answer(model, x), rtol=1e-5, atol=1e-5)
    assert same(weights(model), before)
    assert any(not np.array_equal(order, np.arange(len(order))) for order in selection.orders.values())


def test_a_weight_that_is_left_out_of_the_reordering_is_caught(monkeypatch):
    def forgetful(analysis, orders):
        gate = analysis.model.graph.initializers["gate"].const_value
        permute(analysis, orders)
        analysis.model.graph.initializers["gate"].const_value = gate

    monkeypatch.setattr(package, "permute", forgetful)
    with pytest.raises(PromiseBroken, match="select_finetune"):
        select_finetune(gated(), **EVERYTHING)


def test_what_is_trained_is_one_range_of_every_weight_and_pooled_over_the_layers():
    selection = select_finetune(gated(), **EVERYTHING)
    assert all(len(part.ranges) == 2 for part in selection.slices.values())
    read = [len(part.index) for part in selection.slices.values() if part.is_read]
    assert sum(read) == round(0.3 * 18)
    assert "trains" in str(selection) and "down[0]" in str(selection)
    per_seed = {tuple(map(tuple, select_finetune(gated(), seed=n, verify=False).orders.values())) for n in range(4)}
    assert len(per_seed) > 1


def test_gradients_are_the_slices_of_the_full_ones():
    model, x = gated(), torch.from_numpy(rows())
    selection = select_finetune(model, **EVERYTHING)
    full = bevel.to_torch(model)
    full(x).square().sum().backward()
    selection.module(x).square().sum().backward()
    for name, part in selection.slices.items():
        whole = full.get_parameter(part.weight).grad.numpy()
        found = part.as_weight(selection.module.get_parameter(name).grad.numpy())
        np.testing.assert_allclose(found, np.take(whole, part.index, part.axis), rtol=1e-4, atol=1e-5)
        assert not np.allclose(found, np.take(whole, (part.index + 1) % whole.shape[part.axis], part.axis), rtol=1e-2)
    assert not [
        name
        for name, tensor in selection.module.named_parameters()
        if (tensor.grad is None) == (name in selection.slices)
    ]


def test_frozen_weights_stay_bit_by_bit_while_the_slices_learn():
    selection = select_finetune(gated(), **EVERYTHING)
    before, learnt = frozen(selection.module), selection.adapter()
    batches = [(torch.from_numpy(rows(seed=n)), torch.zeros(4, 3)) for n in range(5)]
    history = bevel.finetune(selection.module, None, batches, labels=-1, loss="mse", lr=1e-2)
    assert history.steps == 5
    assert same(frozen(selection.module), before)
    pairs = zip(selection.adapter().deltas, learnt.deltas, strict=True)
    assert not any(np.array_equal(new.values, old.values) for new, old in pairs)

    selection.module.requires_grad_(True)  # the control: nothing else holds them
    bevel.finetune(selection.module, None, batches, labels=-1, loss="mse", lr=1e-2)
    now = dict(selection.module.named_parameters())
    assert not same({name: now[name].detach().numpy() for name in before}, before)


def test_the_merged_model_is_the_sum_bit_by_bit_in_either_order():
    model = gated()
    selection = trained(select_finetune(model, **EVERYTHING))
    merged, reordered = selection.merged(), selection.merged(reordered=True)
    expected = weights(model)
    for delta in selection.adapter().deltas:
        place = (delta.index, slice(None)) if delta.axis == 0 else (slice(None), delta.index)
        expected[delta.weight][place] += delta.values
    assert same(weights(merged), expected)
    assert not same(weights(reordered), expected)
    permute(reordered, {name: np.argsort(order) for name, order in selection.orders.items()})
    assert same(weights(reordered), expected)


def test_a_merge_that_forgets_the_order_of_the_other_axis_is_caught(monkeypatch):
    selection = trained(select_finetune(gated(), **EVERYTHING))
    selection.merged()
    monkeypatch.setattr(slices.Slice, "as_weight", lambda part, array: array.T if part.transposed else array)
    with pytest.raises(PromiseBroken, match="select_finetune"):
        selection.merged()


def test_adapters_are_saved_and_swapped(tmp_path):
    model, x = gated(), torch.from_numpy(rows())
    selection = select_finetune(model, **EVERYTHING)
    original = selection.module(x).detach()
    one = trained(selection, seed=1).module(x).detach()
    selection.adapter().save(tmp_path / "one.safetensors")
    other = trained(selection, seed=2).module(x).detach()
    assert not torch.equal(one, other)
    selection.put(Adapter.load(tmp_path / "one.safetensors"))
    assert torch.equal(selection.module(x), one)
    selection.clear()
    assert torch.equal(selection.module(x), original)
    again = select_finetune(model, **EVERYTHING)
    again.put(Adapter.load(tmp_path / "one.safetensors"))
    assert torch.equal(again.module(x), one)


def test_an_adapter_is_applied_to_a_model_and_taken_off_again(tmp_path):
    model, x = gated(), rows()
    selection = trained(select_finetune(model, **EVERYTHING))
    selection.adapter().save(tmp_path / "task.safetensors")
    adapter = Adapter.load(tmp_path / "task.safetensors")
    assert adapter.parameters == selection.parameters
    before = answer(model, x)
    adapter.apply(model)
    assert same(weights(model), weights(selection.merged()))
    once = answer(model, x)
    assert not np.allclose(once, before)
    with pytest.raises(UsageError, match="'down' holds other numbers"):
        adapter.apply(model)
    adapter.apply(model, force=True)
    assert not np.allclose(answer(model, x), once)
    adapter.remove(model)
    adapter.remove(model)
    np.testing.assert_allclose(answer(model, x), before, rtol=1e-5, atol=1e-5)


def test_an_adapter_is_not_applied_in_another_order():
    model = gated()
    selection = trained(select_finetune(model, **EVERYTHING))
    permute(model, selection.orders)
    with pytest.raises(UsageError, match=r"'down' holds other numbers.*\n.*original order"):
        selection.adapter().apply(model)


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x):
        return self.down(torch.relu(self.up(x)))


def test_the_users_own_module_gets_what_was_learnt():
    torch.manual_seed(0)
    module, x = Own().eval(), torch.from_numpy(rows())
    model = bevel.load(module, (x,))
    selection = trained(select_finetune(model, **EVERYTHING))
    before = module(x).detach()
    bevel.apply(module, selection.merged())
    torch.testing.assert_close(module(x), selection.module(x))
    assert not torch.allclose(module(x), before)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("llama-fused", {"down": 0.03, "up": 0.02, "out": 0.2, "value": 0.2}),
        ("bert", {"down": 0.03, "up": 0.02, "out": 0.2, "value": 0.2}),
        ("vit", {"down": 0.03, "up": 0.02, "out": 0.2}),
    ],
)
def test_networks_stay_the_same_and_merge(name, options):
    feeds = [feed for feed, _ in zoo.trials(name)]
    selection = trained(select_finetune(bevel.load(zoo.path(name)), calibration=feeds, **options))
    assert {part.is_read for part in selection.slices.values()} == {True, False}
    selection.merged()


def test_adapters_of_something_else_are_refused(tmp_path):
    selection = trained(select_finetune(gated(), **EVERYTHING))
    with pytest.raises(UsageError, match="other channels"):
        selection.put(select_finetune(gated(), **EVERYTHING, seed=1, verify=False).adapter())
    small = mlp()
    before = weights(small)
    with pytest.raises(UsageError, match="'gate' is missing"):
        selection.adapter().apply(small)
    assert same(weights(small), before)
    (tmp_path / "bad.safetensors").write_bytes(b"nothing of the kind")
    for name, what in (("bad", "cannot be read"), ("absent", "cannot be read")):
        with pytest.raises(UsageError, match=what):
            Adapter.load(tmp_path / f"{name}.safetensors")


def test_a_head_is_a_key_value_group_with_its_queries():
    selection = trained(select_finetune(grouped(), down=0, out=0.1, value=0.1))
    (order,) = selection.orders.values()
    assert len(order) == 2  # groups, not the four heads of queries
    found = {part.weight: part for part in selection.slices.values()}
    assert {name: part.ranges[1] - part.ranges[0] for name, part in found.items()} == {"wv": 3, "wo": 6}
    assert found["wo"].index.tolist() in ([0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11])
    selection.merged()
    with pytest.raises(EditRefused, match="no feed-forward channels or heads"):
        select_finetune(grouped(), down=0, out=0.1, only=["factor:middle"])  # half of a group


def test_of_a_fused_projection_the_values_are_trained():
    model = graph(FUSED, {"qkv": (8, 24), "wo": (8, 8)})
    selection = trained(select_finetune(model, down=0, value=0.5, verify=False))
    (part,) = selection.slices.values()
    assert part.ranges == (16, 20)
    assert part.index.min() >= 16
    selection.merged()


def test_values_that_are_one_with_queries_and_keys_are_refused():
    text = FUSED.replace("int64[4] heads", "int64[5] five = {0, -1, 3, 4, 2}, int64[4] heads")
    text = text.replace("a = MatMul (x, qkv)", "b = MatMul (x, qkv) a = Reshape (b, five)")
    model = graph(text, {"qkv": (8, 24), "wo": (8, 8)})
    with pytest.raises(EditRefused, match=r"weight 'qkv': queries, keys and values cannot be told apart"):
        select_finetune(model, down=0, value=0.5)
    trained(select_finetune(model, down=0, out=0.5)).merged()


def test_an_importance_chooses_from_either_end():
    model = gated()
    down = model.graph.initializers["down"]
    larger = np.where(np.isin(np.arange(10), [2, 7]), 100, 1).astype(np.float32)[:, None]
    down.const_value = ir.tensor(down.const_value.numpy() * larger, name="down")
    largest = select_finetune(model, down=0.1, importance="magnitude", only=["down"], skip=["gate"])
    (part,) = largest.slices.values()
    assert part.weight == "down" and set(part.index) <= {2, 7}
    smallest = select_finetune(model, down=0.1, importance="magnitude", end="smallest", only=["down"])
    assert not set(next(iter(smallest.slices.values())).index) & {2, 7}


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"down": 1.5}, "down=1.5"),
        ({"down": 0}, "nothing is to be trained"),
        ({"end": "larges"}, "did you mean 'largest'"),
        ({"importance": "magnitud"}, "did you mean 'magnitude'"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, what):
    with pytest.raises(UsageError, match=what):
        select_finetune(gated(), **options)


def test_models_without_such_channels_are_refused():
    with pytest.raises(EditRefused, match="no feed-forward channels or heads stand between matrices"):
        select_finetune(graph(CONVS, CONVS_WEIGHTS))
    with pytest.raises(EditRefused, match=r"(?s)graph input 'x'.*bevel inspect"):
        select_finetune(graph("one (float[n, 6] x) => (float[n, 3] y) { y = MatMul (x, w) }", {"w": (6, 3)}))
    with pytest.raises(EditRefused, match="no channels that can be trained apart"):
        select_finetune(grouped())


def test_a_single_number_can_be_trained():
    model = graph(
        "m (float[n, 6] x) => (float[n, 1] y) { h = MatMul (x, a) r = Relu (h) y = MatMul (r, b) }",
        {"a": (6, 8), "b": (8, 1)},
    )
    selection = trained(select_finetune(model))
    assert selection.parameters == 1
    selection.merged()


def test_without_torch_it_says_what_to_install(tmp_path):
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError('hidden', name='torch')")
    code = (
        "from tests.graphs import mlp; import bevel\n"
        "try: bevel.select_finetune(mlp())\n"
        "except bevel.BevelError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": f"{tmp_path}:."}, check=False
    )
    assert "torch is not installed" in done.stdout, done.stderr
