"""PyTorch modules in: what they compute, where their parameters went, and that they stay as they were."""

import subprocess
import sys
from functools import cache

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import nn

import bevel
from bevel import registry
from bevel.errors import UnsupportedModel, UsageError
from bevel.frontends import load
from bevel.ir.provenance import Transform, origin, provenance
from tests.zoo.built import SIZES
from tests.zoo.recipes import RECIPES
from tests.zoo.store import folder

TOLERANCE = 1e-5  # relative to the largest output: float32 sums in another order, some hundred operators deep
QUICK = {"resnet", "superresolution"}
ZOO = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in RECIPES]


def run(model, **feed):
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    return session.run(None, {name: tensor.numpy() for name, tensor in feed.items()})


def close(found, expected):
    expected = expected.detach().numpy()
    return np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max()


def initializers(model):
    return {value.name: value for value in model.graph.initializers.values()}


def sources(model):
    return {name: source for name, value in initializers(model).items() if (source := provenance(value))}


def accounted(model):
    return {name for source in sources(model).values() for name in source.names} | set(origin(model).unused)


def operators(model):
    return [node.op_type for node in model.graph]


@cache
def loaded(name):
    """A module of the zoo, its graph, and its state before it was loaded; exports are kept with the zoo's files."""
    recipe = RECIPES[name]
    module, feed = recipe.module(), recipe.example()
    before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    shapes = {key: dict(recipe.axes) for key in feed}
    return module, load(module, feed, dynamic_shapes=shapes, cache=folder() / "torch"), before


@pytest.mark.parametrize("name", ZOO)
def test_the_graph_computes_what_the_module_does(name):
    module, model, _ = loaded(name)
    for size in SIZES:
        feed = RECIPES[name].feed(*size)
        assert close(run(model, **feed)[0], module(**feed))


@pytest.mark.parametrize("name", ZOO)
def test_every_parameter_is_accounted_for_and_can_be_read_back(name):
    _, model, before = loaded(name)
    assert accounted(model) == set(before)
    for value in initializers(model).values():
        source = provenance(value)
        for key in source.names if source else ():
            array = source.invert(value.const_value.numpy())
            assert array.dtype == before[key].numpy().dtype
            np.testing.assert_array_equal(array, before[key].numpy())


@pytest.mark.parametrize("name", ZOO)
def test_the_module_is_not_changed(name):
    module, _, before = loaded(name)
    after = module.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)


@pytest.mark.parametrize("name", ZOO)
def test_pruning_is_verified_on_what_came_from_a_module(name):
    _, model, before = loaded(name)
    copy = model.clone()
    (step,) = bevel.optimize(copy, "prune-channels{ratio=0.5}").steps
    assert step.verdict.kept
    assert step.cost.parameters < bevel.ir.cost.cost(model).parameters
    assert {name for source in sources(copy).values() for name in source.names} | set(origin(model).unused) == set(
        before
    )


class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return self.drop(self.down(self.norm(self.up(x)).relu()))


class Gain(nn.Module):
    """A parameter of one number, and a constant of one number: only the second may be computed beforehand."""

    def __init__(self, gain):
        super().__init__()
        self.gain = gain

    def forward(self, x):
        return x * (self.gain * 2.0).sqrt()


def module_of(forward, **parameters):
    class Made(nn.Module):
        def __init__(self):
            super().__init__()
            for name, tensor in parameters.items():
                self.register_parameter(name, nn.Parameter(tensor))

        def forward(self, x):
            return forward(self, x)

    return Made()


def test_parts_keep_their_modes_and_the_graph_is_for_evaluation():
    module = Layers().train()
    module.norm.eval()
    x = torch.randn(5, 4)
    model = load(module, x)
    assert [part.training for part in module.modules()] == [True, True, False, True, True]
    assert close(run(model, x=x)[0], module.eval()(x))


def test_batch_normalization_stays_and_its_counter_is_unused():
    model = load(Layers(), torch.randn(5, 4))
    assert operators(model).count("BatchNormalization") == 1
    assert sources(model)["norm.running_var"].trainable is False
    assert sources(model)["norm.weight"].trainable is True
    trainable, tensor = origin(model).unused["norm.num_batches_tracked"]
    assert not trainable and tensor.dtype == ir.DataType.INT64 and tensor.numpy() == 0


