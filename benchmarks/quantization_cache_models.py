"""Decoders with caches for the benchmark of caches in codes: small Llamas as ONNX text, with given weights."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
import onnx
import onnx_ir as ir

import bevel
from benchmarks import character_gpt as gpt

Array = np.ndarray[Any, Any]

LONGEST: Final = 8192  # angles are there for so many positions
FORMS: Final = ("grouped", "appended")


def decoder(weights: Mapping[str, Array], form: str, heads: int, shared: int, each: int) -> ir.Model:
    """Return a Llama with caches, in whose form `grouped` one operator attends; else a Concat makes caches longer.

    Inputs are `ids` [1, s]; how many tokens there are with them (`total`) and without the last of them (`lengths` [1]);
    and for each layer keys and values of the tokens before, `past_key_0` [1, shared, p, each] and so on. Weights have
    the names and shapes of the character GPT's.
    """
    layers = sum(name.endswith("norm1.weight") for name in weights)
    caches = [f"{kind}_{layer}" for layer in range(layers) for kind in ("key", "value")]
    numbers = f"""int64[4] many = {{0, 0, {heads}, {each}}}, int64[4] few = {{0, 0, {shared}, {each}}},
      int64[3] flat = {{0, 0, {heads * each}}}, int64[1] first = {{1}}, int64[1] none = {{0}}, int64 zero = {{0}},
      int64 one = {{1}}"""
    body = [f"x0 = Gather (characters, ids) {PLACES}", *(_layer(form, layer, heads, shared) for layer in range(layers))]
    text = f"""
    <ir_version: 10, opset_import: ["" : 23, "com.microsoft" : 1]>
    decoder (int64[1, s] ids, int32[1] lengths, int32 total,
      {", ".join(f"float[1, {shared}, p, {each}] past_{name}" for name in caches)})
      => (float[1, s, {len(weights["head.weight"])}] logits,
      {", ".join(f"float[1, {shared}, t, {each}] present_{name}" for name in caches)}) <{numbers}> {{
      {" ".join(body)}
      last = RMSNormalization <epsilon = 1e-6> (x{layers}, norm)
      logits = MatMul (last, head)
    }}"""
    model = onnx.parser.parse_model(text)
    angles = np.outer(np.arange(LONGEST), 10000.0 ** (-np.arange(0, each, 2) / each))
    arrays = {_name(name): array.T if array.ndim == 2 else array for name, array in weights.items()}
    arrays |= {"characters": weights["characters.weight"], "cos": np.cos(angles), "sin": np.sin(angles)}
    for name, array in arrays.items():
        tensor = onnx.numpy_helper.from_array(np.ascontiguousarray(array, np.float32), name)
        model.graph.initializer.append(tensor)
    return bevel.load(model)


# Where each of the new tokens stands, and which places it sees.
PLACES: Final = """
    sizes = Shape (ids)
    new = Gather (sizes, one)
    all = Cast <to = 7> (total)
    before = Sub (all, new)
    every = Range (zero, all, one)
    places = Slice (every, start, stop, none)
    rows = Unsqueeze (places, first)
    ids_at = Unsqueeze (places, none)
    later = Greater (every, rows)
    seen = Not (later)
""".replace("places = Slice (every, start, stop, none)", "places = Range (before, all, one)")


def _name(name: str) -> str:
    return name.removesuffix(".weight").replace(".", "_")


def _layer(form: str, layer: int, heads: int, shared: int) -> str:
    """Return the text of one layer, which reads `x{layer}` and gives the next."""
    attend = GROUPED if form == "grouped" else APPENDED
    text = BEFORE + attend + AFTER
    replaced = text.replace("HEADS", str(heads)).replace("SHARED", str(shared)).replace("NEXT", str(layer + 1))
    return replaced.replace("#", str(layer))


BEFORE: Final = """
    n# = RMSNormalization <epsilon = 1e-6> (x#, blocks_#_norm1)
    q# = MatMul (n#, blocks_#_q) k# = MatMul (n#, blocks_#_k) v# = MatMul (n#, blocks_#_v)
