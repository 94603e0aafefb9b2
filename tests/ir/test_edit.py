"""Edits are executed: a reordered model computes the same, a pruned one what its masked original computes."""

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
import pytest

from bevel.backends.onnxruntime import Level, Session
from bevel.errors import EditRefused, UsageError
from bevel.ir.edit import mask, permute, select
from bevel.ir.groups import analyse, groups
from tests.graphs import MLP, MLP_WEIGHTS, graph, mlp, snapshot

TOLERANCE = 1e-5
"""Relative to the largest output: float32 sums of some dozen products, in another order."""


@dataclass(frozen=True)
class Network:
    """A graph, its weights and inputs by shape, and the sizes of the groups that can be pruned."""

    text: str
    weights: dict[str, tuple[int, ...]]
    inputs: dict[str, tuple[int, ...]]
    free: list[int]
    ids: dict[str, int] = field(default_factory=dict)

    def model(self) -> ir.Model:
        return graph(self.text, self.weights)

    def feed(self) -> dict[str, np.ndarray]:
        random = np.random.default_rng(1)
        feed = {name: random.standard_normal(shape).astype(np.float32) for name, shape in self.inputs.items()}
        return feed | {name: np.array([[0, 3, 1, 4]]) % count for name, count in self.ids.items()}


NETWORKS = {
    "mlp": Network(MLP, MLP_WEIGHTS, {"x": (2, 6)}, [8]),
    "residual": Network(
        """
        residual (float[n, 3, 5, 5] x) => (float[n, 4] y) {
          stem = Conv <pads = [1, 1, 1, 1]> (x, w0, b0)
          a = Conv <pads = [1, 1, 1, 1]> (stem, w1)
          var = Mul (deviation, deviation)
          b = BatchNormalization (a, gain, bias, mean, var)
          c = Relu (b)
          d = Conv (c, w2, b2)
          e = Add (stem, d)
          f = GlobalAveragePool (e)
          g = Flatten (f)
          y = Gemm <transB = 1> (g, w3, b3)
        }
        """,
        {
            **{
                "w0": (6, 3, 3, 3),
                "b0": (6,),
                "w1": (10, 6, 3, 3),
                "gain": (10,),
                "bias": (10,),
                "mean": (10,),
                "deviation": (10,),
            },
            **{"w2": (6, 10, 1, 1), "b2": (6,), "w3": (4, 6), "b3": (4,)},
        },
        {"x": (2, 3, 5, 5)},
        [6, 10],
    ),
    "depthwise": Network(
        """
        depthwise (float[n, 3, 6, 6] x) => (float[n, 5, 6, 6] y) {
          a = Conv (x, expand)
          b = Clip (a)
          c = Conv <group = 8, pads = [1, 1, 1, 1]> (b, depth, bias)
          d = HardSwish (c)
          y = Conv (d, project)
        }
        """,
        {"expand": (8, 3, 1, 1), "depth": (8, 1, 3, 3), "bias": (8,), "project": (5, 8, 1, 1)},
        {"x": (1, 3, 6, 6)},
        [8],
    ),
    "grouped": Network(
        """
        grouped (float[n, 3, 4, 4] x) => (float[n, 5, 4, 4] y) {
          a = Conv (x, w0)
          b = Conv <group = 2> (a, w1, b1)
          y = Conv (b, w2)
        }
        """,
        {"w0": (8, 3, 1, 1), "w1": (6, 4, 1, 1), "b1": (6,), "w2": (5, 6, 1, 1)},
        {"x": (1, 3, 4, 4)},
        [2, 3, 4],  # groups, outputs of each, inputs of each
    ),
    "shuffle": Network(
        """
        shuffle (float[n, 3, 4, 4] x) => (float[n, 5, 4, 4] y)
        <int64[5] spread = {0, 2, 4, 4, 4}, int64[4] merged = {0, 8, 4, 4}> {
          a = Conv (x, w0)
          b = Reshape (a, spread)
          c = Transpose <perm = [0, 2, 1, 3, 4]> (b)
          d = Reshape (c, merged)
          e = Conv <group = 8> (d, w1)
          y = Conv (e, w2)
        }
        """,
        {"w0": (8, 3, 1, 1), "w1": (8, 1, 1, 1), "w2": (5, 8, 1, 1)},
        {"x": (1, 3, 4, 4)},
        [2, 4],
    ),
    "concat": Network(
        """
        concat (float[n, 3, 4, 4] x) => (float[n, 5, 4, 4] y) {
          a = Conv (x, w0)
          b = Relu (a)
          c = Conv (b, w1)
          d = Concat <axis = 1> (b, c, b)
          y = Conv (d, w2)
        }
        """,
        {"w0": (4, 3, 1, 1), "w1": (6, 4, 1, 1), "w2": (5, 14, 1, 1)},
        {"x": (1, 3, 4, 4)},
        [4, 6],
    ),
    "split": Network(
        """
        split (float[n, 6] x) => (float[n, 3] y) <int64[2] sizes = {8, 4}> {
          a = MatMul (x, w0)
          b, c = Split <axis = 1> (a, sizes)
          d = MatMul (b, w1)
          e = Sigmoid (c)
          f = Mul (d, e)
          y = MatMul (f, w2)
        }
        """,
        {"w0": (6, 12), "w1": (8, 4), "w2": (4, 3)},
        {"x": (2, 6)},
        [4, 8],
    ),
    "bounds from the end": Network(
        """
        parts (float[n, 6] x) => (float[n, 3] y)
        <int64[1] start = {-12}, int64[1] axis = {1}, int64[1] mid = {-8}, int64[1] end = {12}> {
          h = MatMul (x, w0)
          a = Slice (h, start, mid, axis)
          b = Slice (h, mid, end, axis)
          c = MatMul (a, w1)
          d = MatMul (b, w2)
          y = Add (c, d)
        }
        """,
        {"w0": (6, 12), "w1": (4, 3), "w2": (8, 3)},
        {"x": (2, 6)},
        [4, 8],
    ),
    "places from the end": Network(
        """
        parts (float[n, 6] x) => (float[n, 3] y)
        <int64[4] places = {-12, -11, -10, -9}, int64[1] axis = {1}, int64[1] mid = {-8}, int64[1] end = {12}> {
          h = MatMul (x, w0)
          a = Gather <axis = 1> (h, places)
          b = Slice (h, mid, end, axis)
          c = MatMul (a, w1)
          d = MatMul (b, w2)
          y = Add (c, d)
        }
        """,
        {"w0": (6, 12), "w1": (4, 3), "w2": (8, 3)},
        {"x": (2, 6)},
        [4, 8],
    ),
    "gated": Network(
        """
        gated (float[n, 6] x) => (float[n, 6] y) {
          a = Gemm (x, w0, b0)
          gate, up = Split <axis = 1, num_outputs = 2> (a)
          s = Sigmoid (gate)
          act = Mul (gate, s)
          h = Mul (act, up)
          y = MatMul (h, w1)
        }
        """,
        {"w0": (6, 16), "b0": (16,), "w1": (8, 6)},
        {"x": (2, 6)},
        [8],
    ),
    "flatten": Network(
        """
        flatten (float[n, 3, 4, 4] x) => (float[n, 5] y) {
          a = Conv (x, w0, b0)
          b = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (a)
          c = Flatten (b)
          y = Gemm (c, w1)
        }
        """,
        {"w0": (6, 3, 1, 1), "b0": (6,), "w1": (24, 5)},
        {"x": (2, 3, 4, 4)},
        [6],
    ),
    "tied": Network(
        """
        tied (int64[n, t] x) => (float[n, t, v] y) {
          e = Gather (table, x)
          n1 = LayerNormalization (e, gain)
          up = MatMul (n1, w1)
          r = Relu (up)
          down = MatMul (r, w2)
          h = Add (e, down)
          head = Transpose <perm = [1, 0]> (table)
          y = MatMul (h, head)
        }
        """,
        {"table": (7, 8), "gain": (8,), "w1": (8, 12), "w2": (12, 8)},
        {},
        [12],
        ids={"x": 7},
    ),
    "fused-attention": Network(
        """
        fused (float[n, t, 8] x) => (float[n, t, 8] y)
        <int64[4] heads = {0, 0, 2, 6}, int64[3] flat = {0, 0, 12}, float scale = {0.4}> {
          qkv = MatMul (x, w)
          biased = Add (qkv, b)
          q, k, v = Split <axis = 2, num_outputs = 3> (biased)
          q4 = Reshape (q, heads)
          k4 = Reshape (k, heads)
          v4 = Reshape (v, heads)
          qt = Transpose <perm = [0, 2, 1, 3]> (q4)
          kt = Transpose <perm = [0, 2, 3, 1]> (k4)
          vt = Transpose <perm = [0, 2, 1, 3]> (v4)
          s = MatMul (qt, kt)
          scaled = Mul (s, scale)
          p = Softmax <axis = -1> (scaled)
          o = MatMul (p, vt)
          ot = Transpose <perm = [0, 2, 1, 3]> (o)
          of = Reshape (ot, flat)
          y = MatMul (of, wo)
        }
        """,
        {"w": (8, 36), "b": (36,), "wo": (12, 8)},
        {"x": (2, 3, 8)},
        [2, 6, 6],  # heads, width of queries and keys, width of values
    ),
    "grouped-query-attention": Network(
        """
        gqa (float[n, 3, 8] x) => (float[n, 3, 8] y)
        <int64[4] qs = {0, 0, 4, 6}, int64[5] ks = {0, 0, 2, 1, 6}, int64[5] repeat = {1, 3, 2, 2, 6},
         int64[4] merged = {0, 0, 4, 6}, int64[3] flat = {0, 0, 24}> {
          q = MatMul (x, wq)
          k = MatMul (x, wk)
          v = MatMul (x, wv)
          q4 = Reshape (q, qs)
          k5 = Reshape (k, ks)
          v5 = Reshape (v, ks)
          ke = Expand (k5, repeat)
          ve = Expand (v5, repeat)
          k4 = Reshape (ke, merged)
          v4 = Reshape (ve, merged)
          qt = Transpose <perm = [0, 2, 1, 3]> (q4)
          kt = Transpose <perm = [0, 2, 3, 1]> (k4)
          vt = Transpose <perm = [0, 2, 1, 3]> (v4)
          s = MatMul (qt, kt)
          p = Softmax <axis = -1> (s)
          o = MatMul (p, vt)
          ot = Transpose <perm = [0, 2, 1, 3]> (o)
          of = Reshape (ot, flat)
          y = MatMul (of, wo)
        }
        """,
        {"wq": (8, 24), "wk": (8, 12), "wv": (8, 12), "wo": (24, 8)},
        {"x": (2, 3, 8)},
        [2, 2, 6, 6],  # key heads, queries of each, width of queries and keys, width of values
    ),
    "rotary": Network(
        """
        rotary (float[n, 3, 8] x) => (float[n, 3, 3] y)
        <int64[1] zero = {0}, int64[1] half = {3}, int64[1] end = {9223372036854775807}, int64[1] last = {-1}> {
          q = MatMul (x, wq)
          k = MatMul (x, wk)
          q1 = Slice (q, zero, half, last)
          q2 = Slice (q, half, end, last)
          qn = Neg (q2)
          qr = Concat <axis = -1> (qn, q1)
          qc = Mul (q, cos)
          qs = Mul (qr, sin)
          qe = Add (qc, qs)
          k1 = Slice (k, zero, half, last)
          k2 = Slice (k, half, end, last)
          kn = Neg (k2)
          kr = Concat <axis = -1> (kn, k1)
          kc = Mul (k, cos)
          ks = Mul (kr, sin)
          ke = Add (kc, ks)
          kt = Transpose <perm = [0, 2, 1]> (ke)
          y = MatMul (qe, kt)
        }
        """,
        {"wq": (8, 6), "wk": (8, 6), "cos": (3, 6), "sin": (3, 6)},
        {"x": (2, 3, 8)},
        [3],
    ),
}


