"""Gradients by initializer, against torch written out by hand and against differences."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F

import bevel
from bevel.backends.torch.answers import fisher, predicted, reading
from bevel.backends.torch.gradients import gradients
from bevel.errors import UnsupportedModel
from bevel.ir.provenance import provenance
from tests import zoo
from tests.graphs import MLP, MLP_WEIGHTS, graph, mlp, proto, snapshot
from tests.passes.nets import CONVS, CONVS_WEIGHTS, GROUPED, GROUPED_WEIGHTS
from tests.zoo.recipes import RECIPES

EMBEDDING = """
lookup (int64[n, s] ids) => (float[n, s, 7] y) {
  e = Gather (table, ids)
  h = MatMul (e, w)
  r = Relu (h)
  y = MatMul (r, back)
}
"""
EMBEDDING_WEIGHTS = {"table": (7, 4), "w": (4, 6), "back": (6, 7)}


def one(model, feeds, kind, seed=0):
    (found,) = gradients(model, feeds, kind, seed)
    return found


def weights(model):
    """The initializers as torch tensors that are differentiated by."""
    arrays = {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}
    return {
        name: torch.tensor(array, requires_grad=array.dtype.kind == "f" and array.size > 1)
        for name, array in arrays.items()
    }


def feed(*shape, seed=1):
    return {"x": np.random.default_rng(seed).standard_normal(shape).astype(np.float32)}


def run_mlp(w, x):
    return (x @ w["w1"] + w["b1"]).relu() @ w["w2"]


def run_convs(w, x):
    h = F.batch_norm(F.conv2d(x, w["w1"], w["b1"]), w["mean"].detach(), w["variance"].detach(), w["gain"], w["shift"])
    return F.conv2d(h.relu(), w["w2"])


def run_grouped(w, x):
    q = (x @ w["wq"]).reshape(*x.shape[:2], 2, 2, 3).permute(0, 2, 3, 1, 4)
    k, v = ((x @ w[name]).reshape(*x.shape[:2], 2, 1, 3).permute(0, 2, 3, 1, 4) for name in ("wk", "wv"))
    o = (q @ k.transpose(-1, -2)).softmax(-1) @ v
    return o.permute(0, 3, 1, 2, 4).reshape(*x.shape[:2], 12) @ w["wo"]


def convs():
    model = graph(CONVS, CONVS_WEIGHTS)
    variance = np.abs(model.graph.initializers["variance"].const_value.numpy()) + 0.5
    model.graph.initializers["variance"].const_value = ir.tensor(variance, name="variance")
    return model


def softened(logits):
    """The loss against the likeliest class, after the logits' deviation is brought down to one."""
    logits = (logits / logits.detach().std(-1).mean().clamp_min(1)).flatten(0, -2)
    return F.cross_entropy(logits, logits.argmax(1))


def half_square(numbers):
    return numbers.square().mean() / numbers.detach().square().mean() / 2