"""
GROUPED: Final = """
    o#, present_key_#, present_value_# = com.microsoft.GroupQueryAttention
      <num_heads = HEADS, kv_num_heads = SHARED, do_rotary = 1>
      (q#, k#, v#, past_key_#, past_value_#, lengths, total, cos, sin)
"""
APPENDED: Final = """
    qs# = Reshape (q#, many) qh# = Transpose <perm = [0, 2, 1, 3]> (qs#)
    ks# = Reshape (k#, few) kh# = Transpose <perm = [0, 2, 1, 3]> (ks#)
    vs# = Reshape (v#, few) vh# = Transpose <perm = [0, 2, 1, 3]> (vs#)
    qt# = RotaryEmbedding (qh#, cos, sin, ids_at) kt# = RotaryEmbedding (kh#, cos, sin, ids_at)
    present_key_# = Concat <axis = 2> (past_key_#, kt#)
    present_value_# = Concat <axis = 2> (past_value_#, vh#)
    oh# = Attention (qt#, present_key_#, present_value_#, seen)
    os# = Transpose <perm = [0, 2, 1, 3]> (oh#) o# = Reshape (os#, flat)
"""
AFTER: Final = """
    r# = MatMul (o#, blocks_#_out)
    y# = Add (x#, r#)
    m# = RMSNormalization <epsilon = 1e-6> (y#, blocks_#_norm2)
    g# = MatMul (m#, blocks_#_gate) s# = Sigmoid (g#) a# = Mul (g#, s#)
    u# = MatMul (m#, blocks_#_up) h# = Mul (a#, u#)
    d# = MatMul (h#, blocks_#_down)
    xNEXT = Add (y#, d#)
"""


def trained(form: str) -> ir.Model:
    """Return the character GPT with caches."""
    weights = {name: array.numpy() for name, array in gpt.trained().state_dict().items() if name != "frequencies"}
    return decoder(weights, form, gpt.HEADS, gpt.SHARED, gpt.EACH)


def random(form: str, *, layers: int = 2, heads: int = 16, shared: int = 4, each: int = 64) -> ir.Model:
    """Return a decoder with random weights."""
    rng, width = np.random.default_rng(0), heads * each
    shapes = {"q": width, "k": shared * each, "v": shared * each, "out": width, "gate": 2 * width, "up": 2 * width}
    weights: dict[str, Array] = {"characters.weight": rng.standard_normal((97, width))}
    for layer in range(layers):
        block = f"blocks.{layer}"
        weights |= {f"{block}.norm{number}.weight": np.ones(width) for number in (1, 2)}
        weights |= {f"{block}.{name}.weight": _draw(rng, rows, width) for name, rows in shapes.items()}
        weights[f"{block}.down.weight"] = _draw(rng, width, 2 * width)
    weights |= {"norm.weight": np.ones(width), "head.weight": _draw(rng, 97, width)}
    return decoder(weights, form, heads, shared, each)


def _draw(rng: np.random.Generator, rows: int, columns: int) -> Array:
    return rng.standard_normal((rows, columns)) / columns**0.5


def empty(model: ir.Model) -> dict[str, Array]:
    """Return empty caches for a model, in floats or in codes."""
    return caches_of(model, 0)


def caches_of(model: ir.Model, length: int, seed: int = 0) -> dict[str, Array]:
    """Return caches of some length with random contents, in floats or in codes."""
    rng = np.random.default_rng(seed)
    found = {}
    for value in model.graph.inputs:
        if (value.name or "").startswith("past"):
            assert value.shape is not None and value.dtype is not None
            shape = (1, int(value.shape[1]), length, int(value.shape[3]))
            drawn: Iterator[Any] | Array = rng.standard_normal(shape) * (1 if value.dtype == ir.DataType.FLOAT else 40)
            found[value.name or ""] = np.asarray(drawn).astype(value.dtype.numpy())
    return found


def feed(ids: Array, caches: Mapping[str, Array], total: int) -> dict[str, Array]:
    """Return the inputs for some tokens; `total` is how many there are with those in the caches."""
    return {"ids": ids, "lengths": np.array([total - 1], np.int32), "total": np.array(total, np.int32), **caches}
