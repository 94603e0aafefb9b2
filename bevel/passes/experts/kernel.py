"""Operators of com.microsoft that run a whole mixture, and MoE, the one with weights as they are.

MoE weights experts by the softmax of the scores of those taken. Where all count one, it gets scores that say only who
is taken: equal ones, of which the softmax is one over their number; the last product's weights are as much larger.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from bevel.ir.bypass import redirect
from bevel.ir.names import Names
from bevel.ir.split import Parts
from bevel.passes.experts.emission import always, writer
from bevel.passes.experts.form import MICROSOFT, Form
from bevel.passes.experts.mixture import Mixture, require_fixed
from bevel.passes.experts.routing import FLOAT, routes, scored
from bevel.passes.experts.writing import Writer

Array = np.ndarray[Any, Any]

# The score of an expert that is taken, beside zeros: its softmax leaves nothing for those.
TAKEN: Final = 1e4


def moe(parts: Parts, form: Form, mixture: Mixture, down: Array, names: Names) -> None:
    """Write a MoE for the routed experts, and what always runs beside it; `down` is the last product's weights."""
    layer = parts.layer
    require_fixed(layer, mixture, "MoE")
    write = writer(parts, names)
    rows = write.flattened(layer.input, layer, layer.channels[0])
    first, bias = form.first(mixture)
    second = mixture.gain * mixture.active * np.stack([down[part].T for part in mixture.partition.routed])
    constant = write.learnt("up.bias", bias) if np.any(bias) else None
    inputs = [rows, _scores(write, rows, parts, mixture), write.learnt("up", first), constant]
    attributes = {"k": mixture.active, "normalize_routing_weights": 1, **form.attributes}
    in_place(write, parts, mixture, "MoE", [*inputs, write.learnt("down", second)], attributes)


def _scores(write: Writer, rows: ir.Value, parts: Parts, mixture: Mixture) -> ir.Value:
    if mixture.soft:
        return scored(write, rows, parts, mixture)
    return write("Transpose", routes(write, rows, parts, mixture, TAKEN).taken, dtype=FLOAT, perm=[1, 0])


def in_place(
    write: Writer,
    parts: Parts,
    mixture: Mixture,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    attributes: Mapping[str, Any],
) -> None:
    """Put an operator that gives rows in the place of a layer, and add what always runs."""
    layer, graph = parts.layer, parts.model.graph
    total = write.foreign(MICROSOFT, op_type, inputs, attributes)
    result = always(write, parts, mixture, write.restored(total, layer.input, layer, layer.channels[1]))
    result.shape = layer.output.shape
    redirect(graph, layer.output, result, write.names)
    graph.opset_imports.setdefault(MICROSOFT, 1)
    parts.model.opset_imports.setdefault(MICROSOFT, 1)
