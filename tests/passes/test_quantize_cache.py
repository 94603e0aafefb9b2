import json

import numpy as np
import onnx_ir as ir
import pytest

import bevel
from bevel.backends.onnxruntime import Level, Session
from bevel.errors import EditRefused, PromiseBroken, UsageError
from bevel.ir import coded as interface
from bevel.ir.caches import caches
from bevel.ir.coded import Coded, coded
from bevel.passes.base import Context
from bevel.passes.caching import kernel
from bevel.passes.caching import scales as scaling
from bevel.passes.caching.scales import scales
from bevel.passes.calibration import Calibration
from bevel.passes.execution import Execution
from bevel.passes.quantize_cache import QuantizeCache
from bevel.testing import check_pass
from tests.graphs import mlp
from tests.passes.cache_graphs import continued, decoder, feeds

# A step of 8 bits is 1/127 of the largest magnitude of a channel; of 4 bits, 1/7. Rounding is off by half a step;
# attention averages values, and what the scores are off by comes on top: one step in all.
ERROR = {8: 1 / 127, 4: 1 / 7}


def decode(model, prompt, steps):
    """Answer a prompt, then token by token, with caches fed back as they came; what is in them never changes."""
    wanted = {value.name: value for value in model.graph.inputs if value.name.startswith("past")}
    kept = {name: np.zeros((1, 2, 0, value.shape[3]), value.dtype.numpy()) for name, value in wanted.items()}
    logits, ids = [], prompt
    rng = np.random.default_rng(3)
    with Session(model, level=Level.AS_DEPLOYED) as session:
        for _ in range(steps + 1):
            answer = session.run({"ids": ids, **kept})
            logits.append(answer["logits"][:, -1])
            for name, before in kept.items():
                kept[name] = answer[name.replace("past", "present")]
                np.testing.assert_array_equal(kept[name][:, :, : before.shape[2]], before)
            ids = rng.integers(0, 30, (1, 1))  # the same ones for each model
    return np.stack(logits).astype(np.float64), kept


def apart(expected, got):
    return float(np.abs(expected - got).max() / np.abs(expected).max())


@pytest.mark.parametrize(
    "case", ["grouped fast 8", "grouped kernel 4", "grouped portable 4", "appended fast 8", "standard portable 8"]
)
def test_a_prompt_and_five_steps_answer_as_with_caches_in_floats(case):
    form, emit, bits = case.split()[0], case.split()[1], int(case[-1])
    model, prompt = decoder(form, rotary=form == "grouped"), feeds(1, length=9)[0]["ids"]
    expected, floats = decode(model, prompt, 5)
    step = QuantizeCache(bits=bits, emit=emit, calibration="max")
    report = bevel.optimize(model, step, calibration=continued(model, 20, length=12))
    got, codes = decode(model, prompt, 5)
    assert 0 < apart(expected, got) < ERROR[bits]
    assert 0 < report.error < ERROR[bits] and report.steps[1].verdict.promise == bevel.Exact()
    for name, kept in codes.items():
        assert kept.nbytes * 32 // bits == floats[name].nbytes and kept.shape[2] == floats[name].shape[2] == 14


def test_whatever_attends_gives_out_the_same_codes():
    prompts = [feeds(1, length=length)[0]["ids"] for length in (6, 12)]
    answers = {}
    for emit in ("kernel", "fast", "portable"):
        model = decoder("grouped")
        bevel.optimize(model, QuantizeCache(bits=4, emit=emit), calibration=feeds(4))
        kinds = [node.op_type for node in model.graph if node.op_type in ("If", "GroupQueryAttention")]
        assert kinds == (["If"] if emit == "fast" else ["GroupQueryAttention"])
        answers[emit] = [decode(model, prompt, 0) for prompt in prompts]
    for emit in ("fast", "portable"):
        for (_, expected), (_, got) in zip(answers["kernel"], answers[emit], strict=True):
            assert all(np.array_equal(expected[name], got[name]) for name in expected)
    (few, _), (many, _) = answers["fast"]
    np.testing.assert_array_equal(few, answers["kernel"][0][0])
    np.testing.assert_allclose(many, answers["portable"][1][0], rtol=1e-5, atol=1e-6)


