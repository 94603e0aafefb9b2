"""The expert that every row takes, beside a mixture: a layer that reads the same, and whose output is added.

    x --> router, experts --> routed --+--> y
    x --> layer ------------> shared --+

A layer whose output is multiplied by a gate of its own is none: it stays where it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from bevel.errors import EditRefused
from bevel.passes.base import Context, Runtime
from bevel.passes.mixtures.branches import inline_branches
from bevel.passes.mixtures.chains import Chain, Chains, Unlike, is_float
from bevel.passes.mixtures.description import Activation, Expert, Mixture
from bevel.passes.mixtures.gates import gating_of
from bevel.passes.mixtures.integers import in_floats
from bevel.passes.mixtures.look import Look, ancestors
from bevel.passes.mixtures.probing import Ends, limit_of, probed, sizes_of
from bevel.passes.mixtures.reading import experts, form, layout_of
from bevel.passes.mixtures.recognition import mixtures
from bevel.passes.mixtures.rows import LAST, leading, rows_of

Array = np.ndarray[Any, Any]
Sizes = Mapping[str, Array]

SAME: Final = 1e-5
"""How near two activations have to be to be one, relative to what they give."""
PLACES: Final = 64
"""Numbers on which activations are compared."""


@dataclass(frozen=True, eq=False)
class Beside:
    """A layer beside a mixture, or what is taken for one: `nodes` lead to it from `given`; `total` is the sum."""

    total: ir.Value
    other: ir.Value
    given: ir.Value
    nodes: tuple[ir.Node, ...]


def beside(look: Look, mixture: Mixture) -> Beside | None:
    """Return the layer that may stand beside a mixture: it reads what the mixture reads, and weights alone."""
    sources = _sources(mixture.input)
    met = _meeting(mixture.output)
    if met is None or met[0] in sources:
        return None
    other, total = met
    before: set[ir.Node] = set().union(*(ancestors(value) for value in sources))
    nodes = [node for node in look.nodes if node in ancestors(other) - before]
    made = {value for node in nodes for value in node.outputs}
    read = dict.fromkeys(value for node in nodes for value in node.inputs if value is not None and value not in made)
    floats = [value for value in read if is_float(value) and not look.fixed(value)]
    if len(floats) != 1 or floats[0] not in sources or not any(node in look.summing for node in nodes):
        return None
    return Beside(total, other, floats[0], tuple(nodes))


def _sources(value: ir.Value) -> list[ir.Value]:
    """Return a value and those that it comes of by nodes which read nothing else: its rows in other shapes."""
    found = [value]
    while (node := value.producer()) is not None:
        floats = [each for each in node.inputs if each is not None and is_float(each)]
        if len(floats) != 1 or len(node.outputs) != 1:
            break
        (value,) = floats
        found.append(value)
    return found


def _meeting(value: ir.Value) -> tuple[ir.Value, ir.Value] | None:
    """Return what is put together with a value, whatever shape that gets before, and the result."""
    while len(value.uses()) == 1 and not value.is_graph_output():
        ((node, _),) = value.uses()
        others = [each for each in node.inputs if each is not None and each is not value and is_float(each)]
        if len(node.outputs) != 1 or len(others) > 1:
            return None
        if others:
            return others[0], node.outputs[0]
        (value,) = node.outputs
    return None


def with_shared(model: ir.Model, mixture: Mixture, context: Context) -> tuple[Mixture, str]:
    """Return a mixture with the layer beside it as its shared expert; or as it is, and why if there is such a layer."""
    if mixture.shared is not None:
        return mixture, ""
    seen = model.clone()
    inline_branches(seen)
    rounded = in_floats(seen)
    by_name = {value.name: value for node in seen.graph for value in node.outputs}
    by_name |= {value.name: value for value in seen.graph.inputs}
    ends = [by_name[value.name] for value in (mixture.input, mixture.logits, mixture.output)]
    twin = replace(mixture, input=ends[0], logits=ends[1], output=ends[2], rounded=mixture.rounded or bool(rounded))
    look = Look(seen)
    found = beside(look, twin)
    if found is None:
        return mixture, ""
    try:
        return _joined(model, look, twin, found, context), ""
    except (Unlike, EditRefused) as why:
        return mixture, f"a layer stays beside {mixture.name}: {why}"


def _joined(model: ir.Model, look: Look, mixture: Mixture, found: Beside, context: Context) -> Mixture:
    chain = _chain(look, mixture, found)
    sources = _sources(mixture.input)
    named = [*sources, mixture.logits, found.total, found.other, chain.tails[-1], *mixture.others]
    inside = {value.name: value for node in model.graph for value in node.outputs}
    inside |= {value.name: value for value in model.graph.inputs}
    sizes = sizes_of(model, [value.name or "" for value in named], inside, context)
    if not np.array_equal(sizes[found.other.name or ""], sizes[chain.tails[-1].name or ""]):
        raise Unlike("it has a gate of its own")
    rows = rows_of(sizes[mixture.input.name or ""], mixture.axis)
    array = sizes[chain.given.name or ""]
    shared = _expert(look.model, chain, array, rows, mixture.activation, context.runtime)
    given, axis = _ends(sources, found.total, rows, sizes)
    named = [inside[value.name] for value in (given, mixture.logits, found.total, *mixture.others)]
    ends = Ends(named[0], named[1], named[2], mixture.active, tuple(named[3:]), axis)
    whole = replace(
        mixture, input=ends.input, logits=ends.logits, output=ends.output, others=ends.others, axis=axis, shared=shared
    )
    probe = probed(model, ends, sizes, context.runtime)
    return replace(whole, gating=gating_of(whole, probe, context.runtime, limit_of(mixture)))


def _chain(look: Look, mixture: Mixture, found: Beside) -> Chain:
    logits = mixture.logits
    chains = Chains(found.nodes, found.given, logits, logits, 1, look.summing, look.fixed).found()
    if len(chains) != 1:
        raise Unlike("it has not two layers")
    return chains[0]


def _expert(
    model: ir.Model, chain: Chain, array: Array, rows: Array, activation: Activation, runtime: Runtime
) -> Expert:
    """Return the layer as an expert, or raise `Unlike` if its activation is another one."""
    width = rows.shape[1]
    parts = form(model, chain, layout_of(array, rows), width, {}, runtime)
    own, count = parts.activation(model), len(activation.model.graph.inputs)
    rng = np.random.default_rng(0)
    numbers = [3 * rng.standard_normal((1, PLACES)).astype(np.float32) for _ in range(count)]
    if len(own.model.graph.inputs) != count:
        raise Unlike("its activation is another one")
    first, second = (each.hidden([numbers], runtime)[0] for each in (own, activation))
    if np.abs(first - second).max() > SAME * np.abs(second).max():
        raise Unlike("its activation is another one")
    (shared,) = experts(model, parts, [{}], width, runtime)
    return shared


def _ends(sources: Sequence[ir.Value], total: ir.Value, rows: Array, sizes: Sizes) -> tuple[ir.Value, int]:
    """Return what has a row for each of the sum, in the same place, and along which axis both have the channels."""
    wanted = sizes[total.name or ""]
    for value in sources:
        array = sizes[value.name or ""]
        for axis in (LAST, *range(1, array.ndim - 1)):
            alike = array.ndim == wanted.ndim and leading(array.shape, axis) == leading(wanted.shape, axis)
            if alike and np.array_equal(rows_of(array, axis), rows):
                return value, axis
    raise Unlike("its rows stand in another order")


def layers_beside(model: ir.Model, context: Context) -> tuple[list[str], dict[ir.Node, str]]:
    """Return the names of a model's mixtures, and the nodes of layers that stand beside one, with its name."""
    found, _ = mixtures(model, context)
    look = Look(model) if found else None
    nodes: dict[ir.Node, str] = {}
    for each in found:
        other = None if look is None else beside(look, each)
        nodes |= dict.fromkeys(() if other is None else other.nodes, each.name)
    return [each.name for each in found], nodes
