"""The test models are what they claim to be: each runs in ONNX Runtime and computes what PyTorch computes."""

import numpy as np
import onnxruntime
import pytest

from tests import zoo

TOLERANCE = 1e-4  # float32 sums of a few hundred terms in another order, through a dozen layers


@pytest.mark.parametrize("style", zoo.STYLES)
@pytest.mark.parametrize("name", zoo.NAMES)
def test_a_built_model_equals_its_module(name, style):
    session = onnxruntime.InferenceSession(zoo.path(name, style), providers=["CPUExecutionProvider"])
    for feed, expected in zoo.trials(name):
        (output,) = session.run(None, feed)
        np.testing.assert_allclose(output, expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_every_recipe_has_its_name_listed():
    from tests.zoo.recipes import RECIPES

    assert tuple(RECIPES) == zoo.NAMES


@pytest.mark.parametrize("name", zoo.LIGHT)
def test_a_light_model_takes_its_feed(name):
    session = onnxruntime.InferenceSession(zoo.light(name), providers=["CPUExecutionProvider"])
    (output,) = session.run(None, zoo.light_feed(name))
    assert np.isfinite(output).all()


def test_magika_tells_python_from_zeros():
    session = onnxruntime.InferenceSession(zoo.magika(), providers=["CPUExecutionProvider"])
    (value,) = session.get_inputs()
    text = (b"import os\n\ndef main():\n    print(os.getcwd())\n" * 100)[: value.shape[1]]
    rows = np.stack([np.frombuffer(text.ljust(value.shape[1], b" "), np.uint8), np.zeros(value.shape[1])])
    (output,) = session.run(None, {value.name: rows.astype(np.int32)})
    assert output.argmax(1)[0] != output.argmax(1)[1]


def test_minilm_finds_the_padded_sentence_nearest_to_itself():
    session = onnxruntime.InferenceSession(zoo.minilm(), providers=["CPUExecutionProvider"])
    ids = np.random.default_rng(0).integers(1000, 20000, (2, 8))
    short = session.run(None, {"ids": ids, "mask": np.ones_like(ids), "types": np.zeros_like(ids)})[0]
    padded, mask = np.pad(ids, ((0, 0), (0, 4))), np.pad(np.ones_like(ids), ((0, 0), (0, 4)))
    long = session.run(None, {"ids": padded, "mask": mask, "types": np.zeros_like(padded)})[0]
    np.testing.assert_allclose(long, short, rtol=TOLERANCE, atol=TOLERANCE)


def test_the_conformance_cases_are_those_the_runtime_gets_right():
    cases = zoo.node_tests()
    assert len({case.name for case in cases}) > 1300
    assert len({node.op_type for case in cases for node in case.model.graph.node}) > 150


def test_a_wrong_output_is_not_taken_for_the_expected_one():
    case = next(case for case in zoo.node_tests() if case.name == "test_relu")
    assert case.agrees(case.outputs)
    assert not case.agrees([case.outputs[0] + 1])


def test_the_model_cases_run():
    assert len(zoo.model_tests()) > 80