CASES = {
    "mlp": (mlp, run_mlp, softened, (5, 6)),
    "convs": (convs, run_convs, half_square, (2, 3, 6, 6)),
    "attention": (lambda: graph(GROUPED, GROUPED_WEIGHTS), run_grouped, softened, (2, 5, 8)),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_predicted_has_the_gradients_that_torch_finds(case):
    make, run, loss, shape = CASES[case]
    model, feeds = make(), [feed(*shape), feed(*shape, seed=2)]
    w = weights(model)
    sum(loss(run(w, torch.tensor(each["x"]))) / 2 for each in feeds).backward()
    found = one(model, feeds, "predicted")
    assert found.keys() == {name for name, tensor in w.items() if tensor.grad is not None}
    for name, array in found.items():
        np.testing.assert_allclose(array, w[name].grad, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("text", "shapes", "shape"), [(MLP, MLP_WEIGHTS, (5, 6)), (GROUPED, GROUPED_WEIGHTS, (2, 5, 8))]
)
def test_curvature_is_what_the_gradient_changes_by_along_itself(text, shapes, shape):
    feeds = [{"x": feed(*shape, seed=n)["x"].astype(np.float64)} for n in (1, 2)]
    slopes, step = one(in_double(text, shapes), feeds, "predicted"), 1e-4
    ahead, behind = (one(in_double(text, shapes, slopes, way * step), feeds, "predicted") for way in (1, -1))
    for name, found in one(in_double(text, shapes), feeds, "curvature").items():
        expected = (ahead[name] - behind[name]) / (2 * step)
        assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max(), name


def in_double(text, shapes, slopes=None, step=0.0):
    """A network in double precision, with weights small enough for its logits, moved along slopes."""
    model = onnx.parser.parse_model('<ir_version: 10, opset_import: ["" : 21]> ' + text.replace("float", "double"))
    rng = np.random.default_rng(0)
    for name, shape in shapes.items():
        array = 0.3 * rng.standard_normal(shape) + step * (slopes[name] if slopes else 0)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return bevel.load(model)


def test_the_second_moment_of_fisher_gradients_is_the_fisher_information_of_classes():
    model, x = graph("one (float[n, 3] x) => (float[n, 4] y) { y = MatMul (x, w) }", {"w": (3, 4)}), feed(3, 3)
    z = x["x"] @ model.graph.initializers["w"].const_value.numpy()
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    expected = np.zeros((12, 12))
    for row, shares in zip(x["x"], p, strict=True):
        expected += np.kron(np.outer(row, row), np.diag(shares) - np.outer(shares, shares)) / 3
    check_second_moment(model, x, expected)


def test_the_second_moment_of_fisher_gradients_is_the_gram_matrix_of_numbers():
    model = graph("one (float[n, 3] x) => (float[n, 2] y) { h = MatMul (x, w)  y = Tanh (h) }", {"w": (3, 2)})
    x, w = feed(3, 3), model.graph.initializers["w"].const_value.numpy()
    y = np.tanh(x["x"] @ w)
    jacobian = np.einsum("ni,nj,jk->njik", x["x"], 1 - y**2, np.eye(2)).reshape(6, 6)
    check_second_moment(model, x, jacobian.T @ jacobian / np.square(y).sum())


def check_second_moment(model, x, expected, draws=4000):
    found = np.stack([each["w"].ravel() for each in gradients(model, [x] * draws, "fisher", 0)])
    moment = found.T @ found / draws
    # Each entry is a mean of products of two nearly normal numbers: right to sqrt(2 / draws) of the largest.
    assert np.abs(moment - expected).max() < 5 * np.sqrt(2 / draws) * expected.max()


def test_a_sure_model_still_has_gradients():
    model = graph("one (float[n, 3] x) => (float[n, 4] y) { y = MatMul (x, w) }", {"w": (3, 4)})
    scaled = model.graph.initializers["w"].const_value.numpy() * np.float32(100)
    model.graph.initializers["w"].const_value = ir.tensor(scaled, name="w")
    x = feed(1, 3)
    logits = torch.tensor(x["x"] @ scaled)
    assert torch.equal(F.cross_entropy(logits, logits.argmax(1)), torch.tensor(0.0))
    assert np.abs(one(model, [x], "predicted")["w"]).max() > 1e-3
    assert np.abs(one(model, [x], "fisher")["w"]).max() > 0


def test_flow_is_the_gradient_of_a_positive_network_fed_with_ones():
    model = mlp()
    w = {name: value.abs().double().detach().requires_grad_() for name, value in weights(model).items()}
    run_mlp(w, torch.ones(4, 6, dtype=torch.float64)).sum().backward()
    found = one(model, [feed(4, 6)], "flow")
    for name, array in found.items():
        np.testing.assert_allclose(array, w[name].grad, rtol=1e-12)
    assert found["w1"].dtype == np.float64


def test_flow_is_conserved_through_batch_normalization():
    text = CONVS.replace("h = Conv <kernel_shape = [3, 3]> (x, w1, b1)", "h = Conv <kernel_shape = [3, 3]> (x, w1)")
    shapes = {name: shape for name, shape in CONVS_WEIGHTS.items() if name not in ("b1", "shift")}
    model = graph(text, {**shapes, "shift": (8,)})
    arrays = {"variance": np.full(8, 0.25), "mean": np.full(8, 100.0), "shift": np.zeros(8)}
    for name, array in arrays.items():
        model.graph.initializers[name].const_value = ir.tensor(array.astype(np.float32), name=name)
    found = one(model, [feed(2, 3, 6, 6)], "flow")
    w1, w2 = (np.abs(model.graph.initializers[name].const_value.numpy()) for name in ("w1", "w2"))
    into, out = (w1 * found["w1"]).sum((1, 2, 3)), (w2 * found["w2"]).sum((0, 2, 3))
    assert (into > 0).all()
    np.testing.assert_allclose(into, out, rtol=1e-6)


@pytest.mark.parametrize("operator", ["LayerNormalization", "RMSNormalization", "GroupNormalization"])
def test_flow_passes_normalizations_that_would_stop_it(operator):
    attributes = "<num_groups = 2>" if operator == "GroupNormalization" else ""
    bias = "" if operator == "RMSNormalization" else ", shift"
    text = f"""net (float[n, 6] x) => (float[n, 8] y) {{
      h = MatMul (x, w)
      y = {operator} {attributes} (h, gain{bias})
    }}"""
    shapes = {"w": (6, 8), "gain": (8,), "shift": (8,)}
    model = proto(text, {name: shape for name, shape in shapes.items() if name in text})
    model.opset_import[0].version = 23
    loaded = bevel.load(model)
    gain = np.abs(loaded.graph.initializers["gain"].const_value.numpy())
    np.testing.assert_allclose(one(loaded, [feed(4, 6)], "flow")["w"], np.tile(4 * gain, (6, 1)), rtol=1e-6)


def test_token_ids_stay_what_they_are():
    model = graph(EMBEDDING, EMBEDDING_WEIGHTS)
    ids = {"ids": np.array([[1, 3], [3, 5]])}
    for kind in ("fisher", "predicted", "curvature", "flow"):
        table = one(model, [ids], kind)["table"]
        assert np.flatnonzero(np.abs(table).sum(1)).tolist() == [1, 3, 5]


def test_a_tied_matrix_has_the_gradient_of_all_its_uses():
    tied = """
    tied (int64[n, s] ids) => (float[n, s, 7] y) {
      e = Gather (table, ids)
      t = Transpose <perm = [1, 0]> (table)
      y = MatMul (e, t)
    }
    """
    model = graph(tied, {"table": (7, 4)})
    ids = np.array([[1, 3], [3, 5]])
    table = weights(model)["table"]
    softened(table[torch.tensor(ids)] @ table.T).backward()
    np.testing.assert_allclose(one(model, [{"ids": ids}], "predicted")["table"], table.grad, rtol=1e-4, atol=1e-6)


def test_initializers_of_one_parameter_have_gradients_of_their_own():
    recipe = RECIPES["llama-tied"]
    module, feeds = recipe.module(), recipe.feed(2, 12)
    model = bevel.load(module, feeds, dynamic_shapes={name: dict(recipe.axes) for name in feeds})
    before = snapshot(model)
    found = one(model, [{name: value.numpy() for name, value in feeds.items()}], "predicted")
    assert snapshot(model) == before
    softened(module(**feeds)).backward()
    sources = {name: provenance(value) for name, value in model.graph.initializers.items() if name in found}
    for key, parameter in module.named_parameters():
        parts = [source.invert(found[name]) for name, source in sources.items() if source and key in source.names]
        scale = parameter.grad.abs().max().item()
        np.testing.assert_allclose(sum(parts), parameter.grad, rtol=1e-3, atol=1e-3 * scale, err_msg=key)


def test_the_seed_decides_and_torchs_own_generator_is_left_alone():
    model, feeds = mlp(), [feed(4, 6)] * 2
    state = torch.get_rng_state()
    first, again, other = (list(gradients(model, feeds, "fisher", seed)) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    for name in first[0]:
        assert np.array_equal(first[0][name], again[0][name])
        assert not np.array_equal(first[0][name], other[0][name])
        assert not np.array_equal(first[0][name], first[1][name])


def test_half_precision_is_differentiated_in_single():
    text = MLP.replace("float[", "float16[")
    model = onnx.parser.parse_model('<ir_version: 10, opset_import: ["" : 21]> ' + text)
    rng = np.random.default_rng(0)
    for name, shape in MLP_WEIGHTS.items():
        model.graph.initializer.append(
            onnx.numpy_helper.from_array(rng.standard_normal(shape).astype(np.float16), name)
        )
    half = bevel.load(model)
    x = feed(5, 6)["x"].astype(np.float16)
    found = one(half, [{"x": x}], "predicted")
    single = {name: value.detach().float().requires_grad_() for name, value in weights(half).items()}
    softened(run_mlp(single, torch.tensor(x).float())).backward()
    for name, array in found.items():
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, single[name].grad, rtol=1e-4, atol=1e-5)


QUANTIZED = """
quantized (float[n, 6] x) => (float[n, 3] y)
<float scale = {0.05}, uint8 zero = {128}> {
  h = MatMul (x, w1)
  q = QuantizeLinear (h, scale, zero)
  d = DequantizeLinear (q, scale, zero)
  y = MatMul (d, w2)
}
"""
STORED = """
stored (float[n, 6] x) => (float[n, 3] y)
<float scale = {0.05}, int8[2, 3] q = {1, 2, 3, 4, 5, 6}> {
  h = MatMul (x, w1)
  w = DequantizeLinear (q, scale)
  y = MatMul (h, w)
}
"""


@pytest.mark.parametrize(
    ("text", "shapes", "node"),
    [
        (QUANTIZED, {"w1": (6, 8), "w2": (8, 3)}, r"'q' \(QuantizeLinear\)"),
        (STORED, {"w1": (6, 2)}, r"'w' \(DequantizeLinear\)"),
    ],
)
def test_what_is_quantized_is_refused_by_name(text, shapes, node):
    with pytest.raises(UnsupportedModel, match=node):
        one(graph(text, shapes), [feed(2, 6)], "predicted")


def test_bytes_that_depend_on_no_weight_are_not_refused():
    text = """image (uint8[n, 6] x) => (float[n, 3] y) {
      f = Cast <to = 1> (x)
      y = MatMul (f, w)
    }"""
    x = {"x": np.arange(12, dtype=np.uint8).reshape(2, 6)}
    assert np.abs(one(graph(text, {"w": (6, 3)}), [x], "predicted")["w"]).max() > 0


def test_an_operator_without_a_torch_function_is_refused_by_name():
    model = proto(
        "net (float[n, 6] x) => (float[n, 3] y) { h = MatMul (x, w)  y = com.example.Odd (h) }", {"w": (6, 3)}
    )
    model.opset_import.append(onnx.helper.make_opsetid("com.example", 1))
    with pytest.raises(UnsupportedModel, match="Odd"):
        one(bevel.load(model), [feed(2, 6)], "predicted")


def test_inputs_that_do_not_fit_are_refused_with_the_line():
    with pytest.raises(UnsupportedModel, match="does not run in torch") as caught:
        one(mlp(), [feed(2, 5)], "predicted")
    assert caught.value.where.startswith("at `h = ")


def test_a_model_without_weights_or_floats_is_refused():
    nothing = graph("net (float[n, 6] x) => (float[n, 6] y) { y = Relu (x) }")
    with pytest.raises(UnsupportedModel, match="no weight"):
        one(nothing, [feed(2, 6)], "predicted")
    places = graph(
        "net (float[n, 6] x) => (int64[n] y) { h = MatMul (x, w)  y = ArgMax <axis = 1, keepdims = 0> (h) }",
        {"w": (6, 3)},
    )
    with pytest.raises(UnsupportedModel, match="no floats"):
        one(places, [feed(2, 6)], "predicted")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("y = MatMul (x, w)", "logits"),
        ("h = MatMul (x, w)  y = Add (h, b)", "logits"),
        ("h = MatMul (x, w)  y = Softmax (h)", "probabilities"),
        ("h = MatMul (x, w)  y = Softmax <axis = 0> (h)", "numbers"),
        ("h = MatMul (x, w)  y = Tanh (h)", "numbers"),
        ("h = MatMul (x, w)  y = Add (h, h)", "logits"),
    ],
)
def test_outputs_are_read_by_what_gives_them(line, expected):
    shapes = {"w": (6, 3), **({"b": (3,)} if "b)" in line else {})}
    model = graph(f"net (float[n, 6] x) => (float[n, 3] y) {{ {line} }}", shapes)
    assert reading(model.graph.outputs[0]) == expected


