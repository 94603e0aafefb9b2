"""The experts of a region: which chain is which, and which weights each has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from bevel.ir.piece import piece
from bevel.passes.base import Runtime
from bevel.passes.mixtures.chains import Chain, Unlike
from bevel.passes.mixtures.description import Activation, Expert, taken
from bevel.passes.mixtures.reading import Layout, Weights, experts, form, opened
from bevel.passes.mixtures.region import Region

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Probe:
    """Random rows `[rows, channels]` and logits `[rows, experts]`, `feed` as a region takes them, what it gives."""

    rows: Array
    logits: Array
    feed: Mapping[str, Array]
    output: Array


def experts_of(
    model: ir.Model, region: Region, probe: Probe, active: int, runtime: Runtime
) -> tuple[list[Expert], Activation, tuple[int, ...] | None]:
    """Return the experts of a region, what is between their layers, and the expert of each logit if they are fewer."""
    width = probe.rows.shape[1]
    if len(region.chains) > 1 or region.experts == 1 or not region.chains[0].weights:
        return _apart(model, region, probe, active, width, runtime)
    (chain,) = region.chains
    stacks = _stacks(model, region, active, runtime)
    (given,) = _values(model, region, [chain.given], probe, runtime)
    whole = chain.weights[0].producer() is None or given.shape[0] == region.experts
    sizes = given[:1] if whole and given.ndim > 2 and given.shape[0] == region.experts else given
    parts = form(model, chain, _layout(sizes, probe.rows), width, stacks[0], runtime)
    return list(experts(model, parts, stacks, width, runtime)), parts.activation(model), None


def _apart(
    model: ir.Model, region: Region, probe: Probe, active: int, width: int, runtime: Runtime
) -> tuple[list[Expert], Activation, tuple[int, ...] | None]:
    """Return experts that have layers of their own."""
    wanted = [value for chain in region.chains for value in (chain.given, *chain.weights)]
    arrays = dict(zip(wanted, _values(model, region, wanted, probe, runtime), strict=True))
    found: list[Expert] = []
    activation: Activation | None = None
    for chain in region.chains:
        weights = {value: arrays[value] for value in chain.weights}
        parts = form(model, chain, _layout(arrays[chain.given], probe.rows), width, weights, runtime)
        found += experts(model, parts, [weights], width, runtime)
        activation = activation or parts.activation(model)
    assert activation is not None
    numbers = _numbers(region, arrays, probe, active)
    if len(found) < region.experts:
        return found, activation, tuple(numbers)
    return [found[number] for number in numbers], activation, None


def _values(model: ir.Model, region: Region, wanted: Sequence[ir.Value], probe: Probe, runtime: Runtime) -> list[Array]:
    """Return values of a region on the probe."""
    given = [region.input, region.logits, *region.others]
    made = [value for value in dict.fromkeys(wanted) if value not in given]
    answers: dict[str, Array] = dict(probe.feed)
    if made:
        with runtime.open(opened(model, given, made)) as runs:
            answers |= runs.run(probe.feed)
    return [np.asarray(answers[value.name or ""]) for value in wanted]


def _numbers(region: Region, arrays: Weights, probe: Probe, active: int) -> list[int]:
    """Return which chain each logit is for: that which reads all rows that take it, and least beside those."""
    places = {row.tobytes(): place for place, row in enumerate(probe.rows)}
    read = [_rows_read(arrays[chain.given], places, probe.rows.shape[1]) for chain in region.chains]
    if len(read) == region.experts and all(len(rows) == len(probe.rows) for rows in read):
        return list(range(region.experts))  # each sees all rows; the final comparison says whether they are in order
    mask = taken(probe.logits, active)
    found = []
    for expert in range(region.experts):
        rows = frozenset(np.flatnonzero(mask[:, expert]).tolist())
        able = [chain for chain, others in enumerate(read) if rows <= others]
        if not able:
            raise Unlike("its experts do not read the rows that take them")
        found.append(min(able, key=lambda chain: len(read[chain])))
    if set(found) != set(range(len(read))):
        raise Unlike("some of its experts are taken by no row")
    return found


def _rows_read(array: Array, places: Mapping[bytes, int], width: int) -> frozenset[int]:
    layout = _channels(array, places, width)
    rows = np.moveaxis(array, layout, -1).reshape(-1, width)
    return frozenset(places[np.ascontiguousarray(row).tobytes()] for row in rows)


def _channels(array: Array, places: Mapping[bytes, int], width: int) -> int:
    """Return which axis of an array has the channels: along it, its entries are rows."""
    for axis in reversed(range(array.ndim)):
        if array.shape[axis] == width:
            row = np.moveaxis(array, axis, -1).reshape(-1, width)[:1]
            if all(np.ascontiguousarray(each).tobytes() in places for each in row):
                return axis
    raise Unlike("its experts do not read rows of what the router reads")


def _layout(array: Array, rows: Array) -> Layout:
    """Return how rows lie in what the experts read."""
    places = {row.tobytes(): place for place, row in enumerate(rows)}
    channels = _channels(array, places, rows.shape[1])
    others = [axis for axis in range(array.ndim) if axis != channels]
    return Layout(array.ndim, max(others, key=lambda axis: (array.shape[axis], -axis)), channels)


def _stacks(model: ir.Model, region: Region, active: int, runtime: Runtime) -> list[dict[ir.Value, Array]]:
    """Return the weights of each expert, with an axis of one entry where the stack has the experts."""
    (chain,) = region.chains
    if _is_fixed(chain):
        arrays = _constants(model, chain.weights, runtime)
        return [{value: array[[expert]] for value, array in arrays.items()} for expert in range(region.experts)]
    source = opened(model, [region.chosen], list(chain.weights))
    found = []
    with runtime.open(source) as runs:
        for expert in range(region.experts):
            answers = runs.run({region.chosen.name or "": np.full((1, active), expert, np.int64)})
            found.append({value: _first(np.asarray(answers[value.name or ""]), active) for value in chain.weights})
    return found


def _is_fixed(chain: Chain) -> bool:
    """Say whether the weights are whole stacks, which nobody takes from."""
    return not any(_depends(value) for value in chain.weights)


def _depends(value: ir.Value) -> bool:
    pending, seen = [value], set()
    while pending:
        each = pending.pop()
        node = each.producer()
        if node is not None and node not in seen:
            seen.add(node)
            pending.extend(one for one in node.inputs if one is not None)
            if node.op_type == "TopK":
                return True
    return False


def _constants(model: ir.Model, values: Sequence[ir.Value], runtime: Runtime) -> dict[ir.Value, Array]:
    made = [value for value in values if value.producer() is not None]
    answers: dict[str, Array] = {}
    if made:
        with runtime.open(piece(model, [], made)) as runs:
            answers = runs.run({})
    found = {}
    for value in values:
        if value.const_value is not None and value not in made:
            found[value] = value.const_value.numpy()
        else:
            found[value] = np.asarray(answers[value.name or ""])
    return found


def _first(array: Array, active: int) -> Array:
    """Return the weights of one row and one expert of those that it takes."""
    if array.ndim > 1 and array.shape[:2] == (1, active):
        return array[:, :1]
    return array[:1] if len(array) == active else array
