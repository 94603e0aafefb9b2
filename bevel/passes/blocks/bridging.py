"""Fit the linear map that comes closest to what dropped blocks did to their stream: least squares on samples.

With `x` before the blocks and `r` what they add to it, both less their means, and `l` the damping:

    D = E[r x^T] (E[x x^T] + l I)^-1        b = mean(r) - D mean(x)

The damping draws `D` to zero: with few samples the blocks are passed by, never guessed.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from bevel.ir.bridge import Bridge
from bevel.ir.bypass import bypass
from bevel.ir.repetition import Layer, same_layers
from bevel.passes.base import Context
from bevel.passes.fitting.second_order import DAMPING, SecondOrder

Array = np.ndarray[Any, Any]
Form = Literal["linear", "diagonal"]


def bridges(model: ir.Model, runs: Sequence[Layer], form: Form, context: Context) -> dict[str, Bridge]:
    """Return a bridge for each run of blocks, by its name, fitted one after the other.

    Each reads the stream that the ones before it leave, and aims at the stream of the model as it is. Runs are in the
    order of the graph and do not touch.
    """
    so_far = model.clone()
    found: dict[str, Bridge] = {}
    for done, run in enumerate(same_layers(so_far, runs)):
        context.progress("bridges", done, len(runs))
        found[run.name] = fit(_rows(so_far, model, run, context), form)
        bypass(so_far, [run], found)
    return found


def _rows(so_far: ir.Model, model: ir.Model, run: Layer, context: Context) -> Iterator[tuple[Array, Array]]:
    """Yield the stream before a run in one model, and after it in another, as rows of channels."""
    start, end = str(run.start.name), str(run.end.name)
    with context.runtime.open(_telling(so_far, start)) as before, context.runtime.open(_telling(model, end)) as after:
        for feed in context.calibration.samples(context.samples):
            x, y = before.run(feed)[start], after.run(feed)[end]
            yield _as_rows(x, run.axis), _as_rows(y, run.axis)


def _as_rows(array: Array, axis: int) -> Array:
    return np.moveaxis(array, axis, -1).reshape(-1, array.shape[axis])


def _telling(model: ir.Model, name: str) -> ir.Model:
    """Return a copy of a model that gives one of its values out."""
    copy = model.clone()
    values = (*copy.graph.inputs, *(value for node in copy.graph for value in node.outputs))
    value = next(value for value in values if value.name == name)
    if not value.is_graph_output():
        copy.graph.outputs.append(value)
    return copy


def fit(pairs: Iterator[tuple[Array, Array]], form: Form) -> Bridge:
    """Return the bridge from the rows of each first to those of each second array, both `[rows, channels]`.

    >>> x = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0], [2.0, 1.0]])
    >>> bridge = fit(iter([(x, x * [1.0, 3.0] + [0.0, 5.0])]), "diagonal")
    >>> bool(np.allclose(bridge.change, [0, 2], atol=0.03)), bool(np.allclose(bridge.shift, [0, 5], atol=0.03))
    (True, True)
    """
    count = 0
    x_sum = r_sum = xx = rx = np.zeros(())
    for x, y in pairs:
        x, r = x.astype(np.float64), y.astype(np.float64) - x
        count += len(x)
        x_sum, r_sum = x_sum + x.sum(0), r_sum + r.sum(0)
        xx = xx + (x.T @ x if form == "linear" else np.square(x).sum(0))
        rx = rx + (r.T @ x if form == "linear" else (r * x).sum(0))
    x_mean, r_mean = x_sum / count, r_sum / count
    if form == "linear":
        second, cross = xx / count - np.outer(x_mean, x_mean), rx / count - np.outer(r_mean, x_mean)
        change = cross @ SecondOrder(second).inverse
        return Bridge(change, r_mean - change @ x_mean)
    second, cross = xx / count - x_mean**2, rx / count - r_mean * x_mean
    change = cross / np.maximum(second + DAMPING * second.mean(), np.finfo(np.float64).tiny)
    return Bridge(change, r_mean - change * x_mean)
