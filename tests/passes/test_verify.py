import math

import ml_dtypes
import numpy as np
import pytest

from bevel.backends.onnxruntime import Level, Session
from bevel.errors import CalibrationError, PromiseBroken, UnsupportedModel
from bevel.passes.base import Exact, Lossy, Masked, Preserving
from bevel.passes.verify import Observation, compare, deviate, observe, verify
from tests.graphs import graph, mlp

F32 = np.float32


def observation(*values, stable=True):
    return Observation(tuple({"y": value} for value in values), stable)


def judged(reference, result, promise=Preserving()):  # noqa: B008 - frozen
    return compare(observation(np.asarray(reference)), observation(np.asarray(result)), promise)


def test_the_error_is_relative_to_the_largest_reference_over_all_feeds():
    reference = observation(np.array([1.0, 0.0], F32), np.array([10.0, 0.0], F32))
    result = observation(np.array([1.0, 0.5], F32), np.array([10.0, 0.0], F32))
    (deviation,) = compare(reference, result, Lossy()).outputs
    assert deviation.absolute == 0.5
    assert deviation.relative == pytest.approx(0.05)
    assert deviation.sqnr == pytest.approx(10 * math.log10(101 / 0.25))
    assert deviation.cosine == pytest.approx(101 / math.sqrt(101 * 101.25))


@pytest.mark.parametrize(
    ("reference", "result", "kept"),
    [
        ([1.0, 2.0], [1.0, 2.0], True),
        ([1.0, 2.0], [1.0, 2.0 + 1e-5], True),
        ([1.0, 2.0], [1.0, 2.0 + 1e-4], False),
        ([1.0, np.nan], [1.0, np.nan], True),
        ([1.0, np.nan], [1.0, 2.0], False),
        ([1.0, 2.0], [1.0, np.nan], False),
        ([1.0, np.inf], [1.0, np.inf], True),
        ([1.0, np.inf], [1.0, -np.inf], False),
        ([1.0, np.inf], [1.0, 3e38], False),
        ([0.0, 0.0], [0.0, 0.0], True),
        ([0.0, 0.0], [0.0, 1e-9], False),
        ([1.0, 2.0], [2.0, 1.0], False),
    ],
)
def test_floats(reference, result, kept):
    assert judged(np.array(reference, F32), np.array(result, F32)).kept is kept


@pytest.mark.parametrize("promise", [Exact(), Preserving(), Masked()])
def test_a_swapped_channel_is_caught(promise):
    reference = np.random.default_rng(0).standard_normal((4, 8)).astype(F32)
    assert judged(reference, reference.copy(), promise).kept
    assert not judged(reference, reference[:, [1, 0, *range(2, 8)]], promise).kept


def test_exact_means_equal():
    reference = np.array([1.0, 2.0], F32)
    verdict = judged(reference, np.nextafter(reference, F32(3)), Exact())
    assert not verdict.kept
    with pytest.raises(PromiseBroken, match="promised Exact \\(error at most 0\\), but output 'y' has error"):
        verdict.demand("pass")
    assert judged(np.array([0.0], F32), np.array([-0.0], F32), Exact()).kept


@pytest.mark.parametrize(
    ("reference", "result", "why"),
    [
        (np.zeros((2, 3), F32), np.zeros((3, 2), F32), "shape [3, 2], not [2, 3]"),
        (np.zeros(2, F32), np.zeros(2, np.float64), "type float64, not float32"),
        (np.zeros(2, F32), None, "absent on one side"),
        ([np.zeros(2, F32)], [np.zeros(2, F32)] * 2, "2 items against 1"),
    ],
)
def test_what_cannot_be_compared_is_broken_and_says_why(reference, result, why):
    for promise in (Exact(), Preserving(), Masked()):
        verdict = compare(observation(reference), observation(result), promise)
        assert not verdict.kept
        assert verdict.outputs[0].note == why


@pytest.mark.parametrize(
    ("reference", "result", "kept"),
    [
        (np.array(["a", "b"], object), np.array(["a", "b"], object), True),
        (np.array(["a", "b"], object), np.array(["a", "c"], object), False),
        (np.array([True, False]), np.array([True, False]), True),
        (np.array([True, False]), np.array([True, True]), False),
        (np.array([2**40, 7]), np.array([2**40, 7]), True),
        (np.array([5, 7]), np.array([5, 8]), False),
        (np.array([1 + 1j]), np.array([1 + 1j]), True),
        (np.array([1 + 1j]), np.array([1 - 1j]), False),
        (None, None, True),
        ([np.ones(2, F32), np.ones(3, F32)], [np.ones(2, F32), np.ones(3, F32)], True),
        ([np.ones(2, F32), np.ones(3, F32)], [np.ones(2, F32), np.zeros(3, F32)], False),
        ({"a": 1.0}, {"a": 1.0}, True),
        ({"a": 1.0}, {"a": 2.0}, False),
    ],
)
def test_other_types(reference, result, kept):
    assert compare(observation(reference), observation(result), Preserving()).kept is kept


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_may_differ_by_its_own_rounding_and_not_more(kind):
    unit = float(ml_dtypes.finfo(kind).eps)
    reference = np.array([1.0, 0.5], kind)
    assert judged(reference, np.array([1.0 + unit, 0.5], kind)).kept
    assert not judged(reference, np.array([1.0 + 8 * unit, 0.5], kind)).kept


