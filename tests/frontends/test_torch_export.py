"""How modules are exported: arguments, sizes that vary, names of outputs, silence, and what is done about failures."""

import logging
import warnings
from collections import namedtuple
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import nn
from torch.utils import _pytree

from bevel.errors import UnsupportedModel, UsageError
from bevel.frontends import load
from bevel.frontends.torch.arguments import arguments_of
from bevel.frontends.torch.remedies import NOTES

X, Y = torch.randn(2, 4), torch.randn(2, 4)


class Sum(nn.Module):
    def forward(self, x, y=None, *, scale=1.0):
        return x * scale if y is None else (x + y) * scale


class Returning(nn.Module):
    def __init__(self, result):
        super().__init__()
        self.result = result

    def forward(self, x):
        return self.result(x)


def names(values):
    return [value.name for value in values]


def shapes(values):
    return [str(value.shape) for value in values]


FORMS = {
    "a tensor": (X, ["x"]),
    "positional arguments": ((X, Y), ["x", "y"]),
    "a list": ([X, Y], ["x", "y"]),
    "keyword arguments": ({"x": X, "y": Y}, ["x", "y"]),
    "keyword arguments in another order": ({"y": Y, "x": X}, ["x", "y"]),
    "both": (((X,), {"y": Y, "scale": 3.0}), ["x", "y"]),
}


@pytest.mark.parametrize("form", FORMS)
def test_example_inputs_come_in_many_forms(form):
    given, expected = FORMS[form]
    assert names(load(Sum(), given).graph.inputs) == expected


def test_what_is_no_tensor_is_part_of_the_graph():
    model = load(Sum(), ((X,), {"scale": 3.0}))
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    np.testing.assert_allclose(session.run(None, {"x": X.numpy()})[0], X * 3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"z": X}, "do not fit Sum.forward: missing a required argument: 'x'\n  it takes x, y, scale"),
        ((X, Y, X), "do not fit Sum.forward: too many positional arguments"),
        ("x", "example_inputs are a str\n  give a tensor, a tuple"),
        (3, "example_inputs are a int"),
    ],
)
def test_examples_that_do_not_fit_are_refused(given, message):
    with pytest.raises(UsageError, match=message):
        load(Sum(), given)


SIZES = {
    "by name": {"x": {0: "batch"}, "y": {0: "batch"}},
    "from the end": {"x": {-2: "batch"}, "y": {-2: "batch"}},
    "by place": ({0: "batch"}, {0: "batch"}),
    "for all axes": {"x": ["batch", None], "y": ("batch", None)},
    "as torch has them": {"x": {0: torch.export.Dim("batch")}, "y": {0: torch.export.Dim("batch")}},
}


@pytest.mark.parametrize("form", SIZES)
def test_sizes_that_vary_have_names(form):
    model = load(Sum(), (X, Y), dynamic_shapes=SIZES[form])
    assert shapes([*model.graph.inputs, *model.graph.outputs]) == ["[batch,4]"] * 3


def test_what_is_not_mentioned_is_fixed():
    model = load(Sum(), ((X, Y[:1]), {}), dynamic_shapes={"x": {0: "batch"}})
    assert shapes(model.graph.inputs) == ["[batch,4]", "[1,4]"]


def test_sizes_without_names_vary_too():
    model = load(Sum(), X, dynamic_shapes={"x": {0: torch.export.Dim.AUTO}})
    assert isinstance(model.graph.inputs[0].shape[0], ir.SymbolicDim)


def test_sizes_computed_from_others_use_their_names():
    model = load(Returning(lambda x: torch.cat([x, x])), X, dynamic_shapes={"x": {0: "batch"}})
    assert shapes(model.graph.outputs) == ["[2*batch,4]"]


def test_sizes_inside_lists_and_dicts_have_names():
    class Nested(nn.Module):
        def forward(self, parts):
            return parts["a"] + parts["b"][0]

    given = {"parts": {"a": {0: "batch"}, "b": [{0: "batch"}]}}
    model = load(Nested(), ({"a": X, "b": [Y]},), dynamic_shapes=given)
    assert shapes(model.graph.inputs) == ["[batch,4]"] * 2


