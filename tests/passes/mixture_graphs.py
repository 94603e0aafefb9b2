"""One mixture of experts in the forms that exporters and runtimes give it, from the same weights."""

import numpy as np
import onnx
import onnx_ir as ir
from scipy.special import softmax

import bevel

WIDTH, HIDDEN, EXPERTS, ACTIVE = 8, 12, 4, 2
CONSTANTS = """
  k = Constant <value_ints = [2]> ()
  flat = Constant <value_ints = [-1, 8]> ()
  minus = Constant <value_ints = [-1]> ()
  zero = Constant <value_ints = [0]> ()
  one = Constant <value_ints = [1]> ()
  two = Constant <value_ints = [2]> ()
"""
ROUTER = """
  rows = Reshape (x, flat)
  l = MatMul (rows, router)
  p = Softmax <axis = -1> (l)
  v, i = TopK <axis = -1> (p, k)
  t = ReduceSum <keepdims = 1> (v, minus)
  g = Div (v, t)
"""
END = """
  size = Shape (x)
  y = Reshape (total, size)
"""
GATHERED = """
  r1 = Unsqueeze (rows, one)
  twice = Constant <value_ints = [1, 2, 1]> ()
  r2 = Expand (r1, twice)
  r3 = Reshape (r2, flat)
  ids = Reshape (i, minus)
  w = Gather (gate_up, ids)
  c = Unsqueeze (r3, minus)
  h = MatMul (w, c)
  hs = Squeeze (h, minus)
  a, u = Split <axis = 1, num_outputs = 2> (hs)
  s = Sigmoid (a)
  b = Mul (a, s)
  q = Mul (b, u)
  w2 = Gather (down, ids)
  q1 = Unsqueeze (q, minus)
  o = MatMul (w2, q1)
  os = Squeeze (o, minus)
  gs = Reshape (g, minus)
  gc = Unsqueeze (gs, minus)
  og = Mul (os, gc)
  pairs = Constant <value_ints = [-1, 2, 8]> ()
  slots = Reshape (og, pairs)
  total = ReduceSum <keepdims = 0> (slots, one)
"""
ALL = """
  xs = Unsqueeze (rows, zero)
  a = MatMul (xs, first)
  u = MatMul (xs, second)
  s = Sigmoid (a)
  b = Mul (a, s)
  q = Mul (b, u)
  o = MatMul (q, third)
  ls = Shape (l)
  zeros = ConstantOfShape (ls)
  full = ScatterElements <axis = 1> (zeros, i, g)
  turned = Transpose <perm = [1, 0]> (full)
  column = Unsqueeze (turned, two)
  og = Mul (o, column)
  total = ReduceSum <keepdims = 0> (og, zero)
"""
OPERATOR = """
  rows = Reshape (x, flat)
  l = MatMul (rows, router)
  total = com.microsoft.MoE <k = 2, activation_type = "swiglu", swiglu_fusion = 1, normalize_routing_weights = 1>
    (l2, l, interleaved, , down)
"""


def loop():
    """Return what a loop over experts is when it is traced; the last expert stands first."""
    text = """
      ends = Constant <value_floats = [0.0, 1.0]> ()
      depth = Constant <value_ints = [4]> ()
      hot = OneHot <axis = -1> (i, depth, ends)
      mask = Transpose <perm = [2, 1, 0]> (hot)
      shape = Shape (rows)
      sum4 = ConstantOfShape (shape)
    """
    for e in reversed(range(EXPERTS)):
        text += f"""
          n{e} = Constant <value_int = {e}> ()
          m{e} = Gather (mask, n{e})
          nz{e} = NonZero (m{e})
          place{e}, token{e} = Split <axis = 0, num_outputs = 2> (nz{e})
          at{e} = Reshape (token{e}, minus)
          slot{e} = Reshape (place{e}, minus)
          x{e} = Gather (rows, at{e})
          a{e} = MatMul (x{e}, first{e})
          u{e} = MatMul (x{e}, second{e})
          s{e} = Sigmoid (a{e})
          b{e} = Mul (a{e}, s{e})
          q{e} = Mul (b{e}, u{e})
          o{e} = MatMul (q{e}, third{e})
          c{e} = Unsqueeze (at{e}, one)
          d{e} = Unsqueeze (slot{e}, one)
          pair{e} = Concat <axis = 1> (c{e}, d{e})
          w{e} = GatherND (g, pair{e})
          gate{e} = Unsqueeze (w{e}, one)
          og{e} = Mul (o{e}, gate{e})
          sum{e} = ScatterND <reduction = "add"> (sum{e + 1}, c{e}, og{e})
        """
    return text + "total = Identity (sum0)\n"


FORMS = {
    "gathered": ROUTER + GATHERED,
    "all": ROUTER + ALL,
    "loop": ROUTER + loop(),
    "operator": OPERATOR.replace("l2", "rows"),
}


def weights(seed=0, spread=1.0):
    """Return stacks of experts that are one layer, with so much noise."""
    rng = np.random.default_rng(seed)

    def stack(*shape):
        noise = spread * rng.standard_normal((EXPERTS, *shape))
        return ((rng.standard_normal(shape) + noise) / np.sqrt(shape[0])).astype(np.float32)

    router = rng.standard_normal((WIDTH, EXPERTS)).astype(np.float32)
    return {
        "first": stack(WIDTH, HIDDEN),
        "second": stack(WIDTH, HIDDEN),
        "third": stack(HIDDEN, WIDTH),
        "router": router,
    }


def arranged(arrays):
    """Return the same weights in all arrangements that the forms have."""
    first, second, third = arrays["first"], arrays["second"], arrays["third"]
    found = dict(arrays)
    turned = [array.transpose(0, 2, 1) for array in (first, second)]
    found["gate_up"] = np.concatenate(turned, axis=1)
    found["interleaved"] = np.stack(turned, axis=2).reshape(EXPERTS, 2 * HIDDEN, WIDTH)
    found["down"] = third.transpose(0, 2, 1)
    for e in range(EXPERTS):
        found |= {f"first{e}": first[e], f"second{e}": second[e], f"third{e}": third[e]}
    return found


def of_text(text, arrays):
    """Return a model of the nodes in a text, with those of the arrays that it names."""
    body = f"m (float[b, s, 8] x) => (float[b, s, 8] y) {{ {CONSTANTS} {text} }}"
    proto = onnx.parser.parse_model('<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]> ' + body)
    read = {name for node in proto.graph.node for name in node.input}
    for name, array in arrays.items():
        if name in read:
            proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ascontiguousarray(array), name))
    return bevel.load(proto)


def mixture(form, arrays):
    """Return a model that is one mixture."""
    return of_text(FORMS[form] + END, arranged(arrays))


def feeds(count=4, seed=0):
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((2, 10, WIDTH)).astype(np.float32)} for _ in range(count)]


def expected(x, arrays):
    """Return what the mixture gives."""
    rows = x.reshape(-1, WIDTH)
    logits = rows @ arrays["router"]
    worst = np.argsort(-logits, axis=1)[:, ACTIVE:]
    np.put_along_axis(logits, worst, -np.inf, axis=1)
    gates = softmax(logits, axis=1)
    a, u = (np.einsum("rc,ech->erh", rows, arrays[name]) for name in ("first", "second"))
    outputs = np.einsum("erh,ehc->erc", a / (1 + np.exp(-a)) * u, arrays["third"])
    return np.einsum("re,erc->rc", gates, outputs).reshape(x.shape)


def content(model: ir.Model):
    """Return the shapes of all weights."""
    return sorted(tuple(value.shape.numpy()) for value in model.graph.initializers.values())
