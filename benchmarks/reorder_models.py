"""What orders are tried on: a character GPT, a sentence encoder, and attention with large channels planted in it.

    for subject in SUBJECTS.values():
        bevel.optimize(model := subject.model(), "reorder-channels{by=search}", calibration=subject.calibration())
        subject.quality(model)          # {"perplexity": 5.31}, in ONNX Runtime, on held-out data

In the planted networks 6% of the channels are 13 times as large as the others, anywhere or one in each 16, in every
head: in keys, as outliers of large language models are, and in what the output and the second feed-forward layer
multiply their inputs by, with the layers before them as much smaller.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from statistics import mean
from typing import Any, Final

import numpy as np
import onnx
import onnx_ir as ir

import bevel
from benchmarks import character_gpt as gpt
from benchmarks import pruning_accuracy_functions as functions
from bevel.backends.onnxruntime import Session

Array = np.ndarray[Any, Any]
Feed = dict[str, Array]

WIDTH, HEADS, HEAD, HIDDEN = 256, 4, 128, 1024
STRETCH, TIMES = 16, 13.0
PLANTED: Final = f"""
<ir_version: 10, opset_import: ["" : 21]>
planted (float[n, s, {WIDTH}] x) => (float[n, s, {WIDTH}] y)
<int64[4] split = {{0, 0, {HEADS}, {HEAD}}}, int64[3] flat = {{0, 0, {HEADS * HEAD}}}, float scale = {{0.0884}}> {{
  q0 = MatMul (x, wq)
  q1 = Reshape (q0, split)
  q2 = Transpose <perm = [0, 2, 1, 3]> (q1)
  q = Mul (q2, scale)
  k0 = MatMul (x, wk)
  k1 = Reshape (k0, split)
  k = Transpose <perm = [0, 2, 3, 1]> (k1)
  v0 = MatMul (x, wv)
  v1 = Reshape (v0, split)
  v = Transpose <perm = [0, 2, 1, 3]> (v1)
  z = MatMul (q, k)
  p = Softmax (z)
  o0 = MatMul (p, v)
  o1 = Transpose <perm = [0, 2, 1, 3]> (o0)
  o = Reshape (o1, flat)
  a = MatMul (o, wo)
  r = Add (x, a)
  g = MatMul (r, up)
  h = Relu (g)
  d = MatMul (h, down)
  y = Add (r, d)
}}
"""


@dataclass(frozen=True)
class Subject:
    """A network, unlabelled inputs, what its quality is, and how wide its heads are."""

    loaded: Callable[[], ir.Model]
    calibration: Callable[[], list[Feed]]
    quality: Callable[[ir.Model], Mapping[str, float]]
    head: int
    measures: tuple[str, ...]

    def model(self) -> ir.Model:
        """Return a copy of the network, the caller's own."""
        return self.loaded().clone()


@cache
def planted(chosen: Callable[[np.random.Generator, int], Array]) -> ir.Model:
    """Return the network with large channels where `chosen` has ones."""
    proto, rng = onnx.parser.parse_model(PLANTED), np.random.default_rng(0)
    inner = HEADS * HEAD
    large = np.concatenate([1 + (TIMES - 1) * chosen(rng, HEAD) for _ in range(HEADS)])
    values = np.concatenate([1 + (TIMES - 1) * chosen(rng, HEAD) for _ in range(HEADS)])
    hidden = 1 + (TIMES - 1) * chosen(rng, HIDDEN)
    weights = {
        "wq": normal(rng, WIDTH, inner) / large,
        "wk": normal(rng, WIDTH, inner) * large,
        "wv": normal(rng, WIDTH, inner) / values,
        "wo": normal(rng, inner, WIDTH) * values[:, None],
        "up": normal(rng, WIDTH, HIDDEN) / hidden,
        "down": normal(rng, HIDDEN, WIDTH) * hidden[:, None],
    }
    for name, array in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    return bevel.load(proto)


def anywhere(rng: np.random.Generator, size: int) -> Array:
    """Return ones at so many places as there are stretches: some blocks of 32 have none, and lose nothing."""
    ones = np.zeros(size)
    ones[rng.permutation(size)[: size // STRETCH]] = 1
    return ones


def spread(rng: np.random.Generator, size: int) -> Array:
    """Return ones at a place of each stretch, zeros elsewhere: no block of 32 is without."""
    stretches = np.zeros((size // STRETCH, STRETCH))
    stretches[np.arange(len(stretches)), rng.integers(0, STRETCH, len(stretches))] = 1
    return stretches.ravel()


def normal(rng: np.random.Generator, inputs: int, outputs: int) -> Array:
    return rng.standard_normal((inputs, outputs)) / np.sqrt(inputs)


def noise(seed: int) -> list[Feed]:
    """Return two feeds of 16 sequences of 32 vectors."""
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((16, 32, WIDTH)).astype(np.float32)} for _ in range(2)]


def planted_quality(name: str, model: ir.Model) -> Mapping[str, float]:
    """Return the squared error of the output over its energy."""
    expected, found = original(name), answers(model, noise(2))
    return {"output error": float(np.square(found - expected).sum() / np.square(expected).sum())}


@cache
def minilm() -> ir.Model:
    from tests import zoo

    return bevel.load(zoo.minilm())


def minilm_quality(model: ir.Model) -> Mapping[str, float]:
    """Return how high the right function ranks for its docstring, and how far vectors turn."""
    queries, documents = encoded(model)
    scores = queries @ documents.T
    places = (scores > np.diagonal(scores)[:, None]).sum(1)
    pairs = zip((queries, documents), original("minilm"), strict=True)
    turned = 1 - mean(float((ours * theirs).sum(1).mean()) for ours, theirs in pairs)
    return {"MRR": float((1 / (1 + places)).mean()), "cosine error": turned}


def encoded(model: ir.Model) -> tuple[Array, Array]:
    wanted = functions.corpus()["test"]
    texts = ([function.query for function in wanted], [function.document for function in wanted])
    first, second = (functions.encoded(answers, model, list(each)) for each in texts)
    return first, second


@cache
def original(name: str) -> Any:
    """Return what a network gave before anything was done to it."""
    return encoded(minilm()) if name == "minilm" else answers(SUBJECTS[name].model(), noise(2))


def answers(model: ir.Model, feeds: Iterable[Feed]) -> Array:
    with Session(model, threads=1) as session:
        return np.concatenate([next(iter(session.run(feed).values())) for feed in feeds])


def plantation(name: str, chosen: Callable[[np.random.Generator, int], Array]) -> Subject:
    quality = partial(planted_quality, name)
    return Subject(partial(planted, chosen), lambda: noise(1), quality, HEAD, ("output error",))


SUBJECTS: Final[dict[str, Subject]] = {
    "planted anywhere": plantation("planted anywhere", anywhere),
    "planted": plantation("planted", spread),
    "character GPT": Subject(
        cache(gpt.model),
        gpt.calibration,
        lambda model: {"perplexity": gpt.perplexity(model)},
        gpt.EACH,
        ("perplexity",),
    ),
    "MiniLM": Subject(
        minilm, lambda: functions.feeds(functions.corpus()["calibration"]), minilm_quality, 32, ("MRR", "cosine error")
    ),
}
