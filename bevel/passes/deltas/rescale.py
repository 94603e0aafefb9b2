"""Choose what the kept entries of a thinned delta are divided by."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import onnx_ir as ir
from scipy.optimize import minimize_scalar

from bevel.errors import EditRefused
from bevel.passes.base import Context
from bevel.passes.deltas.delta import best_q
from bevel.passes.fitting.layers import layers
from bevel.passes.fitting.moments import moments

# Draws that an output error is averaged over; the worst is left out, as DAREx does.
DRAWS: Final = 4
# Steps of the search over q between its ends. The error is nearly a parabola in 1/q, so a few suffice.
STEPS: Final = 8


def analytic(
    model: ir.Model, deltas: Mapping[str, Callable[[], Any]], drop: float, context: Context
) -> dict[str, float]:
    """Return the best `q` of every weight that layers multiply by, from the second moment of their inputs.

    `deltas` gives what tuning added to an initializer of `model`, by name.
    """
    together, apart = dict.fromkeys(deltas, 0.0), dict.fromkeys(deltas, 0.0)
    wanted = [layer for layer in layers(model) if layer.weight.name in deltas]
    for layer, moment in moments(model, wanted, context):
        name = layer.weight.name or ""
        matrices = layer.matrices(deltas[name]())
        together[name] += moment.count * float(np.sum((matrices @ moment.second) * matrices))
        apart[name] += moment.count * float(np.sum(matrices**2 * np.einsum("gii->gi", moment.second)[:, None]))
    names = {layer.weight.name or "" for layer in wanted}
    return {name: best_q(together[name], apart[name], drop, len(wanted)) for name in deltas if name in names}


def label_free(
    tuned: ir.Model, thinned: Callable[[float, int], ir.Model], drop: float, context: Context
) -> dict[float, float]:
    """Return the output error against the tuned model by `q`, for the ones tried between DARE's and 1.

    `thinned(q, draw)` gives the model with its delta thinned out in one of several draws.
    """
    feeds = list(context.calibration.samples(context.samples))
    expected = _answers(tuned, feeds, context)
    if not any(_floats(answer) for answer in expected):
        raise EditRefused("no output holds floats, so none tells one q from another", remedy="use rescale=analytic")
    tried: dict[float, float] = {}

    def error(exponent: float) -> float:
        q = float((1 - drop) ** exponent)
        context.progress("q", len(tried), STEPS + 2)
        errors = sorted(_apart(expected, _answers(thinned(q, draw), feeds, context)) for draw in range(DRAWS))
        tried[q] = float(np.mean(errors[:-1]))
        return tried[q]

    for end in (0.0, 1.0):
        error(end)
    if drop:
        minimize_scalar(error, bounds=(0, 1), method="bounded", options={"maxiter": STEPS, "xatol": 0.01})
    return tried


def _answers(model: ir.Model, feeds: Sequence[Mapping[str, Any]], context: Context) -> list[dict[str, Any]]:
    with context.runtime.open(model) as runs:
        return [runs.run(feed) for feed in feeds]


def _floats(answer: Mapping[str, Any]) -> list[str]:
    return [name for name, value in answer.items() if isinstance(value, np.ndarray) and value.dtype.kind in "fV"]


def _apart(expected: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]]) -> float:
    """Return the root of the squared difference of all float outputs over their square."""
    difference = energy = 0.0
    for left, right in zip(expected, found, strict=True):
        for name in _floats(left):
            wide = left[name].astype(np.float64)
            difference += float(np.sum((right[name].astype(np.float64) - wide) ** 2))
            energy += float(np.sum(wide**2))
    return float(np.sqrt(difference / energy)) if energy else float(difference > 0)
