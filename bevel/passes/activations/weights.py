"""The codes of layers' weights, in the layout that their nodes take."""

from typing import Any

import numpy as np

from bevel.ir.content import content
from bevel.passes.activations.grids import REDUCED, SIGNED, Coded, Grid, coded, least_scale
from bevel.passes.activations.sites import Site
from bevel.passes.fitting.layers import GEMM, WEIGHT

Array = np.ndarray[Any, Any]


def weight_codes(site: Site, grid: Grid | None = None, *, reduced: bool = False) -> Coded:
    """Return the codes of a layer's weight, with a scale for each output; `grid` is that of its input, if it is fixed.

    A weight that a node transposes is given as that node gives it; a Gemm's alpha is in it.
    """
    tensor = site.layer.weight.const_value
    assert tensor is not None
    with content(tensor) as array:
        weights, axis = array, site.layer.out_axis
        if site.node.inputs[WEIGHT] is not site.layer.weight:
            weights, axis = weights.T, 1 - axis
        if site.node.op_type == GEMM:
            weights = weights * np.float32(site.node.attributes.get_float("alpha", 1.0))
        bias = None if grid is None else site.bias
        least = None if bias is None or grid is None else least_scale(bias, grid.scale)
        return coded(np.ascontiguousarray(weights), axis, least, REDUCED if reduced else SIGNED)
