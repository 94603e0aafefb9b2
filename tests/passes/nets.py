"""Small networks for the tests of importances, and what flows inside them."""

import numpy as np
import onnx_ir as ir

from bevel.ir.groups import analyse
from bevel.passes.base import Context
from bevel.passes.calibration import Calibration
from bevel.passes.execution import Execution
from bevel.passes.importance import lift
from tests.graphs import MLP, MLP_WEIGHTS, graph

CONVS = """
convs (float[n, 3, 6, 6] x) => (float[n, 2, 4, 4] y) {
  h = Conv <kernel_shape = [3, 3]> (x, w1, b1)
  b = BatchNormalization (h, gain, shift, mean, variance)
  r = Relu (b)
  y = Conv <kernel_shape = [1, 1]> (r, w2)
}
"""
CONVS_WEIGHTS = {
    "w1": (8, 3, 3, 3),
    "b1": (8,),
    "gain": (8,),
    "shift": (8,),
    "mean": (8,),
    "variance": (8,),
    "w2": (2, 8, 1, 1),
}

# A depthwise kernel between two pointwise ones, then one of two groups.
DEPTHWISE = """
depthwise (float[n, 4, 6, 6] x) => (float[n, 6, 4, 4] y) {
  h = Conv <kernel_shape = [1, 1]> (x, w1)
  d = Conv <kernel_shape = [3, 3], group = 8, pads = [1, 1, 1, 1]> (h, w2)
  r = Relu (d)
  g = Conv <kernel_shape = [1, 1]> (r, w3)
  y = Conv <kernel_shape = [3, 3], group = 2> (g, w4)
}
"""
DEPTHWISE_WEIGHTS = {"w1": (8, 4, 1, 1), "w2": (8, 1, 3, 3), "w3": (10, 8, 1, 1), "w4": (6, 5, 3, 3)}

# Two heads of keys and values, each for two heads of queries; heads are three wide.
GROUPED = """
grouped (float[n, s, 8] x) => (float[n, s, 8] y)
<int64[5] queries = {0, -1, 2, 2, 3}, int64[5] keys = {0, -1, 2, 1, 3}, int64[3] flat = {0, -1, 12}> {
  q0 = MatMul (x, wq)
  q1 = Reshape (q0, queries)
  q = Transpose <perm = [0, 2, 3, 1, 4]> (q1)
  k0 = MatMul (x, wk)
  k1 = Reshape (k0, keys)
  k = Transpose <perm = [0, 2, 3, 4, 1]> (k1)
  v0 = MatMul (x, wv)
  v1 = Reshape (v0, keys)
  v = Transpose <perm = [0, 2, 3, 1, 4]> (v1)
  z = MatMul (q, k)
  p = Softmax (z)
  o0 = MatMul (p, v)
  o1 = Transpose <perm = [0, 3, 1, 2, 4]> (o0)
  o = Reshape (o1, flat)
  y = MatMul (o, wo)
}
"""
GROUPED_WEIGHTS = {"wq": (8, 12), "wk": (8, 6), "wv": (8, 6), "wo": (12, 8)}

TEXTS = {
    "mlp": (MLP, MLP_WEIGHTS, (6,)),
    "convs": (CONVS, CONVS_WEIGHTS, (3, 6, 6)),
    "depthwise": (DEPTHWISE, DEPTHWISE_WEIGHTS, (4, 6, 6)),
    "grouped": (GROUPED, GROUPED_WEIGHTS, (5, 8)),
}


class Net:
    """A network, its weights, and three feeds of four samples."""

    def __init__(self, name, **planted):
        text, weights, self.shape = TEXTS[name]
        self.model = graph(text, weights)
        if "variance" in weights:
            self.put("variance", np.abs(self["variance"]) + 0.5)
        for weight, array in planted.items():
            self.put(weight, array)
        rng = np.random.default_rng(1)
        self.made_up = False
        self.feeds = [{"x": rng.standard_normal((4, *self.shape)).astype(np.float32)} for _ in range(3)]

    def __getitem__(self, name):
        return self.model.graph.initializers[name].const_value.numpy().astype(np.float64)

    def put(self, name, array):
        self.model.graph.initializers[name].const_value = ir.tensor(np.asarray(array, np.float32), name=name)

    @property
    def context(self):
        calibration = Calibration(lambda: self.feeds, "a test")
        made_up = Calibration(lambda: self.feeds, "a test", more=lambda count: calibration)
        return Context(0, made_up if self.made_up else calibration, Execution())

    def inner(self, name):
        """All that a value inside the network is on the feeds, in double precision."""
        copy = self.model.clone()
        found = next(value for node in copy.graph for value in node.outputs if value.name == name)
        copy.graph.outputs.append(found)
        with Execution().open(copy) as runs:
            return np.concatenate([runs.run(feed)[name] for feed in self.feeds]).astype(np.float64)

    def score(self, importance, *groups, **options):
        """The scores of groups by the places of their first axes: `w1[0]`, or all of them."""
        analysis = analyse(self.model)
        chosen = [analysis[name] for name in groups] or [each for each in analysis.groups if each.allows("permute")]
        return lift.score(importance, analysis, chosen, self.context, **options)

    def raw(self, importance, group):
        """The scores of one group before anything is divided by anything."""
        return self.score(importance, group, normalize="none")[group]