def test_only_classes_count_where_there_are_some():
    model = graph(
        "net (float[n, 6] x) => (float[n, 3] y, float[n, 8] cache) "
        "{ h = MatMul (x, w1)  cache = Tanh (h)  y = MatMul (cache, w2) }",
        {"w1": (6, 8), "w2": (8, 3)},
    )
    w = weights(model)
    softened((torch.tensor(feed(2, 6)["x"]) @ w["w1"]).tanh() @ w["w2"]).backward()
    np.testing.assert_allclose(one(model, [feed(2, 6)], "predicted")["w1"], w["w1"].grad, rtol=1e-4, atol=1e-6)


def test_losses_are_finite_where_probabilities_are_zero():
    rows = torch.tensor([[1.0, 0.0, 0.0]], requires_grad=True)
    for loss in (fisher, predicted):
        (slope,) = torch.autograd.grad(loss(rows, "probabilities"), rows)
        assert slope.isfinite().all()


@pytest.mark.parametrize("kind", ["fisher", "predicted", "curvature", "flow"])
@pytest.mark.parametrize("name", ["llama-fused", "lstm", "swin", "unet"])
def test_real_networks_are_differentiated(name, kind):
    model = bevel.load(zoo.path(name, "dynamo-optimized"))
    inputs, _ = zoo.trials(name)[0]
    found = one(model, [inputs], kind)
    assert all(np.isfinite(array).all() for array in found.values())
    for key, array in found.items():
        assert array.shape == tuple(model.graph.initializers[key].shape)
    assert np.mean([np.abs(array).max() > 0 for array in found.values()]) > 0.9
