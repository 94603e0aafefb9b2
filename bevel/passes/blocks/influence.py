"""What each part of a stream does for a model's outputs: how far these move when the stream passes it by.

All parts are measured in one model with a switch for each (FoldGPT's gates, on or off), so it is loaded once.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from bevel.errors import UnsupportedModel
from bevel.ir.bypass import redirect
from bevel.ir.emit import Emitter
from bevel.ir.names import Names
from bevel.passes.base import Context
from bevel.passes.blocks.angles import Stretch

Array = np.ndarray[Any, Any]
Answer = Mapping[str, Any]

# Where came with this opset.
SWITCHES: Final = 9


class Drift:
    """How far answers moved from those of a reference, summed over feeds: `|moved - reference| / |reference|`.

    All floating-point outputs count as one vector; if there are none, it is the share of the entries that differ.
    """

    def __init__(self) -> None:
        self._noise: dict[bool, float] = {True: 0.0, False: 0.0}
        self._energy: dict[bool, float] = {True: 0.0, False: 0.0}

    def add(self, reference: Answer, moved: Answer) -> None:
        """Take in the answers to one feed."""
        for name, value in reference.items():
            if isinstance(value, np.ndarray):
                self._add(value, moved[name])

    def _add(self, reference: Array, moved: Array) -> None:
        floating = reference.dtype.kind == "f"
        if floating:
            reference, moved = reference.astype(np.float64), moved.astype(np.float64)
            noise, energy = np.square(moved - reference).sum(), np.square(reference).sum()
        else:
            noise, energy = np.count_nonzero(moved != reference), reference.size
        self._noise[floating] += float(noise)
        self._energy[floating] += float(energy)

    @property
    def error(self) -> float:
        """The relative error so far."""
        if self._energy[True]:
            return float(np.sqrt(self._noise[True] / self._energy[True]))
        return self._noise[False] / max(self._energy[False], 1)


def influences(
    model: ir.Model,
    stretches: Sequence[Stretch],
    context: Context,
    *,
    off: Collection[str] = (),
) -> Mapping[str, float]:
    """Return how far the outputs move from the model's own when each stretch is passed by, besides those in `off`."""
    switched, switches = with_switches(model, stretches)
    on = {name: np.array(True) for name in switches.values()}
    dropped = {switches[name]: np.array(False) for name in off}
    drifts = {stretch.name: Drift() for stretch in stretches}
    with context.runtime.open(switched) as runs:
        for done, feed in enumerate(context.calibration.samples(context.samples)):
            context.progress("influences", done, done + 1)
            reference = runs.run({**feed, **on})
            for name, drift in drifts.items():
                drift.add(reference, runs.run({**feed, **on, **dropped, switches[name]: np.array(False)}))
    return {name: drift.error for name, drift in drifts.items()}


def drift(model: ir.Model, others: Sequence[ir.Model], context: Context) -> list[float]:
    """Return how far each of several models' outputs are from those of `model`."""
    found = []
    with context.runtime.open(model) as runs:
        for done, other in enumerate(others):
            context.progress("errors", done, len(others))
            total = Drift()
            with context.runtime.open(other) as moved:
                for feed in context.calibration.samples(context.samples):
                    total.add(runs.run(feed), moved.run(feed))
            found.append(total.error)
    return found


def least(ranks: Mapping[str, float], count: int) -> dict[str, float]:
    """Return the lowest ranks, the lowest first.

    >>> least({"a": 3.0, "b": 1.0, "c": 2.0}, 2)
    {'b': 1.0, 'c': 2.0}
    """
    return dict(sorted(ranks.items(), key=lambda item: item[1])[:count])


def with_switches(model: ir.Model, stretches: Sequence[Stretch]) -> tuple[ir.Model, Mapping[str, str]]:
    """Return a copy of a model with an input for each stretch that says whether it counts, and their names."""
    if model.opset_imports.get("", 1) < SWITCHES:
        raise UnsupportedModel(
            f"opset {model.opset_imports.get('', 1)} has no Where to switch blocks with",
            remedy="use by=angular, or convert the model to a newer opset",
        )
    copy = model.clone()
    names, graph = Names(copy), copy.graph
    values = {value.name: value for node in graph for value in node.outputs}
    values.update({value.name: value for value in graph.inputs})
    switches: dict[str, str] = {}
    for stretch in reversed(stretches):
        start, end = values[stretch.start.name], values[stretch.end.name]
        after = end.producer()
        assert after is not None
        switch = ir.Value(
            name=names.free(f"{stretch.name}.on"), shape=ir.Shape([]), type=ir.TensorType(ir.DataType.BOOL)
        )
        graph.inputs.append(switch)
        switches[stretch.name] = str(switch.name)
        _switch(graph, Emitter(graph, after, start, stretch.name, names), switch, start, end, names)
    return copy, switches


def _switch(graph: ir.Graph, emit: Emitter, switch: ir.Value, start: ir.Value, end: ir.Value, names: Names) -> None:
    """Let the readers of `end` read it or `start`."""
    passed = emit("Identity", end)
    chosen = emit("Where", switch, passed, start)
    redirect(graph, end, chosen, names)
    identity = passed.producer()
    assert identity is not None
    identity.replace_input_with(0, end)
