"""The experts of a region: which chain is which, and which weights each has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from bevel.ir.piece import piece
from bevel.passes.base import Runtime
from bevel.passes.mixtures.chains import Chain, Unlike
from bevel.passes.mixtures.description import Activation, Expert
from bevel.passes.mixtures.probing import Probe
from bevel.passes.mixtures.reading import Weights, channels_of, experts, form, layout_of, opened
from bevel.passes.mixtures.region import Region
from bevel.passes.mixtures.rows import rows_of

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Members:
    """The experts of a region, and what is between their layers.

    `groups` says the expert of each logit if they are fewer, `shared` what every row gets besides.
    """

    experts: tuple[Expert, ...]
    activation: Activation
    groups: tuple[int, ...] | None = None
    shared: Expert | None = None


def members(model: ir.Model, region: Region, probe: Probe, active: int, mask: Array, runtime: Runtime) -> Members:
    """Return the experts of a region, of which rows take those in the mask, `[rows, experts]`; or raise `Unlike`."""
    width = probe.rows.shape[1]
    if region.is_masked:
        return _entries(model, region, probe, active, width, runtime)
    if len(region.chains) > 1 or region.experts == 1 or not region.chains[0].weights:
        return _apart(model, region, probe, mask, width, runtime)
    (chain,) = region.chains
    stacks = _stacks(model, region, active, runtime)
    (given,) = _values(model, region, [chain.given], probe, runtime)
    whole = chain.weights[0].producer() is None or given.shape[0] == region.experts
    sizes = given[:1] if whole and given.ndim > 2 and given.shape[0] == region.experts else given
    parts = form(model, chain, layout_of(sizes, probe.rows), width, stacks[0], runtime)
    return Members(tuple(experts(model, parts, stacks, width, runtime)), parts.activation(model))


def _apart(model: ir.Model, region: Region, probe: Probe, mask: Array, width: int, runtime: Runtime) -> Members:
    """Return experts that have layers of their own."""
    wanted = [value for chain in region.chains for value in (chain.given, *chain.weights)]
    arrays = dict(zip(wanted, _values(model, region, wanted, probe, runtime), strict=True))
    found: list[Expert] = []
    activation: Activation | None = None
    for chain in region.chains:
        weights = {value: arrays[value] for value in chain.weights}
        parts = form(model, chain, layout_of(arrays[chain.given], probe.rows), width, weights, runtime)
        found += experts(model, parts, [weights], width, runtime)
        activation = activation or parts.activation(model)
    assert activation is not None
    numbers = _numbers(region, arrays, probe, mask)
    if len(found) < region.experts:
        return Members(tuple(found), activation, tuple(numbers))
    return Members(tuple(found[number] for number in numbers), activation)


def _entries(model: ir.Model, region: Region, probe: Probe, active: int, width: int, runtime: Runtime) -> Members:
    """Return experts that are hidden entries of one layer, which those that are not taken have multiplied by zero."""
    (chain,) = region.chains
    (given,) = _values(model, region, [chain.given], probe, runtime)
    parts = form(model, chain, layout_of(given, probe.rows), width, {}, runtime)
    (whole,) = experts(model, parts, [{}], width, runtime)
    owners = _owners(model, region, probe, active, parts.read.channels - parts.read.rank, whole.size, runtime)
    alone = replace(whole, constant=np.zeros_like(whole.constant))
    found = tuple(alone.ordered(np.flatnonzero(owners == expert)) for expert in range(region.experts))
    if not all(expert.size for expert in found):
        raise Unlike("some of its experts have no entries")
    shared = whole.ordered(np.flatnonzero(owners < 0))
    return Members(found, parts.activation(model), shared=shared if shared.size or np.any(shared.constant) else None)


def _owners(
    model: ir.Model, region: Region, probe: Probe, active: int, axis: int, size: int, runtime: Runtime
) -> Array:
    """Return which expert hidden entries are of, -1 for all: those that are not zero where rows take only that one."""
    (gate,) = [chain.gate for chain in region.chains]
    assert gate is not None
    named = [region.input, region.logits, *region.others]
    source = opened(model, [*named, *region.choice.outputs], [gate])
    feed = {value.name or "": probe.feed[value.name or ""] for value in named}
    shape = (*feed[region.logits.name or ""].shape[:-1], active)
    values, chosen = (value.name or "" for value in region.choice.outputs)
    feed[values] = np.full(shape, 1 / active, np.float32)
    found = np.zeros((region.experts, size), bool)
    with runtime.open(source) as runs:
        for expert in range(region.experts):
            array = np.asarray(runs.run({**feed, chosen: np.full(shape, expert, np.int64)})[gate.name or ""])
            if array.ndim < -axis or array.shape[axis] != size:
                raise Unlike(f"{gate.name!r} is multiplied in, which has no number for each hidden entry")
            found[expert] = rows_of(array, axis).any(0)
    if not set(found.sum(0)) <= {1, region.experts}:
        raise Unlike("some hidden entries are of several experts, or of none")
    return np.where(found.all(0) & (region.experts > 1), -1, found.argmax(0))


def _values(model: ir.Model, region: Region, wanted: Sequence[ir.Value], probe: Probe, runtime: Runtime) -> list[Array]:
    """Return values of a region on the probe."""
    given = [region.input, region.logits, *region.others]
    made = [value for value in dict.fromkeys(wanted) if value not in given]
    answers: dict[str, Array] = dict(probe.feed)
    if made:
        with runtime.open(opened(model, given, made)) as runs:
            answers |= runs.run(probe.feed)
    return [np.asarray(answers[value.name or ""]) for value in wanted]


def _numbers(region: Region, arrays: Weights, probe: Probe, mask: Array) -> list[int]:
    """Return which chain each logit is for: that which reads all rows that take it, and least beside those.

    Of chains that read the same rows, as those do whose experts are always taken together, each is for another one.
    """
    places = {row.tobytes(): place for place, row in enumerate(probe.rows)}
    read = [_rows_read(arrays[chain.given], places, probe.rows.shape[1]) for chain in region.chains]
    if len(read) == region.experts and all(len(rows) == len(probe.rows) for rows in read):
        return list(range(region.experts))  # each sees all rows; the final comparison says whether they are in order
    found: list[int] = []
    for expert in range(region.experts):
        rows = frozenset(np.flatnonzero(mask[:, expert]).tolist())
        able = [chain for chain, others in enumerate(read) if rows <= others]
        if not able:
            raise Unlike("its experts do not read the rows that take them")
        found.append(min(able, key=lambda chain: (len(read[chain]), chain in found)))
    if set(found) != set(range(len(read))):
        raise Unlike("some of its experts are taken by no row")
    return found


def _rows_read(array: Array, places: Mapping[bytes, int], width: int) -> frozenset[int]:
    layout = channels_of(array, places, width)
    rows = np.moveaxis(array, layout, -1).reshape(-1, width)
    return frozenset(places[np.ascontiguousarray(row).tobytes()] for row in rows)


def _stacks(model: ir.Model, region: Region, active: int, runtime: Runtime) -> list[dict[ir.Value, Array]]:
    """Return the weights of each expert, with an axis of one entry where the stack has the experts."""
    (chain,) = region.chains
    if _is_fixed(chain):
        arrays = _constants(model, chain.weights, runtime)
        return [{value: array[[expert]] for value, array in arrays.items()} for expert in range(region.experts)]
    source = opened(model, region.choice.outputs, list(chain.weights))
    values, chosen = (value.name or "" for value in region.choice.outputs)
    feed = {values: np.full((1, active), 1 / active, np.float32)}
    found = []
    with runtime.open(source) as runs:
        for expert in range(region.experts):
            answers = runs.run({**feed, chosen: np.full((1, active), expert, np.int64)})
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