def attention(model):
    return next(node for node in model.graph if "Attention" in node.op_type)


def test_a_scale_for_each_channel_is_better_where_some_are_larger():
    errors = {}
    for scale in ("channel", "tensor"):
        model, prompt = decoder("grouped"), feeds(1)[0]["ids"]
        expected = decode(model, prompt, 3)[0]
        bevel.optimize(model, QuantizeCache(bits=4, scale=scale, emit="kernel"), calibration=feeds(8))
        errors[scale] = apart(expected, decode(model, prompt, 3)[0])
        assert attention(model).attributes["k_quant_type"].as_string() == f"PER_{scale.upper()}"
    assert errors["channel"] < errors["tensor"] / 1.5


@pytest.mark.parametrize("form", ["grouped", "appended"])
def test_half_precision(form):
    model = decoder(form, dtype=np.float16)
    expected = decode(model, feeds(1)[0]["ids"], 2)[0]
    bevel.optimize(model, QuantizeCache(), calibration=feeds(4, dtype=np.float16))
    assert model.graph.inputs[1].dtype == ir.DataType.INT8
    assert apart(expected, decode(model, feeds(1)[0]["ids"], 2)[0]) < 2 * ERROR[8]


def test_metadata_says_what_a_program_needs():
    model = decoder("grouped")
    check_pass(QuantizeCache(bits=4), model, feeds(4))
    bevel.optimize(model, QuantizeCache(bits=4), calibration=feeds(4))
    entry, other = json.loads(model.metadata_props["bevel.caches"])
    assert (entry["input"], entry["output"], entry["bits"]) == ("past_key", "present_key", 4)
    assert entry["shape"] == [1, 2, 1, 16] and len(entry["scale"]) == 32 and other["input"] == "past_value"
    cache = coded(model)[0]
    array = np.random.default_rng(0).standard_normal((1, 2, 5, 16)).astype(np.float32)
    again = cache.decode(cache.encode(array), array.dtype)
    np.testing.assert_array_equal(cache.encode(again), cache.encode(array))
    assert np.abs(again - array)[np.abs(array) < cache.scale * 7].max() <= cache.scale.max() / 2


def test_files_are_compared_through_their_metadata(tmp_path):
    model, given = decoder("appended"), feeds(2)
    small = model.clone()
    bevel.optimize(small, "quantize-cache", calibration=given)
    bevel.save(small, tmp_path / "small.onnx")
    verdict = bevel.verify(model, bevel.load(tmp_path / "small.onnx"), given, bevel.Lossy())
    assert 0 < verdict.error < ERROR[8]


def test_other_passes_run_before_and_after():
    model = decoder("grouped")
    passes = "quantize-cache,simplify,quantize-dynamic"
    report = bevel.optimize(model, passes, calibration=continued(model, 2), measure_latency=True)
    assert [value.dtype for value in model.graph.inputs][1:] == [ir.DataType.INT8] * 2
    assert report.error < 0.1 and report.deployment.latency_after > 0 and report.deployment.drift < 0.1
    again = bevel.optimize(model, "quantize-cache", verify=False)
    assert len(again) == 1 and "no caches" in again.steps[0].notes[0]


def test_what_is_left_alone_is_named():
    report = bevel.optimize(mlp(), "quantize-cache")
    assert report.error == 0 and report.steps[0].notes == ("no caches of keys and values were quantized",)
    model = decoder("appended")
    report = bevel.optimize(model, QuantizeCache(skip=("*value",)), calibration=feeds(2))
    assert "take 32 bytes a token instead of 128" in report.steps[0].notes[1]
    assert "left in floats: past_value: not asked for" in report.steps[0].notes
    assert [value.dtype for value in model.graph.outputs[1:]] == [ir.DataType.INT8, ir.DataType.FLOAT]
    with pytest.raises(UsageError, match="bits=5"):
        QuantizeCache(bits=5)


