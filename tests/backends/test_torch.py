import copy
import pickle
import subprocess
import sys

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch.export import Dim

import bevel
from bevel.backends.torch import answer, answer_exactly, lower, to_torch
from bevel.errors import PromiseBroken, UnsupportedModel
from bevel.modules import check
from tests import zoo
from tests.graphs import MLP, MLP_WEIGHTS, graph, mlp, proto
from tests.zoo.recipes import RECIPES
from tests.zoo.store import folder


def loaded(name):
    """A module of the zoo, inputs, and its graph; exports are kept with the zoo's files."""
    recipe = RECIPES[name]
    module, feed = recipe.module(), recipe.feed(2, 12)
    shapes = {key: dict(recipe.axes) for key in feed}
    return module, feed, bevel.load(module, feed, dynamic_shapes=shapes, cache=folder() / "torch")


@pytest.mark.parametrize("style", zoo.STYLES)
@pytest.mark.parametrize("name", zoo.NAMES)
def test_every_architecture_in_every_exporters_style(name, style):
    module = to_torch(bevel.load(zoo.path(name, style)))
    for feed, expected in zoo.trials(name):
        (found,) = answer(module, feed).values()
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * abs(expected).max())


@pytest.mark.parametrize("name", ["resnet", "bert", "llama-tied", "lstm", "swin", "shufflenet"])
def test_a_module_comes_back_with_its_names_values_and_gradients(name):
    module, feed, model = loaded(name)
    back = to_torch(model)
    assert list(back.state_dict()) == list(module.state_dict())
    for key, tensor in module.state_dict().items():
        assert torch.equal(back.state_dict()[key], tensor), key
    assert [name for name, _ in back.named_parameters()] == [name for name, _ in module.named_parameters()]
    for either in (module, back):
        either.train()
    torch.testing.assert_close(back(**feed), module(**feed), rtol=1e-4, atol=1e-4)
    for either in (module, back):
        either.zero_grad()
        either(**feed).square().mean().backward()
    for key, parameter in module.named_parameters():
        found = back.get_parameter(key).grad
        assert (found is None) == (parameter.grad is None), key
        if found is not None:
            # A bias before a normalisation has no gradient but rounding; 1e-7 of the loss's order is not compared.
            scale = parameter.grad.abs().max().item()
            torch.testing.assert_close(found, parameter.grad, rtol=1e-3, atol=1e-3 * scale + 1e-7, msg=key)


def test_batch_statistics_are_taken_and_kept_in_training_mode_only():
    module, feed, model = loaded("resnet")
    back = to_torch(model)
    statistics = [key for key in module.state_dict() if key.endswith("running_mean")]
    before = {key: back.get_buffer(key).clone() for key in statistics}
    back(**feed)
    assert all(torch.equal(before[key], back.get_buffer(key)) for key in statistics)
    for either in (module, back):
        either.train()(**feed)
    for key in statistics:
        assert not torch.equal(before[key], back.get_buffer(key)), key
        torch.testing.assert_close(back.get_buffer(key), module.get_buffer(key), msg=key)


@pytest.mark.parametrize("name", ["gpt", "resnet", "swin", "shufflenet", "llama-fused"])
def test_torch_exports_it_with_dynamic_sizes(name):
    recipe = RECIPES[name]
    module, feed, model = loaded(name)
    sizes = tuple(dict.fromkeys(recipe.axes, Dim.DYNAMIC) for _ in feed)
    program = torch.export.export(to_torch(model), tuple(feed.values()), dynamic_shapes=sizes)
    other = recipe.feed(3, 9)
    torch.testing.assert_close(program.module()(*other.values()), module(**other), rtol=1e-4, atol=1e-4)


def test_it_loads_again_under_the_same_names():
    module, feed, model = loaded("llama")
    again = bevel.load(to_torch(model), tuple(feed.values()))
    assert to_torch(again).state_dict().keys() == module.state_dict().keys()


def test_it_compiles():
    module, feed, model = loaded("gpt")
    compiled = torch.compile(to_torch(model), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(**feed), module(**feed), rtol=1e-4, atol=1e-4)


def test_ties_stay_ties():
    module, _, model = loaded("llama-tied")
    back = to_torch(model)
    names = [name for name, _ in back.named_parameters(remove_duplicate=False)]
    assert len(names) == len([name for name, _ in back.named_parameters()]) + 1
    assert sum(p.numel() for p in back.parameters()) == sum(p.numel() for p in module.parameters())


def test_it_follows_to_other_types():
    module, feed, model = loaded("llama")
    double = to_torch(model).double()
    torch.testing.assert_close(double(**feed), module.double()(**feed), rtol=1e-6, atol=1e-6)
    assert to_torch(model).bfloat16()(**feed).dtype is torch.bfloat16


def test_parameters_are_its_own():
    module, _, model = loaded("gpt")
    back = to_torch(model)
    with torch.no_grad():
        for parameter in back.parameters():
            parameter.zero_()
    assert all(parameter.abs().sum() > 0 for parameter in module.parameters())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_it_can_be_copied_and_pickled(copied):
    module = to_torch(mlp())
    other, x = copied(module), torch.randn(5, 6)
    assert torch.equal(module(x), other(x))
    with torch.no_grad():
        other.w1.zero_()
    assert not torch.equal(module(x), other(x))


def test_the_code_is_what_runs():
    module = to_torch(mlp())
    assert module.code == (
        "def forward(self, x):\n"
        "    h = gemm(x, self.w1, self.b1)\n"
        "    r = torch.relu(h); del h\n"
        "    y = r @ self.w2; del r\n"
        "    return y\n"
    )
    assert list(module.state_dict()) == ["w1", "b1", "w2"]


