import os
import sys
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest

import bevel
from bevel.backends import files
from bevel.backends import onnxruntime as backend
from bevel.backends.onnxruntime import Level, Session, latencies, latency, one_line
from bevel.errors import UnsupportedModel
from tests.graphs import graph, mlp

X = np.random.default_rng(0).standard_normal((2, 6)).astype(np.float32)


def test_it_computes_what_numpy_does():
    model = mlp()
    w1, b1, w2 = (model.graph.initializers[name].const_value.numpy() for name in ("w1", "b1", "w2"))
    for level in Level:
        with Session(model, level=level) as session:
            assert np.allclose(session.run({"x": X})["y"], np.maximum(X @ w1 + b1, 0) @ w2, atol=1e-5)


def test_a_large_model_goes_through_a_file_which_is_removed(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with Session(mlp()) as small:
        expected = small.run({"x": X})["y"]
        assert not list(tmp_path.iterdir())
    monkeypatch.setattr(backend, "IN_MEMORY_BYTES", 0)
    with Session(mlp()) as session:
        assert len(list(tmp_path.glob("bevel-*/model.onnx"))) == 1
        assert np.array_equal(session.run({"x": X})["y"], expected)
    assert not list(tmp_path.iterdir())


def test_a_model_that_does_not_load_leaves_no_file(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(backend, "IN_MEMORY_BYTES", 0)
    model = graph("m (float[2] x) => (float[2] y) { y = com.nobody.Foo (x, w) }", {"w": (2,)})
    with pytest.raises(UnsupportedModel, match="cannot be loaded in ONNX Runtime"):
        Session(model)
    assert not list(tmp_path.iterdir())


LOOP = """
loop (float[2] x, bool going) => (float[2] y) {
  yes = Constant <value = bool {1}> ()
  many = Constant <value = int64 {TRIPS}> ()
  y = Loop (BOUND, START, x) <body = b (int64 n, bool on, float[2] state) => (bool still, float[2] next) {
    next = Neg (state)
    FIRST
  }>
}
"""


@pytest.mark.parametrize(
    ("bound", "start", "condition", "ends"),
    [
        ('""', "yes", "still = Identity (on)", False),
        ('""', '""', "more = Identity (on) still = Identity (more)", False),
        ("many", "yes", "still = Constant <value = bool {1}> ()", False),
        ('""', "going", "still = Identity (on)", True),
        ('""', "yes", "still = Not (on)", True),
        ('""', "yes", "still = Constant <value = bool {0}> ()", True),
        ("many", "yes", "three = Constant <value = int64 {3}> () still = Less (n, three)", True),
    ],
)
def test_a_loop_without_an_end_is_refused(bound, start, condition, ends):
    """A run of ONNX Runtime's cannot be stopped, not even by Ctrl-C."""
    text = LOOP.replace("BOUND", bound).replace("START", start).replace("FIRST", condition)
    model = graph(text.replace("TRIPS", str(2**63 - 1)))
    if not ends:
        with pytest.raises(UnsupportedModel, match="loops forever"):
            Session(model)
        return
    with Session(model) as session:
        assert session.run({"x": X[0, :2], "going": np.array(False)})["y"].shape == (2,)


def test_a_loop_with_a_bound_is_run():
    text = LOOP.replace("BOUND", "many").replace("START", "yes").replace("FIRST", "still = Identity (on)")
    with Session(graph(text.replace("TRIPS", "3"))) as session:
        assert np.array_equal(session.run({"x": X[0, :2], "going": np.array(True)})["y"], -X[0, :2])


@pytest.mark.parametrize(
    ("name", "kind"), [("bfloat16", ml_dtypes.bfloat16), ("float8e4m3fn", ml_dtypes.float8_e4m3fn)]
)
def test_types_that_numpy_lacks_go_in_and_out(name, kind):
    model = graph(f"m ({name}[3] x) => ({name}[3] y, float[3] z) {{ y = Identity (x)  z = Cast <to=1> (x) }}")
    values = np.array([1, -2, 0.5]).astype(kind)
    with Session(model) as session:
        answer = session.run({"x": values})
    assert answer["y"].dtype == values.dtype
    assert answer["y"].tobytes() == values.tobytes()
    assert answer["z"].tolist() == [1, -2, 0.5]


MINTED = """
m (float[_d0, 2] x, bool c) => (float[_d1, 2] y) <float[_d0, 2] h> {
  h = Relu (x)
  y = If (c) <
    then_branch = t () => (float[_d0, 2] a) { a = Identity (h) },
    else_branch = e () => (float[_d2, 2] b) { b = Concat <axis = 0> (h, h) }
  >
}
"""


def test_a_draft_is_run_as_it_is_and_says_no_size_that_inference_has_named():
    model = graph(MINTED)
    content = files.draft(model)
    assert not any(name in content for name in (b"_d0", b"_d1", b"_d2"))
    assert onnx.load_from_string(content).graph.node[0].op_type == "Relu"
    with Session(model, draft=True) as session:
        answer = session.run({"x": X[:, :2], "c": np.array(False)})["y"]
    assert np.array_equal(answer, np.maximum(np.concatenate([X[:, :2]] * 2), 0))
    assert model.graph.inputs[0].shape[0] == "_d0"  # the model itself is left as it is


def test_a_draft_has_the_tensors_that_lie_in_a_file(tmp_path):
    files.save(mlp(), tmp_path / "m.onnx", external_data=True)
    model = bevel.load(tmp_path / "m.onnx")
    with Session(model, draft=True) as session, Session(mlp()) as whole:
        assert np.array_equal(session.run({"x": X})["y"], whole.run({"x": X})["y"])


BIG = """
m (float[n] x, int64[1] size) => (float y) {
  big = Expand (x, size)
  twice = Add (big, big)
  y = ReduceMean <keepdims = 0> (twice)
}
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux counts, and glibc gives back")
@pytest.mark.parametrize("draft", [True, False])
def test_what_a_draft_gave_keeps_its_own_memory_alone(draft):
    model = graph(BIG)
    before = resident()
    with Session(model, draft=draft) as session:
        kept = session.run({"x": np.ones(1, np.float32), "size": np.array([24_000_000])})
    assert kept["y"] == pytest.approx(2, rel=1e-3)
    assert (resident() - before < 20e6) is draft  # of two values of 96 MB each


def resident():
    """Return how much memory the process has, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def test_sequences_are_lists():
    model = graph("m (float[2] x) => (seq(float[2]) s) { s = SequenceConstruct (x, x) }")
    with Session(model) as session:
        (first, second) = session.run({"x": np.ones(2, np.float32)})["s"]
    assert np.array_equal(first, second)


SCAN = """
m (float[n, k, 2] x, float[n, 2] s) => (float[n, 2] t, float[k, n, 2] all) {
  t, all = Scan <num_scan_inputs = 1, scan_input_axes = [-2], body = body (float[n, 2] before, float[n, 2] now)
    => (float[n, 2] after, float[n, 2] out) { after = Add (before, now)  out = Neg (now) }> (s, x)
}
"""


def test_a_scan_over_nothing_along_another_axis_is_an_error_and_not_the_end_of_the_process():
    model, x, s = graph(SCAN), np.random.default_rng(0).random((3, 4, 2), np.float32), np.ones((3, 2), np.float32)
    with Session(model) as session:
        found = session.run({"x": x, "s": s})
        np.testing.assert_allclose(found["t"], s + x.sum(1), rtol=1e-6)
        assert np.array_equal(found["all"], -x.transpose(1, 0, 2))
        with pytest.raises(UnsupportedModel, match="Scan"):
            session.run({"x": x[:, :0], "s": s})
    assert "scan_input_axes" in next(iter(model.graph)).attributes


@pytest.mark.parametrize("feed", [{}, {"x": X[:, :5]}, {"x": X.astype(np.float64)}, {"z": X}])
def test_inputs_it_refuses_are_errors_of_ours(feed):
    with Session(mlp()) as session, pytest.raises(UnsupportedModel, match="does not run in ONNX Runtime"):
        session.run(feed)


def test_latencies_of_two_sessions_are_taken_in_turns(monkeypatch):
    turns = []
    with Session(mlp()) as first, Session(mlp()) as second:
        for session in (first, second):
            monkeypatch.setattr(session, "run", lambda feed, session=session: turns.append(session is first))
        assert all(time >= 0 for time in latencies((first, second), {}, runs=5))
        assert turns[4:] == [True, False] * 5
        assert latency(first, {}, runs=3) >= 0


def test_messages_are_one_line_without_places_in_foreign_source():
    place = "Non-zero status code returned while running Foo node. Name:'a' Status Message: foo.cc:12 "
    message = f"[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : {place}Bad\nshape"
    assert one_line(message) == "Foo a: Bad shape"
