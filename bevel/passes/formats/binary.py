"""One bit for most weights, four for those of the inputs that matter most."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from bevel.passes.formats.schemes import Operators, Scheme, Sizes, V, coded, coded_sizes, decoded

Array = np.ndarray[Any, Any]

FLOAT: Final = np.dtype(np.float32)
SHORT: Final = np.dtype(np.uint16)
LONG: Final = np.dtype(np.int32)
SALIENT_BITS: Final = 4
STEPS: Final = (1 << SALIENT_BITS) - 1
# How often signs, the scales of rows and those of columns are fitted to each other.
TIMES: Final = 12


@dataclass(frozen=True)
class Binary(Scheme):
    """Signs with scales of rows and columns; the inputs that matter most in 4 bits (PTQ1.61).

    A weight is `(scale of its row * sign + mean of its row) * scale of its column`. The share of inputs whose weights
    and activations are largest is kept in 4 bits, with a scale and a zero point for each row that these alone give.
    Scales are fitted by least squares, here to the weights, or to the weights as the inputs' energies count them. The
    order of the inputs is stored.

    Source: Zhao et al. 2025, PTQ1.61 (without its training of scales and weights).
    """

    share: float = 0.2

    def salient(self, inner: int) -> int:
        """Return how many inputs are protected."""
        return min(max(round(self.share * inner), 1), inner - 1) if inner > 1 else 0

    def sizes(self, out: int, inner: int) -> Sizes:
        """Return signs, codes, scales, and where each input is."""
        many = self.salient(inner)
        rows, kind = (out, 1), SHORT if inner <= 1 << 16 else LONG
        return {
            **coded_sizes("signs", 1, out * (inner - many)),
            **coded_sizes("codes", SALIENT_BITS, out * many),
            **dict.fromkeys(("spread", "mean", "step", "least"), (rows, FLOAT)),
            "columns": ((1, inner - many), FLOAT),
            "places": ((inner,), kind),
        }

    def encode(self, weights: Array, strength: Array | None = None) -> dict[str, Array]:
        """Return the tensors; inputs matter by the energy of what their weights add to the outputs."""
        out, inner = weights.shape
        many = self.salient(inner)
        peak = np.float32(np.abs(weights).max(initial=0)) or np.float32(1)  # the squares of small numbers are zero
        weights = weights / peak
        heavy = np.ones(inner, np.float32) if strength is None else np.maximum(strength, 0).astype(np.float32)
        order = np.argsort(-heavy * np.square(weights).sum(0), kind="stable")
        first, rest = np.sort(order[:many]), np.sort(order[many:])
        codes, step, least = _steps(weights[:, first])
        signs, spread, mean, columns = _binary(weights[:, rest], heavy[rest])
        places = np.argsort(np.concatenate([first, rest]), kind="stable")
        return {
            **coded("signs", 1, signs.astype(np.uint8).ravel()),
            **coded("codes", SALIENT_BITS, codes.ravel()),
            **{"spread": spread * peak, "mean": mean * peak, "step": step * peak, "least": least * peak},
            "columns": columns,
            "places": places.astype(self.sizes(out, inner)["places"][1]),
        }

    def decode(self, operators: Operators[V], tensors: Mapping[str, V], out: int, inner: int) -> V:
        """Return protected inputs and the others, put in their places."""
        many = self.salient(inner)
        codes = operators.floats(decoded(operators, tensors, "codes", SALIENT_BITS, out * many))
        kept = operators.multiply(operators.reshape(codes, (out, many)), tensors["step"])
        kept = operators.add(kept, tensors["least"])
        bits = operators.floats(decoded(operators, tensors, "signs", 1, out * (inner - many)))
        ones = operators.constant(np.ones((1, 1), np.float32))
        signs = operators.subtract(operators.add(bits, bits), ones)
        signs = operators.reshape(signs, (out, inner - many))
        rest = operators.add(operators.multiply(signs, tensors["spread"]), tensors["mean"])
        both = operators.concatenate([kept, operators.multiply(rest, tensors["columns"])], 1)
        found = operators.gather(operators.transpose(both), operators.integers(tensors["places"]))
        return operators.transpose(found)


def _steps(weights: Array) -> tuple[Array, Array, Array]:
    """Return codes, step and least value of each row."""
    least, most = (edge(weights, axis=1, keepdims=True, initial=0) for edge in (np.min, np.max))
    step = (most / STEPS - least / STEPS).astype(np.float32)
    step = np.where(step > 0, step, np.float32(1))
    codes = np.clip(np.rint((weights - least) / step), 0, STEPS).astype(np.uint8)
    return codes, step, least.astype(np.float32)


def _binary(weights: Array, heavy: Array) -> tuple[Array, Array, Array, Array]:
    """Return where weights are above the middle of their row, that middle, how far they are, and columns' scales."""
    columns = np.ones((1, weights.shape[1]), np.float32)
    mean = np.average(weights, axis=1, weights=heavy, keepdims=True) if heavy.any() else weights.mean(1, keepdims=True)
    above = weights >= mean
    for _ in range(TIMES):
        spread, mean = _rows(weights, above, columns, heavy)
        columns = _columns(weights, np.where(above, mean + spread, mean - spread))
        above = (weights - mean * columns) * columns >= 0
    spread, mean = _rows(weights, above, columns, heavy)
    return above, spread.astype(np.float32), mean.astype(np.float32), columns.astype(np.float32)


def _rows(weights: Array, above: Array, columns: Array, heavy: Array) -> tuple[Array, Array]:
    """Return the best spread and mean of each row: half of what the values of both signs differ by, and their mean."""
    energy, match = heavy * columns * columns, heavy * columns * weights
    high, low = (
        (match * side).sum(1, keepdims=True) / np.maximum((energy * side).sum(1, keepdims=True), 1e-30)
        for side in (above, ~above)
    )
    one_sided = above.all(1, keepdims=True) | ~above.any(1, keepdims=True)
    spread = np.where(one_sided, 0, (high - low) / 2)
    mean = np.where(one_sided, high + low, (high + low) / 2)
    return spread, mean


def _columns(weights: Array, values: Array) -> Array:
    energy = np.square(values).sum(0, keepdims=True)
    best = (weights * values).sum(0, keepdims=True) / np.maximum(energy, 1e-30)
    found: Array = np.where(energy > 0, best, 1).astype(np.float32)
    return found


PTQ161: Final = Binary("ptq161")
