"""Find feed-forward layers: a hidden dimension that some layers produce, an activation bends, and one layer sums over.

    h = act(x @ gate) * (x @ up) + ...      every entry by itself, every row (token, pixel) by itself
    y = h @ down

They are found from the dimensions of the axis algebra, never from names or patterns of operators: whatever lies between
has the hidden dimension at the same axis and all other axes as they are, sums over nothing, and reads nothing but what
comes of `x` and of weights. Entry by entry `y` is then a sum, which `bevel.ir.split` takes apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import onnx_ir as ir

from bevel.errors import EditRefused
from bevel.ir.action import Action
from bevel.ir.axes import Axis, Dim, atoms, resolve
from bevel.ir.coupling import FREE
from bevel.ir.groups import Analysis, Group
from bevel.ir.site import Site, Summation
from bevel.ir.symmetry import action_of


@dataclass(frozen=True, eq=False)
class FeedForward:
    """A feed-forward layer, from the value it reads to what its last product gives.

    `axis` is the axis of channels of `input`, `hidden` and `output`. `nodes` are all between, in the order of the
    graph: `producers` (up, and gate), what works on their entries, `down`, and what transposes weights for them. `gate`
    is what the activation reads, `x @ gate` up to a factor, and `bent` what it makes of that alone, `hidden` if there
    is no more; `up` is what a gated layer multiplies that by. `channels` counts those of `input` and of `output`.
    """

    group: Group
    input: ir.Value
    hidden: ir.Value
    output: ir.Value
    nodes: tuple[ir.Node, ...]
    producers: tuple[ir.Node, ...]
    down: ir.Node
    gate: ir.Value
    bent: ir.Value
    up: ir.Value | None
    axis: int
    rank: int
    channels: tuple[int, int]

    @property
    def name(self) -> str:
        """The name of its group."""
        return self.group.name

    @property
    def size(self) -> int:
        """How many hidden entries it has."""
        return self.group.size

    @property
    def weights(self) -> tuple[ir.Value, ...]:
        """The initializers that have the hidden dimension."""
        return tuple(dict.fromkeys(member.value for member in self.group.members))

    @cached_property
    def bias(self) -> int | None:
        """The place of the constant among the inputs of `down`, if it adds one itself."""
        taken = {self.hidden, *_carriers(self.nodes, self.weights)}
        places = [place for place, value in enumerate(self.down.inputs) if value is not None and value not in taken]
        return places[0] if places else None


@dataclass(frozen=True, eq=False)
class Refused:
    """A group that one might take for a feed-forward layer, and why it is none.

    `whole` says that it is a whole axis of what is summed over; heads are not.
    """

    group: Group
    why: str
    whole: bool = True

    def __str__(self) -> str:
        return f"{self.group.name} ({self.group.size} entries): {self.why}"


class _None(Exception):
    """Why a group is no feed-forward layer."""

    whole = True


class _Factor(_None):
    """That a group is part of an axis."""

    whole = False


def feed_forwards(analysis: Analysis) -> tuple[list[FeedForward], list[Refused]]:
    """Return the feed-forward layers of a model, in the order of its groups, and what looks like one but is none."""
    reading = _Reading(analysis)
    found: list[FeedForward] = []
    refused: list[Refused] = []
    for group in analysis.groups:
        downs, ups = reading.downs(group.dim), reading.producers(group.dim)
        if not downs or not ups:
            continue
        try:
            found.append(reading.layer(group, downs, ups))
        except _None as reason:
            refused.append(Refused(group, str(reason), reason.whole))
    return found, refused


def feed_forward(analysis: Analysis, name: str) -> FeedForward:
    """Return the feed-forward layer of a group; raises `EditRefused` with the reason if it is none."""
    group = analysis[name]
    found, refused = feed_forwards(analysis)
    layer = next((each for each in found if each.group is group), None)
    if layer is None:
        why = next((each.why for each in refused if each.group is group), "no layer makes it that another sums over")
        raise EditRefused(f"is no feed-forward layer: {why}", where=f"group {name!r}")
    return layer


class _Reading:
    """What is asked of a graph again and again."""

    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis
        self.facts = analysis.facts
        self.nodes = {node: place for place, node in enumerate(analysis.model.graph)}
        self.sums: dict[ir.Node, list[Summation]] = {}
        for place in self.facts.sums:
            self.sums.setdefault(place.node, []).append(place)
        self._fixed: set[ir.Value] = set()
        for node in self.nodes:
            given = [value for value in node.inputs if value is not None]
            if given and all(map(self.fixed, given)):
                self._fixed.update(node.outputs)
        self._summed: dict[Dim, list[ir.Node]] = {}
        self._produced: dict[Dim, list[ir.Node]] = {}
        for node in [node for node in self.nodes if node in self.sums]:
            self._note(node)

    def _note(self, node: ir.Node) -> None:
        """Note what a layer sums over and what it produces, if it is one: one operand is of weights, one is not."""
        data = [value for value in node.inputs if value is not None and not self.fixed(value)]
        if len(data) != 1 or len(node.outputs) != 1:
            return
        for dim in {dim for place in self.sums[node] for dim in atoms(place.axis)}:
            self._summed.setdefault(dim, []).append(node)
        inside = set(self._atoms(data[0]))
        for dim in dict.fromkeys(self._atoms(node.outputs[0])):
            if dim not in inside:
                self._produced.setdefault(dim, []).append(node)

    def _atoms(self, value: ir.Value) -> Iterator[Dim]:
        for axis in self.facts.of(value) or ():
            yield from atoms(axis)

    def downs(self, dim: Dim) -> list[ir.Node]:
        """Return the layers that sum over a dimension."""
        return self._summed.get(dim, [])

    def producers(self, dim: Dim) -> list[ir.Node]:
        """Return the layers that give a dimension which they do not read."""
        return self._produced.get(dim, [])

    def fixed(self, value: ir.Value) -> bool:
        """Say whether a value is a weight or comes of weights alone."""
        return value in self._fixed or (value.is_initializer() and not value.is_graph_input())

    def layer(self, group: Group, downs: Sequence[ir.Node], ups: Sequence[ir.Node]) -> FeedForward:
        """Return a group's feed-forward layer, or raise why there is none."""
        if not group.allows(FREE):
            raise _None(group.why(FREE)[0])
        if len(downs) != 1:
            raise _None(f"{len(downs)} layers sum over it: {downs[0].name!r}, {downs[1].name!r}")
        (down,) = downs
        hidden = next(value for value in down.inputs if value is not None and not self.fixed(value))
        axis, axes = self._channel(group.dim, hidden, down)
        region, producers = self._region(group.dim, down, hidden, ups)
        given = self._given(producers)
        self._closed(region, down)
        self._row_wise(group.dim, axis, axes, region, producers)
        for node, value, result in ((down, hidden, down.outputs[0]), *((node, given, None) for node in producers)):
            self._plain(node, value, result, axis, len(axes))
        gate, bent, up = self._gate(region, producers, down)
        channels = self._size(given, axis), self._size(down.outputs[0], axis)
        if 0 in channels:
            raise _None("it reads or gives no channels")
        bent = bent if self._size(bent, axis) == group.size else hidden
        return FeedForward(
            *(group, given, hidden, down.outputs[0], tuple(region), tuple(producers), down, gate, bent, up),
            *(axis, len(axes), channels),
        )

    def _size(self, value: ir.Value, axis: int) -> int:
        return (self.facts.of(value) or ())[axis].size

    def _channel(self, dim: Dim, hidden: ir.Value, down: ir.Node) -> tuple[int, Sequence[Axis]]:
        """Return at which axis of what the last layer reads the dimension stands, alone."""
        axes = [resolve(axis) for axis in self.facts.of(hidden) or ()]
        if dim not in axes:
            raise _Factor(f"{_told(down)} reads it as part of an axis")
        return axes.index(dim), axes

    def _region(
        self, dim: Dim, down: ir.Node, hidden: ir.Value, ups: Sequence[ir.Node]
    ) -> tuple[list[ir.Node], list[ir.Node]]:
        """Return the nodes from the producers to the last layer, and the producers among them."""
        found: set[ir.Node] = set()
        pending = [down]
        while pending:
            node = pending.pop()
            if node in found:
                continue
            if node not in self.nodes or len(found) > len(self.nodes):
                raise _None(f"{_told(node)} stands in another graph")
            found.add(node)
            pending.extend(self._makers(dim, node, node is not down and node in ups))
        producers = [node for node in sorted(found, key=self.nodes.__getitem__) if node in ups and node is not down]
        if len(producers) != len(ups):
            other = next(node for node in ups if node not in found)
            raise _None(f"{_told(other)} makes it too, and does not lead to {_told(down)}")
        return sorted(found, key=self.nodes.__getitem__), producers

    def _makers(self, dim: Dim, node: ir.Node, producer: bool) -> Iterator[ir.Node]:
        """Yield the nodes that what a node of the layer reads comes from; a producer's activation is the layer's."""
        for value in node.inputs:
            maker = None if value is None else value.producer()
            if value is None or (producer and not self.fixed(value)) or (maker is None and self.fixed(value)):
                continue
            if maker is None or not (self.fixed(value) or dim in self._atoms(value)):
                raise _None(f"{_told(node)} also reads {value.name!r}, which is made elsewhere")
            yield maker

    def _given(self, producers: Sequence[ir.Node]) -> ir.Value:
        """Return the one value that all producers read."""
        given = [value for node in producers for value in node.inputs if value is not None and not self.fixed(value)]
        if len(set(given)) > 1:
            raise _None(f"{_told(producers[0])} and {_told(producers[-1])} read different values")
        return given[0]

    def _closed(self, region: Sequence[ir.Node], down: ir.Node) -> None:
        """Refuse if anybody else reads what is computed inside."""
        inside = set(region)
        for node in region:
            for value in node.outputs:
                if node is down:
                    continue
                other = next((use.node for use in value.uses() if use.node not in inside), None)
                if other is not None or value.is_graph_output():
                    reader = "the model's caller" if other is None else _told(other)
                    raise _None(f"{reader} reads {value.name!r}, which is inside")

    def _row_wise(
        self, dim: Dim, axis: int, axes: Sequence[Axis], region: Sequence[ir.Node], producers: Sequence[ir.Node]
    ) -> None:
        """Refuse what does more to an activation between the layers than work on its entries one by one."""
        others = {each for place, whole in enumerate(axes) if place != axis for each in atoms(whole)}
        marked = {mark.node: mark.why for mark in self.facts.marks if not others.isdisjoint(atoms(mark.axis))}
        for node in region[:-1]:
            if all(map(self.fixed, node.outputs)):
                continue
            if node not in producers and node in self.sums:
                raise _None(f"{_told(node)} between its layers sums over another axis")
            if node not in producers and node in marked:
                raise _None(f"{_told(node)} between its layers mixes rows: {marked[node]}")
            for value in node.outputs:
                self._same_rows(dim, axis, axes, node, value)

    def _same_rows(self, dim: Dim, axis: int, axes: Sequence[Axis], node: ir.Node, value: ir.Value) -> None:
        found = [resolve(each) for each in self.facts.of(value) or ()]
        same = len(found) == len(axes) and all(
            set(atoms(mine)) <= {dim} if place == axis else mine is whole or mine.size == whole.size == 1
            for place, (mine, whole) in enumerate(zip(found, axes, strict=True))
        )
        if not same:
            raise _None(f"{_told(node)} between its layers changes the other axes")

    def _plain(self, node: ir.Node, given: ir.Value, result: ir.Value | None, axis: int, rank: int) -> None:
        """Refuse a layer that reads more than one place for each that it gives: a kernel, a stride."""
        place = next(each for each in self.sums[node] if node.inputs[each.input] is given)
        counts = len(self.facts.of(given) or ())
        if place.position % max(counts, 1) != axis or counts != rank:
            raise _None(f"{_told(node)} sums over another axis than that of the channels")
        attributes = node.attributes
        strides, pads = attributes.get_ints("strides", ()), attributes.get_ints("pads", ())
        if any(stride != 1 for stride in strides or ()) or any(pads or ()) or attributes.get_int("group", 1) != 1:
            raise _None(f"{_told(node)} has strides, pads or groups")
        for weight in [value for value in node.inputs if value is not None and value is not given]:
            if any(size != 1 for size in (weight.shape or ())[2:]):
                raise _None(f"{_told(node)} has a kernel, so that rows depend on each other")
        if result is not None and len(self.facts.of(result) or ()) != rank:
            raise _None(f"{_told(node)} gives another number of axes than it reads")

    def _gate(
        self, region: Sequence[ir.Node], producers: Sequence[ir.Node], down: ir.Node
    ) -> tuple[ir.Value, ir.Value, ir.Value | None]:
        """Return what the first node reads that is not linear, what comes of it alone, and what else is linear."""
        roots = {value: {value} for node in producers for value in node.outputs}  # what each value is made of
        linear = set(roots)
        gate: ir.Value | None = None
        bent: ir.Value | None = None
        for node in region:
            given = [value for value in node.inputs if value is not None and value in roots]
            if not given or node in producers or node is down:
                continue
            union: set[ir.Value] = set().union(*(roots[value] for value in given))
            if linear.issuperset(given) and self._is_linear(node, set(given)):
                linear.update(node.outputs)
            elif gate is None and (not self._action(node).terms or not _disjoint([roots[value] for value in given])):
                gate = bent = given[0]
            roots |= {value: union if len(node.outputs) == 1 else {value} for value in node.outputs}
            if gate is not None and union <= roots[gate]:
                bent = node.outputs[0]
        if gate is None or bent is None:
            raise _None("nothing between its layers bends it: they are one linear layer")
        others = [value for value in linear if roots[value].isdisjoint(roots[gate])]
        last = max(others, key=lambda value: region.index(_maker(value)), default=None)
        return gate, bent, last

    def _is_linear(self, node: ir.Node, given: set[ir.Value]) -> bool:
        """Say whether a node is linear in the operands it reads of the layer."""
        action = self._action(node)
        read = {index for index, value in enumerate(node.inputs) if value in given}
        terms = action.terms_of([index for index, value in enumerate(node.inputs) if value is not None])
        once = all(len([index for index in term.times if index in read]) <= 1 for term in terms)
        plain = not action.positive and action.inner is None
        return bool(terms) and once and plain and all(read.isdisjoint(term.over) for term in terms)

    def _action(self, node: ir.Node) -> Action:
        return action_of(Site(node, self.facts, self.analysis.model.opset_imports.get(node.domain, 1)))


def _carriers(nodes: Sequence[ir.Node], weights: Sequence[ir.Value]) -> Iterator[ir.Value]:
    """Yield weights, and what nodes make of them alone."""
    known = set(weights)
    for node in nodes:
        given = [value for value in node.inputs if value is not None]
        if any(value in known for value in given) and all(value.is_initializer() or value in known for value in given):
            known.update(node.outputs)
    yield from known


def _maker(value: ir.Value) -> ir.Node:
    node = value.producer()
    assert node is not None
    return node


def _disjoint(sets: Sequence[set[ir.Value]]) -> bool:
    return len(sets) > 1 and sum(map(len, sets)) == len(set().union(*sets))


def _told(node: ir.Node) -> str:
    return f"{node.op_type} {node.name!r}"