def test_frozen_parameters_are_not_trainable():
    module = Layers()
    module.up.requires_grad_(False)
    found = {name: source.trainable for name, source in sources(load(module, torch.randn(5, 4))).items()}
    assert not found["up.weight"] and found["down.weight"]


def test_what_is_unused_survives_clones_passes_and_loading_again():
    model = load(Layers(), torch.randn(5, 4))
    bevel.optimize(model, "prune-channels{ratio=0.5}")
    assert set(origin(model).unused) == {"norm.num_batches_tracked"}
    assert set(origin(model.clone()).unused) == {"norm.num_batches_tracked"}
    assert set(origin(load(model)).unused) == {"norm.num_batches_tracked"}


def test_memory_is_shared_with_the_module_and_cannot_be_written():
    module, x = nn.Linear(4, 3), torch.randn(2, 4)
    model = load(module, x)
    with torch.no_grad():
        module.weight.mul_(2)
    assert close(run(model, input=x)[0], module(x))
    array = initializers(model)["weight"].const_value.numpy()
    with pytest.raises(ValueError, match="read-only"):
        array[:] = 0


@pytest.mark.slow
def test_tied_parameters_are_one_initializer_with_all_their_names():
    _, model, _ = loaded("llama-tied")
    (source,) = [source for source in sources(model).values() if "head.weight" in source.names]
    assert set(source.names) == {"head.weight", "tokens.weight"}


def test_equal_parameters_of_different_layers_stay_apart(tmp_path):
    module = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4), nn.LayerNorm(4))
    model = load(module, torch.randn(2, 4))
    assert {"0.weight", "2.weight", "0.bias", "2.bias"} <= set(sources(model))
    bevel.save(model, tmp_path / "norms.onnx")
    assert sources(load(tmp_path / "norms.onnx")) == sources(model)


@pytest.mark.parametrize("external", [False, True])
def test_provenance_is_kept_in_files(tmp_path, external):
    model = load(nn.Linear(40, 30), torch.randn(2, 40))
    bevel.save(model, tmp_path / "linear.onnx", external_data=external)
    again = sources(load(tmp_path / "linear.onnx"))
    assert again == sources(model) and len(again) == 2


def test_a_vector_with_several_uses_stays_one():
    module = module_of(lambda self, x: (x + self.shift).relu() * self.shift[:, None], shift=torch.randn(4))
    model = load(module, torch.randn(4, 4))
    assert list(sources(model)) == ["shift"]
    assert "Unsqueeze" in operators(model)


def test_a_parameter_of_one_number_is_not_folded_away():
    x = torch.randn(2, 4)
    model = load(Gain(nn.Parameter(torch.tensor(3.0))), x)
    assert set(sources(model)) == {"gain"} and "Sqrt" in operators(model)
    constant = load(Gain(torch.tensor(3.0)), x)
    assert not sources(constant) and "Sqrt" not in operators(constant)


