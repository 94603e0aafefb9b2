"""Selective state space models: the dimensions of a Mamba block, in rounds and as a Scan; what passes do to them."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
import pytest

import bevel
from bevel.backends.onnxruntime import Session
from bevel.errors import PromiseBroken
from bevel.ir import passages
from bevel.ir.coupling import Freedom
from bevel.ir.edit import permute
from bevel.ir.groups import analyse, groups
from bevel.passes.base import REASSOCIATION_RTOL, Outcome, Pass, Preserving, Promise
from bevel.transport import check_motions
from tests import zoo
from tests.graphs import graph

# 16 inner channels, 5 states each, a step of rank 3.
SCAN = """
mamba (float[n, l, 10] u) => (float[n, l, 10] y)
<int64[3] parts = {3, 5, 5}, int64[1] third = {2}, int64[1] last = {3}, int64 zero = {0}> {
  a = MatMul (u, in_proj)
  x0, gate = Split <axis = 2, num_outputs = 2> (a)
  x1 = Transpose <perm = [0, 2, 1]> (x0)
  x2 = Conv <group = 16, kernel_shape = [4], pads = [3, 0]> (x1, conv, conv_bias)
  x3 = Transpose <perm = [0, 2, 1]> (x2)
  x4 = Sigmoid (x3)
  x = Mul (x3, x4)
  p = MatMul (x, x_proj)
  d0, b0, c0 = Split <axis = 2> (p, parts)
  d1 = MatMul (d0, dt_proj)
  d2 = Add (d1, dt_bias)
  d = Softplus (d2)
  a0 = Exp (A_log)
  a1 = Neg (a0)
  d3 = Unsqueeze (d, last)
  d4 = Mul (d3, a1)
  decay = Exp (d4)
  dx0 = Mul (d, x)
  dx = Unsqueeze (dx0, last)
  b = Unsqueeze (b0, third)
  change = Mul (dx, b)
  first = Gather <axis = 1> (change, zero)
  start = Sub (first, first)
  end, states = Scan <num_scan_inputs = 2, scan_input_axes = [1, 1], scan_output_axes = [1],
    body = step (float[n, 16, 5] h, float[n, 16, 5] e, float[n, 16, 5] f) => (float[n, 16, 5] k, float[n, 16, 5] o) {
      m = Mul (e, h)
      k = Add (m, f)
      o = Identity (k)
    }> (start, decay, change)
  c = Unsqueeze (c0, third)
  r = Mul (states, c)
  y0 = ReduceSum <keepdims = 0> (r, last)
  y1 = Mul (x, D)
  y2 = Add (y0, y1)
  g0 = Sigmoid (gate)
  g = Mul (gate, g0)
  y3 = Mul (y2, g)
  y4 = MatMul (y3, out_proj)
  y = Add (u, y4)
}
"""
SCAN_WEIGHTS = {
    "in_proj": (10, 32),
    "conv": (16, 1, 4),
    "conv_bias": (16,),
    "x_proj": (16, 13),
    "dt_proj": (3, 16),
    "dt_bias": (16,),
    "A_log": (16, 5),
    "D": (16,),
    "out_proj": (16, 10),
}


def scan() -> ir.Model:
    return graph(SCAN, SCAN_WEIGHTS)


def shared() -> ir.Model:
    """One step for all states of a channel, as in Mamba-2."""
    return graph(SCAN.replace("float[n, 16, 5] e", "float[n, 16, 1] e"), {**SCAN_WEIGHTS, "A_log": (16, 1)})


def in_rounds() -> ir.Model:
    return bevel.load(zoo.path("mamba", "dynamo"))


def feed(rows=2, places=7):
    return np.random.default_rng(1).standard_normal((rows, places, 10)).astype(np.float32)


def answer(model, u):
    with Session(model) as session:
        return session.run({"u": u})["y"]


def silu(x):
    return x / (1 + np.exp(-x))


def recurrence(weights, u):
    """What a Mamba block computes, place by place, in double precision."""
    weights = {name: array.astype(np.float64) for name, array in weights.items()}
    x, gate = np.split(u @ weights["in_proj"], 2, -1)
    before = np.concatenate([np.zeros((len(u), 3, x.shape[2])), x], 1)
    taps = sum(before[:, tap : tap + u.shape[1]] * weights["conv"][:, 0, tap] for tap in range(4))
    x = silu(taps + weights["conv_bias"])
    step, write, read = np.split(x @ weights["x_proj"], [3, 8], -1)
    step = np.log1p(np.exp(step @ weights["dt_proj"] + weights["dt_bias"]))
    state, found = np.zeros((len(u), 16, 5)), []
    for t in range(u.shape[1]):
        decay = np.exp(step[:, t, :, None] * -np.exp(weights["A_log"]))
        state = decay * state + (step[:, t] * x[:, t])[:, :, None] * write[:, t, None]
        found.append((state * read[:, t, None]).sum(-1))
    return u + (np.stack(found, 1) + x * weights["D"]) * silu(gate) @ weights["out_proj"]


def test_the_scan_computes_the_recurrence():
    model, u = scan(), feed()
    expected = recurrence(weights_of(model), u)
    np.testing.assert_allclose(answer(model, u), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def freedoms(model):
    """What the inner channels, the low rank of the step and the states allow, by their size."""
    found = {}
    for group in groups(model):
        if group.allows("select"):
            found.setdefault(group.size, set()).update(kind.name for kind in Freedom if group.allows(kind))
    return found


MATRICES = {"SCALE", "ROTATE", "LINEAR"}


@pytest.mark.parametrize(
    ("build", "sizes", "states"),
    # States that decay by exponents of their own cannot be mixed.
    [(scan, (16, 3, 5), {"SCALE"}), (shared, (16, 3, 5), MATRICES), (in_rounds, (80, 6, 8), {"SCALE"})],
)
def test_every_dimension_is_found(build, sizes, states):
    inner, rank, state = sizes
    assert freedoms(build()) == {
        inner: {"PERMUTE", "SELECT", "SCALE"},
        rank: {"PERMUTE", "SELECT", *MATRICES},
        state: {"PERMUTE", "SELECT"} | states,
    }


def test_both_hold_the_same_tensors_along_the_inner_channels():
    def tensors(model, size):
        return [len({each.value for each in group.members}) for group in groups(model) if group.size == size]

    # in_proj, conv, its bias, x_proj, dt_proj, its bias, A_log, D, out_proj
    assert tensors(scan(), 16) == [9]
    assert tensors(in_rounds(), 80) == [9]


@dataclass(frozen=True)
class Reverse(Pass):
    """Reverse the order of every group that allows it, but leave one weight as it was."""

    name: ClassVar[str] = "reverse"
    promise: ClassVar[Promise] = Preserving()
    forgotten: str = ""

    def run(self, model, context):
        left = model.graph.initializers.get(self.forgotten)
        before = left.const_value if left is not None else None
        analysis = analyse(model)
        permute(analysis, {each.name: np.arange(each.size)[::-1] for each in analysis.groups if each.allows("permute")})
        if left is not None:
            left.const_value = before
        return Outcome()


@pytest.mark.parametrize("build", [scan, in_rounds])
def test_reordered_and_pruned_and_verified(build):
    model = build()
    bevel.optimize(model, [Reverse()])
    report = bevel.optimize(model, "prune-channels{ratio=0.5}")
    assert report.steps[0].error <= bevel.Masked().rtol
    assert report.after.macs < 0.6 * report.before.macs


@pytest.mark.parametrize("name", ["A_log", "D", "conv", "x_proj", "dt_bias"])
def test_a_weight_that_stays_behind_is_caught(name):
    with pytest.raises(PromiseBroken, match="reverse"):
        bevel.optimize(scan(), [Reverse(forgotten=name)])


# Motions


@pytest.mark.parametrize(("build", "linear"), [(scan, 1), (shared, 2)])
def test_its_scales_and_maps_move(build, linear):
    moved = check_motions(build(), {"u": feed()}, interface=True)
    assert moved.disagreements == ()
    assert moved.trials[Freedom.SCALE].dims == 3
    assert moved.trials[Freedom.LINEAR].dims == linear


def motion(model, place, kind):
    (found,) = next(each for each in groups(model) if place in map(str, each.members)).motions(kind)
    return str(found)


def test_what_is_written_moves_against_what_is_read():
    assert motion(scan(), "x_proj[1.1]", "scale") == "x_proj[1.1]: +1, x_proj[1.2]: -1"
    assert motion(shared(), "x_proj[1.1]", "linear") == "x_proj[1.1]: +1, x_proj[1.2]: -1"
    assert motion(scan(), "x_proj[1.0]", "linear") == "x_proj[1.0]: +1, dt_proj[0]: -1"


def test_states_that_are_not_carried_along_are_caught(monkeypatch):
    def lie(site):
        return [each for each in passages.passages(site) if each.iterations is None]

    monkeypatch.setattr("bevel.ir.symmetry.passages", lie)
    assert check_motions(scan(), {"u": feed()}, interface=True).disagreements != ()


@pytest.mark.parametrize("build", [scan, shared])
@pytest.mark.parametrize("passes", ["smooth{gates=true}", "rotate", "rotate{kind=klt}"])
def test_smoothed_and_turned_and_computing_the_same(build, passes):
    model, calibration = build(), [{"u": feed()}]
    expected, before = answer(model, feed(3, 5)), weights_of(model)
    (step,) = bevel.optimize(model, passes, calibration=calibration).steps
    assert step.error <= REASSOCIATION_RTOL
    assert np.abs(answer(model, feed(3, 5)) - expected).max() <= REASSOCIATION_RTOL * np.abs(expected).max()
    after = weights_of(model)
    changed = {name for name, array in before.items() if not np.array_equal(array, after[name])}
    turned = {"x_proj", "dt_proj"}  # B and C are both rows of x_proj
    assert changed == ({*turned, "in_proj", "conv", "conv_bias", "out_proj"} if "smooth" in passes else turned)


def weights_of(model):
    return {name: value.const_value.numpy().copy() for name, value in model.graph.initializers.items()}
