"""Find mixtures of experts in a graph, and prove each by running it.

What the structure of a region suggests is only taken for a mixture if the description, worked out in numpy, gives what
the graph gives, on random rows and on random logits that take every expert.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from bevel.errors import EditRefused, UnsupportedModel
from bevel.passes.base import Context
from bevel.passes.mixtures.branches import inline_branches
from bevel.passes.mixtures.chains import Unlike
from bevel.passes.mixtures.description import Mixture, Refused
from bevel.passes.mixtures.fused import fused
from bevel.passes.mixtures.gates import gating_of
from bevel.passes.mixtures.gating import Gating, taken
from bevel.passes.mixtures.integers import in_floats
from bevel.passes.mixtures.look import ancestors, regions, unknown
from bevel.passes.mixtures.members import members
from bevel.passes.mixtures.probing import Ends, Probe, limit_of, probed, sizes_of
from bevel.passes.mixtures.reading import opened
from bevel.passes.mixtures.region import Region, may_choose
from bevel.passes.mixtures.router import router_of, weighing
from bevel.passes.mixtures.rows import leading

Array = np.ndarray[Any, Any]
Source: TypeAlias = Mixture | list[Region] | Unlike


def mixtures(model: ir.Model, context: Context) -> tuple[list[Mixture], list[Refused]]:
    """Return the mixtures of experts in a model, in its order, and the choices that lead to none, with the reason."""
    if not any(may_choose(node) for node in model.graph):
        return [], []
    seen = model.clone()
    inline_branches(seen)
    rounded = in_floats(seen)
    _measure(model, seen, context)
    operators = dict(fused(model))
    sources: list[tuple[ir.Node, Source]] = [*operators.items(), *regions(seen)]
    search = _Search(model, seen, rounded, operators, [source for _, source in sources], context)
    found: list[Mixture] = []
    refused: list[tuple[ir.Node, str]] = []
    for node, source in sources:
        try:
            found.append(search.mixture(source))
        except (Unlike, EditRefused, UnsupportedModel) as why:
            refused.append((node, str(why)))
    return _outermost(model, found, refused)


def _measure(model: ir.Model, seen: ir.Model, context: Context) -> None:
    """Give what choices read the sizes that it has on one input, where an exporter does not say them."""
    values = {value.name: value for value in _values(model)}
    wanted = [value for value in unknown(seen) if value.name in values]
    for name, array in sizes_of(model, [value.name or "" for value in wanted], values, context).items():
        value = next(each for each in wanted if each.name == name)
        value.shape = ir.Shape([*[None] * (array.ndim - 1), array.shape[-1]]) if array.ndim else None


def _outermost(
    model: ir.Model, found: Sequence[Mixture], refused: Sequence[tuple[ir.Node, str]]
) -> tuple[list[Mixture], list[Refused]]:
    """Leave out what is part of a larger mixture: an operator behind a router of its own, a sort of its rows."""
    inner = {id(each): _inside(each) for each in found}
    whole = [
        each
        for each in found
        if not any(other is not each and inner[id(each)] < inner[id(other)] for other in found)
    ]  # fmt: skip
    parts = {node.name for each in whole for node in inner[id(each)]}
    left = [Refused(f"{node.op_type} {node.name!r}", why) for node, why in refused if node.name not in parts]
    places = {value: place for place, value in enumerate(_values(model))}
    return sorted(whole, key=lambda each: places[each.output]), left


def _inside(mixture: Mixture) -> set[ir.Node]:
    return ancestors(mixture.output) - ancestors(mixture.logits) - ancestors(mixture.input)


class _Search:
    """A model, the same as it is looked at, and some of its values on one input, for their sizes.

    Branches are inlined there, and products in 8 bits, `rounded`, are products of floats.
    """

    def __init__(
        self,
        model: ir.Model,
        seen: ir.Model,
        rounded: Container[ir.Node],
        operators: Mapping[ir.Node, Mixture | Unlike],
        sources: Sequence[Source],
        context: Context,
    ) -> None:
        self.model = model
        self.seen = seen
        self.rounded = rounded
        self.runtime = context.runtime
        self.values = {value.name: value for value in _values(model)}
        self._operators = {node.name: each for node, each in operators.items()}
        self.sizes = sizes_of(model, [name for source in sources for name in _read(source)], self.values, context)

    def mixture(self, source: Source) -> Mixture:
        """Return what a node leads to, or raise why that is no mixture."""
        if isinstance(source, Unlike):
            raise source
        if isinstance(source, Mixture):
            ends = Ends(source.input, source.logits, _after_factor(source.output), source.active)
            return self._operator(source, ends)
        region = _smallest(source, self.sizes)
        named = (region.input, region.logits, region.output, *region.others)
        given, logits, output, *others = (self.values[value.name] for value in named)
        ends = Ends(given, logits, _after_factor(output), _active(region), tuple(others), region.axis)
        if region.operator is None:
            return self._region(region, ends)
        whole = self._operators[region.operator.name]
        if isinstance(whole, Unlike):
            raise whole
        return self._operator(whole, ends)

    def _operator(self, source: Mixture, ends: Ends) -> Mixture:
        made = replace(source, input=ends.input, logits=ends.logits, output=ends.output, active=ends.active)
        probe = probed(self.model, ends, self.sizes, self.runtime)
        return replace(made, gating=gating_of(made, probe, self.runtime, limit_of(source)))

    def _region(self, region: Region, ends: Ends) -> Mixture:
        """Return the mixture of a region; where rows take different numbers of experts, with the threshold for that."""
        probe = probed(self.model, ends, self.sizes, self.runtime)
        reasons = []
        for threshold in (None, *region.shares):
            try:
                return self._with(region, ends, probe, threshold)
            except Unlike as why:
                reasons.append(why)
        raise reasons[0]

    def _is_rounded(self, region: Region) -> bool:
        return any(node in self.rounded for chain in region.chains for node in (*chain.nodes, *chain.after))

    def _with(self, region: Region, ends: Ends, probe: Probe, threshold: float | None) -> Mixture:
        mask = self._chosen(region, ends, probe)
        if threshold is not None:
            mask = taken(probe.logits, ends.active, threshold)
        found = members(self.seen, region, probe, ends.active, mask, self.runtime)
        name = region.choice.name or ends.output.name or ""
        made = Mixture(
            *(name, region.form, ends.input, ends.logits, ends.output, ends.active),
            *(Gating("one", groups=found.groups, threshold=threshold), found.experts, found.activation),
            axis=region.axis,
            shared=found.shared,
            others=ends.others,
            rounded=self._is_rounded(region),
        )
        try:
            return replace(made, gating=gating_of(made, probe, self.runtime, limit_of(made)))
        except Unlike as why:
            if threshold is not None:
                raise
            return replace(made, gating=self._router(region, made, probe, why))

    def _chosen(self, region: Region, ends: Ends, probe: Probe) -> Array:
        """Return which experts rows choose, `[rows, experts]`."""
        source = opened(self.seen, [region.input, region.logits, *region.others], [region.chosen])
        with self.runtime.open(source) as runs:
            chosen = np.asarray(runs.run(probe.feed)[region.chosen.name or ""]).reshape(len(probe.rows), -1)
        mask = np.zeros(probe.logits.shape, bool)
        np.put_along_axis(mask, chosen, True, axis=1)
        return mask

    def _router(self, region: Region, made: Mixture, probe: Probe, why: Unlike) -> Gating:
        """Return gates as the nodes that make them, or raise `why` where none do."""
        inside = ancestors(region.output) - ancestors(region.logits)
        nodes = [node for node in self.seen.graph if node in inside]
        weights = weighing(nodes, region.input, region.logits, region.chosen)
        try:
            return router_of(self.seen, region, made, probe, weights, self.runtime)
        except (Unlike, EditRefused, UnsupportedModel):
            raise why from None


def _after_factor(value: ir.Value) -> ir.Value:
    """Return a value times the numbers that it is multiplied by before anything else reads it."""
    while len(value.uses()) == 1 and not value.is_graph_output():
        ((node, _),) = value.uses()
        others = [each.const_value for each in node.inputs if each is not None and each is not value]
        if node.op_type != "Mul" or len(others) != 1 or others[0] is None or others[0].size != 1:
            break
        (value,) = node.outputs
    return value


def _values(model: ir.Model) -> Iterator[ir.Value]:
    yield from model.graph.inputs
    for node in model.graph:
        yield from node.outputs


def _read(source: Source) -> list[str]:
    """Return the names of the values whose sizes have to be known to run something."""
    if isinstance(source, Unlike):
        return []
    if isinstance(source, Mixture):
        values = [source.input, source.logits, source.output]
    else:
        values = [each for region in source for each in (region.input, region.logits, region.output, *region.others)]
    return [value.name or "" for value in values]


def _smallest(candidates: Sequence[Region], sizes: Mapping[str, Array]) -> Region:
    """Return the first region that gives a row for each that it reads."""
    for region in candidates:
        given, output = (sizes.get(value.name or "") for value in (region.input, region.output))
        if given is None or output is None or given.ndim != output.ndim:
            continue
        if leading(given.shape, region.axis) == leading(output.shape, region.axis):
            if region.input.dtype != ir.DataType.FLOAT:
                raise Unlike(f"it computes in {region.input.dtype}, not in FLOAT")
            return region
    raise Unlike(f"{candidates[-1].output.name!r} has other rows than {candidates[0].input.name!r}, which it comes of")


def _active(region: Region) -> int:
    count = region.choice.inputs[1]
    if count is None or count.const_value is None:
        raise Unlike("how many it chooses is computed")
    return int(count.const_value.numpy().ravel()[0])
