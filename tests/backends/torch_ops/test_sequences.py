"""Sequences, strings and classical estimators in torch, beyond what the conformance tests have."""

import numpy as np
import onnx
import pytest
import torch

from bevel.backends.torch.ops import sequences, strings, trees
from bevel.backends.torch.ops.classical import label_encoder, label_encoder_of_classes, normalizer
from bevel.errors import UnsupportedModel
from tests.backends.torch_ops.single import by_onnxruntime, by_torch, feed_of, model_of, same

CPU = torch.device("cpu")
FLOAT = onnx.TensorProto.FLOAT


def test_functions_leave_a_sequence_as_it_is():
    first = sequences.sequence_construct(torch.ones(1), torch.zeros(2))
    longer = sequences.sequence_insert(first, torch.ones(3), -1)
    shorter = sequences.sequence_erase(longer, 0)
    assert [x.shape[0] for x in first] == [1, 2]
    assert [x.shape[0] for x in longer] == [1, 3, 2]
    assert [x.shape[0] for x in shorter] == [3, 2]
    assert sequences.sequence_length(longer, device=CPU) == 3
    with pytest.raises(UnsupportedModel, match="position 3 is outside a sequence of 2"):
        sequences.sequence_insert(first, torch.ones(3), 3)


@pytest.mark.parametrize(
    ("split", "sizes"), [(None, [1] * 5), (2, [2, 2, 1]), ([2], [2, 2, 1]), ([1, 4], [1, 4]), ([5], [5])]
)
def test_a_tensor_is_cut_in_every_way(split, sizes: list[int]):
    parts = sequences.split_to_sequence(torch.arange(5), split)
    assert [len(part) for part in parts] == sizes
    assert sequences.concat_from_sequence(parts, axis=0).tolist() == [0, 1, 2, 3, 4]


def test_an_empty_optional_has_nothing_to_give():
    assert not sequences.optional_has_element(None, device=CPU)
    with pytest.raises(UnsupportedModel, match="empty"):
        sequences.optional_get_element(sequences.optional())


@pytest.mark.parametrize("pattern", [r"[[:alpha:]]+", r"\pL+", "("])
def test_patterns_that_python_reads_otherwise_are_refused(pattern: str):
    with pytest.raises(UnsupportedModel, match="pattern"):
        strings.regex_full_match(np.array(["a"], object), pattern=pattern, device=CPU)


def test_digits_are_those_of_ascii():
    found = strings.regex_full_match(np.array(["1", "\u0661"], object), pattern=r"\d", device=CPU)
    assert found.tolist() == [True, False]


def test_the_oldest_encoder_goes_both_ways():
    words = ["a", "b"]
    back = label_encoder_of_classes(torch.tensor([1, 7]), classes_strings=words, device=CPU)
    assert back.tolist() == ["b", "_Unused"]
    places = label_encoder_of_classes(np.array(["b", "c"], object), classes_strings=words, device=CPU)
    assert places.tolist() == [1, -1]


def test_not_a_number_is_a_key():
    x = torch.tensor([float("nan"), 2.0, 3.0])
    got = label_encoder(x, keys_floats=[float("nan"), 2.0], values_int64s=[10, 20], default_int64=0, device=CPU)
    assert got.tolist() == [10, 20, 0]


@pytest.mark.parametrize("norm", ["MAX", "L1", "L2"])
def test_classical_estimators_are_onnxruntimes(norm: str):
    x = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    ml = {"domain": "ai.onnx.ml"}
    models = [
        model_of("Normalizer", [np.abs(x)], 1, norm=norm, **ml),
        model_of("Scaler", [x], 1, offset=[1.0, 2.0, 3.0], scale=[0.5, 1.0, 2.0], **ml),
        model_of(
            "LinearRegressor",
            [x],
            1,
            coefficients=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
            intercepts=[1.0, -1.0],
            targets=2,
            **ml,
        ),
        model_of("Imputer", [x], 1, imputed_value_floats=[7.0], replaced_value_float=float(x[1, 1]), **ml),
        model_of("FeatureVectorizer", [x], 1, inputdimensions=[3], **ml),
    ]
    for model in models:
        feed = feed_of(model, [np.abs(x) if model.graph.node[0].op_type == "Normalizer" else x])
        assert same(by_torch(model, feed), by_onnxruntime(model, feed))


@pytest.mark.parametrize("transform", ["NONE", "SOFTMAX", "LOGISTIC"])
@pytest.mark.parametrize("classes", [2, 3])
def test_linear_classifiers_are_onnxruntimes(transform: str, classes: int):
    x = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    model = model_of(
        *("LinearClassifier", [x], 1),
        outputs=(onnx.TensorProto.INT64, FLOAT),
        domain="ai.onnx.ml",
        coefficients=[0.1 * place * (-1) ** place for place in range(3 * classes)],
        intercepts=[0.5 * place for place in range(classes)],
        classlabels_ints=[5, 6, 7][:classes],
        post_transform=transform,
    )
    assert same(by_torch(model, feed_of(model, [x])), by_onnxruntime(model, feed_of(model, [x])))


def test_trees_that_go_round_in_a_circle_are_refused():
    with pytest.raises(UnsupportedModel, match="circle"):
        trees._depth([1, 0], [1, 0], [0])
    assert trees._depth([1, 2], [3, 2], [0]) == 2


def test_a_norm_of_nothing_is_nothing():
    assert normalizer(torch.zeros(1, 3), norm="L2").tolist() == [[0, 0, 0]]