LAYOUTS = {
    "transpose": (lambda self, x: x @ self.w.T, torch.randn(3, 4), [("transpose", (1, 0))]),
    "unsqueeze": (lambda self, x: x + self.w[:, None], torch.randn(2), [("unsqueeze", (1,))]),
    "squeeze": (lambda self, x: x + self.w.squeeze(0), torch.randn(1, 4), [("squeeze", (0,))]),
    "reshape": (
        lambda self, x: x + self.w.reshape(1, 4),
        torch.randn(4, 1),
        [("squeeze", (1,)), ("unsqueeze", (0,))],
    ),
    "wider": (lambda self, x: x + self.w.float(), torch.randn(4).half(), [("cast", (ir.DataType.FLOAT16,))]),
    "wider and turned": (
        lambda self, x: x @ self.w.float().T,
        torch.randn(3, 4).bfloat16(),
        [("cast", (ir.DataType.BFLOAT16,)), ("transpose", (1, 0))],
    ),
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_a_layout_is_folded_and_can_be_undone(case):
    forward, weight, steps = LAYOUTS[case]
    module, x = module_of(forward, w=weight), torch.randn(2, 4)
    model = load(module, x)
    (value,) = [value for value in initializers(model).values() if provenance(value)]
    assert provenance(value).transforms == tuple(Transform(*step) for step in steps)
    assert len(operators(model)) == 1
    assert close(run(model, x=x)[0], module(x))
    back = provenance(value).invert(value.const_value.numpy()).astype(np.float32)
    np.testing.assert_array_equal(back, weight.float().numpy())


LEFT = {
    "two uses": (lambda self, x: x @ self.w.T @ self.w, torch.randn(3, 4), "Transpose"),
    "a cast that rounds": (lambda self, x: (x.half() + self.w.half()).float(), torch.randn(4), "Cast"),
    "a reshape that moves": (lambda self, x: x + self.w.reshape(2, 4), torch.randn(4, 2), "Reshape"),
}


@pytest.mark.parametrize("case", LEFT)
def test_other_layouts_are_left_alone(case):
    forward, weight, operator = LEFT[case]
    model = load(module_of(forward, w=weight), torch.randn(2, 4))
    assert operator in operators(model)
    assert sources(model)["w"].transforms == ()


def test_the_layout_of_a_tied_parameter_is_left_alone():
    module = module_of(lambda self, x: x @ self.w.T, w=torch.randn(3, 4))
    module.alias = module.w
    model = load(module, torch.randn(2, 4))
    assert operators(model) == ["Transpose", "MatMul"]
    assert sources(model)["w"].names == ("w", "alias")


def test_buffers_outside_the_state_dict_are_constants():
    module = module_of(lambda self, x: x * self.table, w=torch.randn(4))
    module.register_buffer("table", torch.randn(4), persistent=False)
    model = load(module, torch.randn(2, 4))
    assert not sources(model) and set(origin(model).unused) == {"w"}


def test_complex_parameters_are_constants():
    module = module_of(lambda self, x: x * torch.view_as_real(self.w)[..., 0], w=torch.randn(4, dtype=torch.complex64))
    x = torch.randn(2, 4)
    model = load(module, x)
    assert close(run(model, x=x)[0], module(x))
    assert not sources(model) and accounted(model) == {"w"}


class Homonyms(nn.Module):
    """A parameter is called as the input is, others as operators and outputs are."""

    def __init__(self):
        super().__init__()
        self.x, self.add = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(4))

    def forward(self, x):
        return {"add": x + self.x, "x": self.add * x, "same": self.add}


def test_parameters_and_inputs_may_have_one_name():
    module, x = Homonyms(), torch.randn(2, 4)
    model = load(module, x)
    assert [value.name for value in model.graph.inputs] == ["x"]
    assert accounted(model) == {"x", "add"}
    for found, expected in zip(run(model, x=x), module(x).values(), strict=True):
        assert close(found, expected)


def test_an_exported_program_needs_no_inputs():
    module, x = Layers().eval(), torch.randn(5, 4)
    program = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    model = load(program)
    x = torch.randn(3, 4)
    assert close(run(model, x=x)[0], module(x))
    assert accounted(model) == set(module.state_dict())
    assert sources(model)["up.weight"].trainable


@pytest.mark.parametrize("given", [{"example_inputs": 1}, {"dynamic_shapes": {}}, {"cache": "folder"}])
def test_an_exported_program_takes_nothing_else(given):
    program = torch.export.export(nn.ReLU(), (torch.randn(2),))
    with pytest.raises(UsageError, match="an ExportedProgram takes no"):
        load(program, **given)


@pytest.mark.parametrize("given", [{"example_inputs": 1}, {"dynamic_shapes": {}}, {"cache": "folder"}])
def test_onnx_takes_nothing_else(given):
    with pytest.raises(UsageError, match=f"an ONNX model takes no {next(iter(given))}"):
        load("model.onnx", **given)


def test_a_module_needs_example_inputs():
    with pytest.raises(UsageError, match=r"Linear.*needs example_inputs\n  give a tensor"):
        load(nn.Linear(4, 3))


def test_parameters_without_content_are_refused():
    with pytest.raises(UnsupportedModel, match="weight: has no content"):
        load(nn.Linear(4, 3, device="meta"), torch.randn(2, 4))


def test_reading_onnx_does_not_import_torch(tmp_path):
    bevel.save(load(nn.Linear(4, 3), torch.randn(2, 4)), tmp_path / "model.onnx")
    code = "import sys; from bevel.frontends import load; load(sys.argv[1]); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "model.onnx")], check=False).returncode == 0


def test_a_plugin_reads_the_classes_of_its_package(monkeypatch):
    class Foreign:
        pass

    monkeypatch.setattr(registry, "frontends", lambda: {"tests": lambda source, inputs, **options: (source, options)})
    source = Foreign()
    assert load(source, cache="here") == (source, {"dynamic_shapes": None, "cache": "here", "functions": "inline"})