def test_caches_get_more_bits_or_stay_in_floats_where_the_error_would_be_too_large():
    model = decoder("appended")
    coarse = QuantizeCache(bits=4, calibration="percentile", percentile=80.0)
    report = bevel.optimize(model, coarse, calibration=feeds(4), max_error=0.3)
    assert 0 < report.error <= 0.3
    assert "left in floats: past_value: the error of the outputs would be above 0.3" in report.steps[0].notes
    report = bevel.optimize(decoder("appended"), QuantizeCache(bits=4), calibration=feeds(4), max_error=0.063)
    assert [note.rpartition(" ")[2] for note in report.steps[0].notes[:2]] == ["past_key", "past_value"]
    assert "4 bits" in report.steps[0].notes[0] and "8 bits" in report.steps[0].notes[1] and report.error <= 0.063
    with pytest.raises(PromiseBroken, match="most sensitive: past_"):
        bevel.optimize(decoder("grouped"), QuantizeCache(bits=4), calibration=feeds(4), max_error=1e-3)


def test_a_wrong_scale_is_caught(monkeypatch):
    right = scaling.scales

    def wrong(*args, **options):
        return {name: scale[..., ::-1].copy() for name, scale in right(*args, **options).items()}

    monkeypatch.setattr("bevel.passes.quantize_cache.scales", wrong)
    for form in ("grouped", "appended"):
        with pytest.raises(PromiseBroken, match="has error"):
            bevel.optimize(decoder(form), QuantizeCache(repair=False), calibration=feeds(4), max_error=0.05)


def test_a_wrong_word_about_the_interface_is_caught(monkeypatch):
    written = interface._written

    def wrong(cache):
        entry = written(cache)
        return entry if "codes" in entry else {**entry, "scale": [2 * number for number in entry["scale"]]}

    monkeypatch.setattr(interface, "_written", wrong)
    model = decoder("grouped")
    with pytest.raises(PromiseBroken, match="caches as codes"):
        bevel.optimize(model, "quantize-cache", calibration=feeds(2))
    assert model.graph.inputs[1].dtype == ir.DataType.FLOAT


def test_codes_that_a_later_pass_took_away_are_missed():
    model = decoder("grouped")
    QuantizeCache(emit="kernel").run(model, Context(0, Calibration.of(feeds(1), model), Execution()))
    node = attention(model)
    assert [value.dtype for value in model.graph.inputs[1:]] == [ir.DataType.FLOAT] * 2 and interface.is_wide(model)
    node.inputs[3].name = "something else"
    with pytest.raises(EditRefused, match="past_key"):
        interface.narrow(model)


def test_a_runtime_without_the_kernel_is_refused_with_a_remedy(monkeypatch):
    wrong = kernel.ONE_HEAD.replace("GroupQueryAttention", "GroupQueryAttentionOfTomorrow")
    monkeypatch.setattr(kernel, "ONE_HEAD", wrong)
    with pytest.raises(EditRefused, match="emit=portable"):
        bevel.optimize(decoder("grouped"), "quantize-cache", calibration=feeds(1))
    assert bevel.optimize(decoder("grouped"), "quantize-cache{emit=portable}", calibration=feeds(1)).error < ERROR[8]


def found(method, percentile=100.0, *, each=True):
    model = decoder("appended")
    steps = scales(
        model,
        caches(model),
        lambda: feeds(4),
        Execution(),
        bits=4,
        each=each,
        method=method,
        percentile=percentile,
    )
    with Session(model) as session:
        answers = [session.run(feed) for feed in feeds(4)]
    return steps["past_key"], np.concatenate([answer["present_key"] for answer in answers], 2)


def test_scales_are_what_they_are_called():
    largest, keys = found("max")
    np.testing.assert_allclose(largest, np.abs(keys).max(axis=2, keepdims=True) / 7, rtol=1e-6)
    assert largest.shape == (1, 2, 1, 16) and found("max", each=False)[0].shape == (1,)
    best, _ = found("mse")
    loss = {name: squared(keys, steps) for name, steps in (("max", largest), ("mse", best))}
    assert loss["mse"] < loss["max"]
    part, _ = found("percentile", 80.0)
    assert 0 < (np.abs(keys) > part * 7 * 1.0001).mean() <= 0.2
    np.testing.assert_allclose(found("percentile", 100.0)[0], largest, rtol=0.06)


def squared(array, steps):
    cache = Coded("", "", 4, steps)
    return float(np.square(cache.decode(cache.encode(array), array.dtype) - array).sum())