@pytest.mark.parametrize(
    ("reference", "note"),
    [
        (np.zeros(4, F32), "the reference is 0.0 throughout, so the check is weak"),
        (np.full(4, 0.25, F32), "the reference is 0.25 throughout, so the check is weak"),
        (np.full(4, np.nan, F32), "the reference is nowhere finite, so the check is weak"),
        (np.zeros((0, 3), F32), "empty, so there was nothing to compare"),
        (np.arange(4, dtype=F32), ""),
    ],
)
def test_a_check_that_could_hardly_fail_says_so(reference, note):
    assert judged(reference, reference).outputs[0].note == note


def test_zero_feeds_are_an_error():
    with pytest.raises(CalibrationError):
        compare(Observation(()), Observation(()), Exact())
    with pytest.raises(CalibrationError):
        verify(mlp(), mlp(), [], Exact())


def test_unstable_answers_are_refused_even_if_they_happen_to_agree():
    with pytest.raises(UnsupportedModel, match="random"):
        compare(observation(np.ones(2), stable=False), observation(np.ones(2)), Lossy())


def test_an_output_too_many_or_too_few_is_broken():
    one, two = Observation(({"y": np.ones(2)},)), Observation(({"y": np.ones(2), "z": np.ones(2)},))
    assert not compare(one, two, Preserving()).kept
    assert not compare(two, one, Preserving()).kept


def test_two_models_are_run_and_compared():
    feeds = [{"x": np.random.default_rng(0).standard_normal((3, 6)).astype(F32)}]
    assert verify(mlp(0), mlp(0), feeds, Exact()).kept
    assert not verify(mlp(0), mlp(1), feeds, Preserving()).kept


def test_randomness_that_cannot_be_held_is_noticed():
    noisy = graph("noisy (float[2, 50] x) => (int32[2, 9] y) { y = Multinomial <sample_size = 9> (x) }")
    still = graph("still (float[2, 50] x) => (float[2, 50] y) { y = Relu (x) }")
    feeds = [{"x": np.ones((2, 50), F32)}]
    for model, stable in ((noisy, False), (still, True)):
        with Session(model, level=Level.AS_WRITTEN) as session:
            assert observe(session, feeds, repeat=True).stable is stable
    with pytest.raises(UnsupportedModel, match="Multinomial"):
        verify(noisy, noisy, feeds, Exact())


def test_strings_and_numbers_are_not_mixed_up():
    deviation = deviate("y", [np.array(["1"], object)], [np.array([1.0], F32)])
    assert not deviation.exact
    assert math.isinf(deviation.relative)


def falling(activation, slope):
    """A model of `activation(slope x)`, and a node behind it."""
    text = """g (float[4] x) => (float[1, 4] y) {
      s = Constant<value_float=%f>()
      t = Mul(x, s)
      u = %s(t)
      a = Constant<value_ints=[0]>()
      y = Unsqueeze(u, a)
    }"""
    return graph(text % (slope, activation))


@pytest.mark.parametrize(
    ("activation", "slope", "kept"),
    [("Sigmoid", -16.01, True), ("Sigmoid", -20, True), ("Sigmoid", -8, False), ("Exp", -16.01, False)],
)
def test_probabilities_of_nothing_are_rounding_where_a_sigmoid_makes_them(activation, slope, kept):
    feeds = [{"x": np.array([1, 1.1, 1.2, 1.3], F32)}]
    verdict = verify(falling(activation, -16), falling(activation, slope), feeds, Preserving())
    assert verdict.kept is kept
    assert any("so the check is weak" in note for note in verdict.notes) is (activation == "Sigmoid")


def test_probabilities_of_something_are_compared_as_all_else():
    feeds = [{"x": np.array([0.1, -0.1, 0.2, 0.3], F32)}]
    assert verify(falling("Sigmoid", -16), falling("Sigmoid", -16.00001), feeds, Preserving()).kept
    verdict = verify(falling("Sigmoid", -16), falling("Sigmoid", -16.01), feeds, Preserving())
    assert not verdict.kept
    assert not verdict.notes