def test_other_keyword_arguments_go_by_their_own_names():
    class Keywords(nn.Module):
        def forward(self, **given):
            return given["x"] + given["y"]

    found = arguments_of(Keywords(), {"x": X, "y": Y}, {"y": {0: "batch"}})
    assert found.dynamic_shapes == {"given": {"x": None, "y": {0: torch.export.Dim.DYNAMIC}}}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"z": {0: "batch"}}, "speaks of 'z', which example_inputs do not give"),
        ({"x": {2: "batch"}}, "x: dynamic_shapes speaks of axis 2, the example has 2 axes"),
        ({"x": "batch"}, "x: dynamic_shapes gives 'batch'"),
        ({"scale": {0: "batch"}}, "scale: dynamic_shapes gives .*, example_inputs a float"),
        ((None, None, None, None), "has 4 entries for 3 arguments"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(given, message):
    with pytest.raises(UsageError, match=message):
        load(Sum(), ((X, Y), {"scale": 2.0}), dynamic_shapes=given)


Pair = namedtuple("Pair", "mean spread")


@dataclass
class Result:
    logits: torch.Tensor
    states: tuple[torch.Tensor, ...]


_pytree.register_dataclass(Result)

RESULTS = {
    "one": (lambda x: x + 1, ["output"]),
    "several": (lambda x: (x + 1, x + 2), ["output_0", "output_1"]),
    "by key": (lambda x: {"logits": x + 1, "states": [x + 2, x + 3]}, ["logits", "states_0", "states_1"]),
    "by field": (lambda x: Pair(x + 1, x + 2), ["mean", "spread"]),
    "of a dataclass": (lambda x: Result(x + 1, (x + 2, x + 3)), ["logits", "states_0", "states_1"]),
    "nothing among them": (lambda x: {"loss": None, "logits": x + 1}, ["logits"]),
    "an input": (lambda x: {"same": x, "next": x + 1}, ["same", "next"]),
    "one twice": (lambda x: [x + 1] * 2, ["output_0", "output_1"]),
    "called as the input": (lambda x: {"x": x + 1}, ["x/2"]),
}


@pytest.mark.parametrize("case", RESULTS)
def test_outputs_are_called_what_the_module_calls_them(case):
    result, expected = RESULTS[case]
    model = load(Returning(result), X)
    assert names(model.graph.inputs) == ["x"]
    assert names(model.graph.outputs) == expected
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    found = session.run(None, {"x": X.numpy()})
    for array, tensor in zip(found, filter(lambda leaf: leaf is not None, _pytree.tree_leaves(result(X))), strict=True):
        np.testing.assert_allclose(array, tensor, rtol=1e-6)


def test_an_export_is_silent_and_leaves_no_traces(capfd):
    class Talking(nn.Module):
        def forward(self, x):
            print("tracing")
            warnings.warn("tracing", stacklevel=1)
            return x + 1

    logger = logging.getLogger("torch.onnx")
    before = logger.level, list(warnings.filters)
    with warnings.catch_warnings(record=True) as caught:
        model = load(Talking(), X)
    assert not caught and capfd.readouterr() == ("", "")
    assert (logger.level, list(warnings.filters)) == before
    notes = [key for graph in model.graphs() for node in graph for key in node.metadata_props]
    assert not [key for key in notes if "stack_trace" in key]


class Deciding(nn.Module):
    def forward(self, x):
        return x + 1 if x.sum() > 0 else x


class Foreign(nn.Module):
    def forward(self, x):
        return torch.linalg.qr(x)[0]


FAILURES = {
    "a decision by content": (Deciding(), {}, "torch.where or torch.cond"),
    "an operator without a form": (Foreign(), {}, "replace that operator"),
    "a size that cannot vary": (nn.Linear(4, 3), {"input": {1: "width"}}, "leave that axis out of dynamic_shapes"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_failures_give_one_line_of_reason_and_what_to_do(case):
    module, sizes, remedy = FAILURES[case]
    with pytest.raises(UnsupportedModel, match="cannot be exported: ") as failure:
        load(module.train(), X, dynamic_shapes=sizes)
    assert "\n" not in failure.value.what and len(failure.value.what) < 400
    assert remedy in failure.value.remedy
    assert module.training


def test_a_module_that_fails_by_itself_is_not_the_exporters_fault():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(5, 3)
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x):
            self.count.add_(1)
            return self.layer(x)

    module = Counting()
    with pytest.raises(UsageError, match="the module fails on example_inputs: mat1 and mat2 shapes cannot be"):
        load(module, X)
    assert module.count == 0


class Configured(nn.Module):
    """It can be exported only under the settings that remedies know."""

    def __init__(self, **settings):
        super().__init__()
        self.config = SimpleNamespace(part=SimpleNamespace(**settings))

    def forward(self, x):
        settings = self.config.part
        if getattr(settings, "use_cache", False):
            return x, object()
        if getattr(settings, "_attn_implementation_internal", None) == "sdpa" and x.sum() > 0:
            return x
        if getattr(settings, "_experts_implementation_internal", None) == "grouped_mm":
            assert not torch.compiler.is_exporting(), "there is no grouped_mm"
        return x + 1


REMEDIES = {
    "use_cache=False": {"use_cache": True},
    'attn_implementation="eager"': {"_attn_implementation_internal": "sdpa"},
    'experts_implementation="batched_mm"': {"_experts_implementation_internal": "grouped_mm"},
}


@pytest.mark.parametrize("note", REMEDIES)
def test_a_known_remedy_is_applied_for_a_while_and_noted(note):
    module = Configured(**REMEDIES[note])
    model = load(module, X)
    assert model.metadata_props[NOTES] == note
    assert vars(module.config.part) == REMEDIES[note]


class FusedPart(nn.Module):
    """It can be exported only where its parts do not fuse, as timm's attention with a bias."""

    def __init__(self):
        super().__init__()
        self.fused_attn = True

    def forward(self, x):
        assert not (self.fused_attn and torch.compiler.is_exporting()), "Cannot view a tensor"
        return x + 1


def test_a_remedy_may_be_a_setting_of_a_part():
    module = nn.Sequential(FusedPart(), FusedPart())
    model = load(module, X)
    assert model.metadata_props[NOTES] == "fused_attn=False"
    assert all(part.fused_attn for part in module)


def test_nothing_is_noted_where_nothing_was_needed():
    assert NOTES not in load(Configured(_attn_implementation_internal="eager"), X).metadata_props


def test_settings_come_back_where_no_remedy_helps():
    class Hopeless(Configured):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else x

    module = Hopeless(use_cache=True, _attn_implementation_internal="sdpa")
    with pytest.raises(UnsupportedModel):
        load(module, X)
    assert vars(module.config.part) == {"use_cache": True, "_attn_implementation_internal": "sdpa"}


def test_buffers_that_a_forward_changes_are_warned_of():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("count", torch.zeros(4))

        def forward(self, x):
            self.count.add_(1)
            return x + self.count

    module = Counting()
    with pytest.warns(UserWarning, match="updates buffers"):
        model = load(module, X)
    assert model.metadata_props[NOTES] == "no updates of the buffers count"
    assert module.count.sum() == 0
