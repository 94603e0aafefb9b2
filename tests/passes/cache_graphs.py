"""Small decoders with caches: one block of attention with shared key-value heads, in several forms."""

from functools import cache

import numpy as np
import onnx
import onnx_ir as ir

import bevel
from bevel.backends.onnxruntime import Session

HEADER = '<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1]>'
SIGNATURE = """
decoder (int64[b, s] ids, float[b, 2, p, 16] past_key, float[b, 2, p, 16] past_value)
  => (float[b, s, 30] logits, float[b, 2, t, 16] present_key, float[b, 2, t, 16] present_value)
"""
EMBED = "x = Gather (embed, ids) q = MatMul (x, wq) k = MatMul (x, wk) v = MatMul (x, wv)"
ANSWER = "r = MatMul (o, wo) h = Add (x, r) logits = MatMul (h, head)"

GROUPED = f"""
{SIGNATURE}
<int64[1] one = {{1}}, int64[1] two = {{2}}, int64[1] none = {{0}}, int32[1] single = {{1}}> {{
  {EMBED}
  sizes = Shape (past_key)
  batch = Slice (sizes, none, one)
  before = Gather <axis = 0> (sizes, two)
  new_sizes = Shape (ids)
  new = Gather <axis = 0> (new_sizes, one)
  total_long = Add (before, new)
  total_vector = Cast <to = 6> (total_long)
  total = Squeeze (total_vector, none)
  last = Sub (total_vector, single)
  lengths = Expand (last, batch)
  o, present_key, present_value = com.microsoft.GroupQueryAttention
    <num_heads = 4, kv_num_heads = 2, do_rotary = ROTARY> (q, k, v, past_key, past_value, lengths, total ANGLES)
  {ANSWER}
}}
"""

SPLIT = """
  q1 = Reshape (q, many) qh = Transpose <perm = [0, 2, 1, 3]> (q1)
  k1 = Reshape (k, few) kh = Transpose <perm = [0, 2, 1, 3]> (k1)
  v1 = Reshape (v, few) vh = Transpose <perm = [0, 2, 1, 3]> (v1)
"""
MERGE = "ot = Transpose <perm = [0, 2, 1, 3]> (oh) o = Reshape (ot, flat)"
SHAPES = "<int64[4] many = {0, 0, 4, 16}, int64[4] few = {0, 0, 2, 16}, int64[3] flat = {0, 0, 64}>"

APPENDED = f"""
{SIGNATURE}
{SHAPES} {{
  {EMBED} {SPLIT}
  present_key = Concat <axis = 2> (past_key, kh)
  present_value = Concat <axis = -2> (past_value, vh)
  oh = Attention <is_causal = 1> (qh, present_key, present_value)
  {MERGE} {ANSWER}
}}
"""
STANDARD = f"""
{SIGNATURE}
{SHAPES} {{
  {EMBED} {SPLIT}
  oh, present_key, present_value = Attention <is_causal = 1> (qh, kh, vh, , past_key, past_value)
  {MERGE} {ANSWER}
}}
"""
WEIGHTS = {"embed": (30, 32), "wq": (32, 64), "wk": (32, 32), "wv": (32, 32), "wo": (64, 32), "head": (32, 30)}


def decoder(form: str, *, rotary: bool = False, dtype: type = np.float32) -> ir.Model:
    """Return a decoder with seeded weights, in which some entries of keys are larger than others."""
    return _decoder(form, rotary, dtype).clone()


@cache
def _decoder(form: str, rotary: bool, dtype: type) -> ir.Model:
    text = {"grouped": GROUPED, "appended": APPENDED, "standard": STANDARD}[form]
    text = text.replace("ROTARY", str(int(rotary))).replace("ANGLES", ", cos, sin" if rotary else "")
    if dtype == np.float16:
        text = text.replace("float[", "float16[")
    model = onnx.parser.parse_model(HEADER.format(opset=23) + text)
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal(shape) / 32**0.5 for name, shape in WEIGHTS.items()}
    arrays["embed"] *= 3
    arrays["wk"] *= np.where(np.arange(32) % 16 == 3, 8, 1)
    angles = np.arange(64)[:, None] / 10.0 ** np.arange(8)
    arrays |= {"cos": np.cos(angles), "sin": np.sin(angles)} if rotary else {}
    for name, array in arrays.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(dtype), name))
    return bevel.load(model)


def feeds(count: int, *, length: int = 6, dtype: type = np.float32) -> list[dict[str, np.ndarray]]:
    """Make prompts up; there is nothing in the caches yet."""
    rng = np.random.default_rng(1)
    empty = np.zeros((1, 2, 0, 16), dtype)
    return [{"ids": rng.integers(0, 30, (1, length)), "past_key": empty, "past_value": empty} for _ in range(count)]


def continued(model: ir.Model, count: int, *, length: int = 6) -> list[dict[str, np.ndarray]]:
    """Return prompts, and a token each behind what the caches hold after them."""
    prompts = feeds(count, length=length)
    with Session(model) as session:
        answers = [session.run(feed) for feed in prompts]
    pasts = [{"past_key": answer["present_key"], "past_value": answer["present_value"]} for answer in answers]
    return prompts + [{"ids": feed["ids"][:, :1], **past} for feed, past in zip(prompts, pasts, strict=True)]
