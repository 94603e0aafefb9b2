"""Where the entries of a cut model's values stand in those of the same names in the model that was not cut."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from bevel.ir.axes import Dim, holds
from bevel.ir.edit import Indices, entries
from bevel.ir.groups import Analysis
from bevel.ir.sizes import is_symbolic

Kept: TypeAlias = Mapping[int, np.ndarray[Any, Any]]
Places: TypeAlias = Callable[[ir.Value], Kept | None]
"""Which entries of a value are there, by axis: an axis that is left out is whole; None where that is not known."""


def places(analysis: Analysis, keeps: Indices) -> Places:
    """Say where the entries of values stand that are left once groups were cut down to `keeps`.

    >>> import onnx
    >>> text = '''<ir_version: 10, opset_import: ["" : 21]> g (float[n, 2] x) => (float[n, 1] y)
    ... <float[2, 3] w = {1, 2, 3, 4, 5, 6}, float[3, 1] v = {1, 1, 1}> { h = MatMul (x, w) y = MatMul (h, v) }'''
    >>> from bevel.ir.groups import analyse
    >>> model = ir.serde.deserialize_model(onnx.parser.parse_model(text))
    >>> where = places(analyse(model), {"w[1]": np.array([0, 2])})
    >>> where(model.graph.node(0).outputs[0]), where(model.graph.outputs[0])
    ({1: array([0, 2])}, {})
    """
    taken: dict[Dim, np.ndarray] = {analysis[name].dim: np.asarray(keep, np.int64) for name, keep in keeps.items()}

    def of(value: ir.Value) -> Kept | None:
        axes = analysis.axes(value)
        if axes is None:
            return None
        cut = {place: axis for place, axis in enumerate(axes) if holds(axis, taken)}
        if any(is_symbolic(axis.size) for axis in cut.values()):
            return None
        return {place: entries(axis, taken) for place, axis in cut.items()}

    return of
