"""How the codes and scales of a weight are chosen: nearest, searched, or with the errors made up for."""

from math import nan
from typing import Any, Final

import numpy as np

from bevel.passes.fitting.layers import Layer
from bevel.passes.fitting.moments import Moments
from bevel.passes.formats import Format, Grid, Quantized
from bevel.passes.formats.blocks import Axis, each, join, parts, split
from bevel.passes.quantization.adaround import adaptive
from bevel.passes.quantization.feedback import compensated
from bevel.passes.quantization.search import FORGIVING, SQUARED, search
from bevel.passes.quantization.targets import Target

Array = np.ndarray[Any, Any]

MEASURES: Final = {"hqq": FORGIVING}
# What chooses codes with the second moments of inputs at hand.
LEARNT: Final = {"gptq": compensated, "adaround": adaptive, "cbq": adaptive}


def quantized(matrix: Array, fmt: Format, axis: Axis, block: int, rounding: str) -> Quantized:
    """Return a weight in a format, without data: to the nearest codes of scales that span blocks, or are searched."""
    if rounding == "nearest":
        return fmt.encode(matrix, axis, block)
    fmt = fmt.fitted(matrix, axis, block)
    base, blocks = fmt.base(matrix), split(matrix, axis, block)
    codes = np.empty(blocks.shape, np.uint8)
    grid = search(fmt, blocks, base, MEASURES.get(rounding, SQUARED), codes=codes)
    return fmt.assemble(codes, grid, matrix.shape, axis, block, base)


def compensating(
    target: Target, matrix: Array, fmt: Format, axis: Axis, block: int, moment: Moments, rounding: str = "gptq"
) -> tuple[Quantized, float]:
    """Return a layer's weight in a format, and the relative squared error of its output.

    Scales leave the least error if inputs are weighted with their second moments; then codes are chosen together.
    """
    layer = target.layer
    assert layer is not None
    fmt = fmt.fitted(matrix, axis, block)
    base, blocks = fmt.base(matrix), split(matrix, axis, block)
    strength = np.einsum("gii->gi", moment.second).astype(np.float32)
    heavy = np.broadcast_to(strength[:, :, None], _columns(layer, matrix).shape)
    grid = search(fmt, blocks, base, SQUARED, split(_matrix(target, layer, heavy), axis, block))

    def everywhere(array: Array) -> Array:
        whole = join(np.ascontiguousarray(np.broadcast_to(array, blocks.shape)), matrix.shape, axis)
        return _columns(layer, whole)

    of_each = Grid(everywhere(grid.scale), None if grid.zero is None else everywhere(grid.zero))
    codes, error = LEARNT[rounding](fmt, _columns(layer, matrix), of_each, moment.second, moment.apart)
    return fmt.assemble(split(_matrix(target, layer, codes), axis, block), grid, matrix.shape, axis, block, base), error


def relative_error(matrix: Array, found: Quantized) -> float:
    """Return the norm of what a weight loses, relative to its own."""
    blocks, values = split(matrix, found.axis, found.block), found.decoding()
    pieces = list(parts(blocks.shape))
    losses = [0.0] * len(pieces)

    def work(place: int) -> None:
        change = values(pieces[place])
        change -= blocks[pieces[place]]
        losses[place] = float(np.vdot(change, change))

    each(range(len(pieces)), work, blocks.size)
    lost = sum(losses)
    energy = float(np.vdot(matrix, matrix))
    return float(np.sqrt(lost / energy)) if energy > 0 else 0.0


def errors(target: Target, matrix: Array, decoded: Array, moment: Moments | None) -> tuple[float, float]:
    """Return the relative errors of a weight and of its layer's output; that is NaN without moments."""
    lost = matrix - decoded
    of_weight = float(np.linalg.norm(lost) / (np.linalg.norm(matrix) or 1))
    if moment is None or target.layer is None:
        return of_weight, nan
    noise, energy = (_output(_columns(target.layer, one), moment.second) for one in (lost, matrix))
    return of_weight, float(np.sqrt(noise / energy)) if energy > 0 else 0.0


def _output(columns: Array, second: Array) -> float:
    """Return the mean squared output of weights `[groups, in, out]`."""
    return float(np.vdot(columns, second.astype(np.float32) @ columns))


def _columns(layer: Layer, matrix: Array) -> Array:
    """Return a weight as `[groups, in, out]`."""
    return np.ascontiguousarray(layer.matrices(matrix.reshape(layer.sizes)).transpose(0, 2, 1))


def _matrix(target: Target, layer: Layer, columns: Array) -> Array:
    """Return what is `[groups, in, out]` as the matrix that is stored; the way back of `_columns`."""
    return layer.array(columns.transpose(0, 2, 1)).reshape(target.matrix_shape)