def test_it_is_written_as_python_that_needs_no_bevel(tmp_path):
    module, feed, model = loaded("llama-tied")
    back = to_torch(model)
    back.write(tmp_path / "llama.py")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["llama.py", "llama.safetensors"]
    torch.save((feed["ids"], back(**feed)), tmp_path / "trial.pt")
    script = (
        "import sys, torch, llama; model = llama.load(); ids, want = torch.load('trial.pt');"
        "assert torch.equal(model(ids), want); assert not any(name.split('.')[0] == 'bevel' for name in sys.modules);"
        "print(len(list(model.parameters())), *model.state_dict())"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    count, *names = done.stdout.split()
    assert int(count) == len(list(module.parameters()))
    assert set(names) == set(module.state_dict())


def test_a_written_file_without_its_weights_says_so(tmp_path):
    to_torch(mlp()).write(tmp_path / "mlp.py")
    (tmp_path / "mlp.safetensors").unlink()
    script = [sys.executable, "-c", "import mlp; mlp.load()"]
    done = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode and "mlp.safetensors" in done.stderr


def foreign(operator):
    """The network with an operator of another domain in it."""
    model = proto(MLP.replace("Relu", operator), MLP_WEIGHTS)
    model.opset_import.add(domain=operator.rpartition(".")[0], version=1)
    return bevel.load(model)


def test_an_operator_without_a_function_is_refused_by_name():
    model = foreign("com.example.Blur")
    with pytest.raises(UnsupportedModel, match=r"'r' \(Blur\).*no torch function in com.example"):
        to_torch(model)


def test_what_torch_raises_is_told_with_the_line():
    with pytest.raises(UnsupportedModel, match="does not run in torch") as caught:
        answer(to_torch(mlp()), {"x": np.ones((2, 5), np.float32)})
    assert caught.value.where.startswith("at `h = ")


def test_an_attribute_that_a_function_does_not_know_is_refused():
    model = mlp()
    node = next(node for node in model.graph if node.op_type == "Gemm")
    node.attributes.add(ir.AttrInt64("rounds", 3))
    with pytest.raises(UnsupportedModel, match="rounds"):
        to_torch(model)


def test_plugins_add_functions():
    @lower("Blur", domain="com.test")
    def blur(x: torch.Tensor) -> torch.Tensor:
        return x * 0.5

    assert "blur(h)" in to_torch(foreign("com.test.Blur")).code


def test_the_face_verifies_in_onnx_runtime():
    assert bevel.to_torch(mlp()).inputs == ("x",)


def test_a_wrong_module_is_caught():
    model = mlp()
    module = to_torch(model)
    feeds = [{"x": np.ones((2, 6), np.float32)}]
    check(model, module, feeds, "to_torch")
    with torch.no_grad():
        module.w2[0, 0] += 1
    with pytest.raises(PromiseBroken, match="'y'"):
        check(model, module, feeds, "to_torch")


UNSTABLE = """
unstable (float[n, 500] x) => (float[n, 500] y) {
  big = Constant <value = float {1000.0}> ()
  axis = Constant <value_ints = [1]> ()
  shifted = Add (x, big)
  square = Mul (shifted, shifted)
  mean = ReduceMean (shifted, axis)
  squares = ReduceMean (square, axis)
  again = Mul (mean, mean)
  variance = Sub (squares, again)
  scaled = Mul (x, w)
  y = Add (scaled, variance)
}
"""


def test_what_a_network_rounds_itself_is_no_error_of_the_module(caplog):
    model = graph(UNSTABLE, {"w": (500,)})
    module = to_torch(model)
    feeds = [{"x": np.random.default_rng(0).standard_normal((4, 500)).astype(np.float32)}]
    check(model, module, feeds, "to_torch")
    assert "own rounding" in caplog.text
    with torch.no_grad():
        module.w[0] += 100
    with pytest.raises(PromiseBroken):
        check(model, module, feeds, "to_torch")


MIXED = """
mixed (float[n, 6] x) => (float[n, 6] y) {
  wide = MatMul (x, w)
  h = MatMul (wide, v)
  half = Cast <to = 10> (h)
  summed = MatMul (half, u)
  y = Cast <to = 1> (summed)
}
"""


def test_a_wrong_module_that_knows_no_double_precision_is_caught():
    source = proto(MIXED, {"w": (6, 20), "v": (20, 6)})
    weights = np.random.default_rng(1).standard_normal((6, 6)).astype(np.float16)
    source.graph.initializer.append(onnx.numpy_helper.from_array(weights, "u"))
    model = bevel.load(source)
    module = to_torch(model)
    feeds = [{"x": np.ones((2, 6), np.float32)}]
    check(model, module, feeds, "to_torch")
    with pytest.raises(UnsupportedModel, match="does not run in torch"):
        answer_exactly(module, feeds[0])
    with torch.no_grad():
        module.w[0, 0] += 1
    with pytest.raises(PromiseBroken, match="'y'"):
        check(model, module, feeds, "to_torch")


def test_an_input_with_a_default_may_be_left_away():
    model = proto("agraph (float[2] x, float[2] scale) => (float[2] y) { y = Mul (x, scale) }", {"scale": (2,)})
    module = to_torch(bevel.load(model))
    x = torch.ones(2)
    scale = torch.tensor(onnx.numpy_helper.to_array(model.graph.initializer[0]))
    assert torch.equal(module(x), scale) and torch.equal(module(x, scale=2 * x), 2 * x)
    assert "def forward(self, x, *, scale=None):" in module.code
    check(bevel.load(model), module, [{"x": np.ones(2, np.float32)}], "to_torch")