def run(model: ir.Model, network: Network) -> np.ndarray:
    with Session(model, level=Level.AS_WRITTEN, threads=1) as session:
        return session.run(network.feed())["y"]


def assert_close(got: np.ndarray, expected: np.ndarray) -> None:
    assert np.abs(expected).max() > 0
    np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())


def orders(model: ir.Model) -> dict[str, np.ndarray]:
    """An order for each group that allows one; none is the identity."""
    random = np.random.default_rng(2)
    found = {each.name: random.permutation(each.size) for each in groups(model) if each.allows("permute")}
    return {name: np.roll(order, 1) if (np.diff(order) == 1).all() else order for name, order in found.items()}


def keeps(model: ir.Model) -> dict[str, np.ndarray]:
    """About half of the entries of each group that can be pruned, in the order they have."""
    random = np.random.default_rng(3)
    free = [each for each in groups(model) if each.allows("select")]
    return {each.name: np.sort(random.permutation(each.size)[: (each.size + 1) // 2]) for each in free}


@pytest.fixture(params=NETWORKS.values(), ids=NETWORKS)
def network(request) -> Network:
    return request.param


def test_the_groups_that_can_be_pruned_are_found(network):
    assert sorted(each.size for each in groups(network.model()) if each.allows("select")) == network.free


def test_a_reordered_model_computes_the_same(network):
    model = network.model()
    before = weights(model)
    permute(model, orders(model))
    assert any(not np.array_equal(after, before[name]) for name, after in weights(model).items())
    assert_close(run(model, network), run(network.model(), network))


def test_a_pruned_model_computes_what_its_masked_original_does(network):
    for taken in each_and_all(keeps(network.model())):
        pruned, reference = network.model(), network.model()
        select(pruned, taken)
        mask(reference, taken)
        assert size(pruned) < size(network.model())
        assert_close(run(pruned, network), run(reference, network))


def test_masking_other_entries_than_were_dropped_shows(network):
    pruned, reference = network.model(), network.model()
    kept = keeps(pruned)
    select(pruned, kept)
    mask(reference, {name: (keep + 1) % analyse(network.model())[name].size for name, keep in kept.items()})
    got, expected = run(pruned, network), run(reference, network)
    assert np.abs(got - expected).max() > 100 * TOLERANCE * np.abs(expected).max()


def test_a_pruned_model_can_be_pruned_again(network):
    model = network.model()
    select(model, keeps(model))
    again = {each.name: np.arange(1, each.size) for each in groups(model) if each.allows("select") and each.size > 1}
    reference = model.clone()
    select(model, again)
    mask(reference, again)
    assert_close(run(model, network), run(reference, network))


def test_the_inverse_of_an_order_restores_every_bit(network):
    model = network.model()
    before, taken = weights(model), orders(model)
    permute(model, taken)
    permute(model, {name: np.argsort(order) for name, order in taken.items()})
    assert all(np.array_equal(after, before[name]) for name, after in weights(model).items())


def test_pruning_after_reordering_is_one_pruning(network):
    twice, once = network.model(), network.model()
    taken, kept = orders(once), keeps(once)
    permute(twice, {name: taken[name] for name in kept})
    select(twice, kept)
    select(once, {name: taken[name][keep] for name, keep in kept.items()})
    assert all(np.array_equal(after, weights(once)[name]) for name, after in weights(twice).items())


def test_recorded_shapes_are_those_of_the_pruned_model(network):
    model = network.model()
    select(model, keeps(model))
    for each in model.graph.initializers.values():
        assert tuple(each.shape.numpy()) == each.const_value.numpy().shape
    saved = ir.from_proto(ir.to_proto(model))
    assert run(saved, network).shape == run(network.model(), network).shape


def weights(model: ir.Model) -> dict[str, np.ndarray]:
    return {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}


def size(model: ir.Model) -> int:
    return sum(array.size for array in weights(model).values())


def each_and_all(taken: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    return [*({name: keep} for name, keep in taken.items()), taken]


# Refusals


def hidden_and_fixed(model: ir.Model) -> tuple[str, str]:
    found = groups(model)
    hidden = next(each.name for each in found if each.allows("select"))
    return hidden, next(each.name for each in found if not each.allows("permute"))


@pytest.mark.parametrize("edit", [permute, select])
def test_a_refused_edit_leaves_the_model_as_it_was(edit):
    model = mlp()
    before = snapshot(model)
    hidden, fixed = hidden_and_fixed(model)
    order = np.arange(analyse(model)[fixed].size)
    with pytest.raises(EditRefused, match="graph input 'x'"):
        edit(model, {hidden: np.arange(8)[::-1], fixed: order})
    assert snapshot(model) == before


@pytest.mark.parametrize("order", [[0, 1, 2], [0] * 8, [1, 2, 3, 4, 5, 6, 7, 8]], ids=["short", "repeated", "outside"])
def test_an_order_is_a_permutation(order):
    model = mlp()
    hidden, _ = hidden_and_fixed(model)
    with pytest.raises(EditRefused, match="no permutation of 8 entries"):
        permute(model, {hidden: np.array(order)})


@pytest.mark.parametrize("keep", [[], [1, 1], [8], [-1]], ids=["none", "repeated", "outside", "negative"])
def test_what_is_kept_are_entries(keep):
    model = mlp()
    before = snapshot(model)
    hidden, _ = hidden_and_fixed(model)
    with pytest.raises(EditRefused, match="at least one of its 8 entries"):
        select(model, {hidden: np.array(keep, int)})
    assert snapshot(model) == before


def test_an_unknown_group_is_named_with_the_nearest():
    with pytest.raises(UsageError, match=r"did you mean 'w1\[1\]'"):
        permute(mlp(), {"w1[2]": np.arange(8)})


# Laziness


def test_nothing_is_read_before_it_is_needed():
    model, reads = mlp(), []
    for value in model.graph.initializers.values():
        value.const_value = watched(value.const_value, reads)
    hidden, _ = hidden_and_fixed(model)
    select(model, {hidden: np.array([5, 2])})
    permute(model, {hidden: np.array([1, 0])})
    changed = [value.const_value for value in model.graph.initializers.values()]
    assert reads == []
    assert all(isinstance(tensor, ir.LazyTensor) for tensor in changed)
    assert [tuple(tensor.shape.numpy()) for tensor in changed] == [(6, 2), (2,), (2, 3)]
    np.testing.assert_array_equal(changed[0].numpy(), weights(mlp())["w1"][:, [2, 5]])
    assert reads == ["w1"]


def watched(tensor: ir.TensorProtocol, reads: list[str]) -> ir.LazyTensor:
    def read() -> ir.TensorProtocol:
        reads.append(tensor.name)
        return tensor

    return ir.LazyTensor(read, dtype=tensor.dtype, shape=tensor.shape, name=tensor.name)


def test_a_clone_does_not_see_an_edit():
    model = mlp()
    clone = model.clone()
    hidden, _ = hidden_and_fixed(model)
    select(model, {hidden: np.array([0])})
    assert snapshot(clone) == snapshot(mlp())
