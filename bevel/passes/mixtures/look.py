"""Where a mixture stands in a graph of standard nodes: from a choice (TopK) to where all that depends on it meets.

    x --> router --> logits --> ... TopK --> which experts, what they count
    x --> products, activation, products of each expert, on the rows that take it or on all --> y

Nothing is found by name or by a pattern of operators: a region is what lies between the logits, one value that the
experts read, and a value through which everything goes that the choice leads to. Products in it that depend on no other
product are the first ones of an expert, those that depend on some the last.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf
from typing import Final

import onnx_ir as ir

from bevel.ir.groups import analyse
from bevel.passes.fitting.layers import GEMM, MATMUL
from bevel.passes.mixtures.chains import Chains, Unlike, is_float
from bevel.passes.mixtures.fused import is_mixture
from bevel.passes.mixtures.region import BEST, CHOICE, Region, may_choose
from bevel.passes.mixtures.rows import LAST

# Places where all that a choice leads to meets: gates, the sum over experts, and that in other shapes.
MOST_MEETINGS: Final = 24
LEAST_PRODUCTS: Final = 2
MOST_STEPS: Final = 6
PRODUCTS: Final = {MATMUL, GEMM}
SIZES: Final = {"Shape", "Size"}


def regions(model: ir.Model) -> Iterator[tuple[ir.Node, list[Region] | Unlike]]:
    """Yield every choice of a graph with the regions that it may lead to, the smallest first, or why there is none."""
    look = Look(model)
    for node in model.graph:
        if node.op_type == BEST and may_choose(node) and look.routes(node):
            yield node, Unlike(f"it takes the best expert by {BEST}; {CHOICE} is followed, where no row is left out")
        elif node.op_type == CHOICE and may_choose(node):
            try:
                found: list[Region] | Unlike = look.regions(node)
            except Unlike as why:
                found = why
            yield node, found


def unknown(model: ir.Model) -> list[ir.Value]:
    """Return what choices read whose last size is not known, and what that comes of a few nodes before."""
    found: dict[ir.Value, None] = {}
    pending = [(node.inputs[0], 0) for node in model.graph if node.op_type == CHOICE and may_choose(node)]
    while pending:
        value, steps = pending.pop()
        if value is None or value in found or not is_float(value) or _last_size(value) is not None:
            continue
        found[value] = None
        node = value.producer()
        if node is not None and steps < MOST_STEPS:
            pending += [(each, steps + 1) for each in node.inputs]
    return [value for value in found if value.producer() is not None]


class Look:
    """A graph as it is read for mixtures: what is fixed, which nodes are products, and where nodes stand."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.nodes = list(model.graph)
        self.place = {node: place for place, node in enumerate(self.nodes)}
        self._sums = analyse(model).facts.sums
        self.summing = {place.node for place in self._sums}
        # Where an exporter hides how many axes there are (Tile by what OneHot gives), nothing is known of a product.
        self.summing |= {node for node in self.nodes if node.op_type in PRODUCTS}
        self._fixed: set[ir.Value] = set()
        for node in self.nodes:
            given = [value for value in node.inputs if value is not None]
            if given and all(map(self.fixed, given)):
                self._fixed.update(node.outputs)

    def fixed(self, value: ir.Value) -> bool:
        """Say whether a value comes of weights alone."""
        return value in self._fixed or (value.is_initializer() and not value.is_graph_input())

    def routes(self, choice: ir.Node) -> bool:
        """Say whether products come after a choice, as many as one expert has."""
        after = {choice}
        for node in self.nodes[self.place[choice] :]:
            if any(value is not None and value.producer() in after for value in node.inputs):
                after.add(node)
        return len(after & self.summing) >= LEAST_PRODUCTS

    def regions(self, choice: ir.Node) -> list[Region]:
        """Return what a choice may lead to, or raise `Unlike`."""
        scores = choice.inputs[0]
        assert scores is not None
        logits = self._logits(scores)
        experts = _last_size(logits)
        if not isinstance(experts, int):
            raise Unlike(f"it chooses from an unknown number of entries of {logits.name!r}")
        try:
            return self._led_to(choice, logits, experts)
        except Unlike:
            product = self._product(scores, experts)
            if product is None or product is logits:
                raise
            return self._led_to(choice, product, experts)

    def _product(self, scores: ir.Value, experts: int) -> ir.Value | None:
        """Return the last product that scores come of and that has a number for each expert."""
        before = ancestors(scores)
        made = [value for node in self.nodes if node in before and node in self.summing for value in node.outputs]
        return next((value for value in reversed(made) if _last_size(value) == experts), None)

    def _led_to(self, choice: ir.Node, logits: ir.Value, experts: int) -> list[Region]:
        """Return the regions between logits and where all meets that a choice leads to."""
        before = ancestors(logits)
        found: list[Region] = []
        reasons: list[Unlike] = []
        for output in self._meetings(choice):
            after = ancestors(output) - before
            inside = [node for node in self.nodes if node in after]
            try:
                region = self._region(choice, logits, output, inside, experts)
            except Unlike as why:
                if found:
                    break
                reasons.append(why)  # what is multiplied by a mask meets before the last product
                continue
            if region is not None:
                found.append(region)
        if not found:
            none = Unlike("no products of weights lie between it and where all that it leads to meets: it is no router")
            raise next(iter(reasons), none)
        return found

    def _logits(self, scores: ir.Value) -> ir.Value:
        """Return what scores come of, entry by entry or by a softmax, with no weights in between."""
        while (node := scores.producer()) is not None and node not in self.summing:
            given = [value for value in node.inputs if value is not None]
            data = [value for value in given if not self.fixed(value)]
            if len(data) != 1 or data[0].shape is None or data[0].shape != scores.shape:
                break
            if any(value is not data[0] and _size(value) != 1 for value in given):
                break
            (scores,) = data
        return scores

    def _meetings(self, choice: ir.Node) -> Iterator[ir.Value]:
        """Yield values through which everything goes that a choice leads to, in the order of the graph."""
        open_until = {value: self._last_use(value) for value in choice.outputs if value.uses()}
        count = 0
        for place in range(self.place[choice] + 1, len(self.nodes)):
            node = self.nodes[place]
            if any(value in open_until for value in node.inputs if value is not None):
                open_until |= {value: self._last_use(value) for value in node.outputs}
                open_until = {value: last for value, last in open_until.items() if last > place}
            if set(open_until) <= set(node.outputs) and len(node.outputs) == 1 and is_float(node.outputs[0]):
                yield node.outputs[0]
                count += 1
                if count == MOST_MEETINGS:
                    return

    def _last_use(self, value: ir.Value) -> float:
        if value.is_graph_output():
            return inf
        return max((self.place.get(use.node, inf) for use in value.uses()), default=-1)

    def _region(
        self, choice: ir.Node, logits: ir.Value, output: ir.Value, inside: Sequence[ir.Node], experts: int
    ) -> Region | None:
        """Return the region up to a value, None where no products are in it."""
        inside = self._without_sizes(inside, logits)
        made = {value for node in inside for value in node.outputs} | {logits}
        read = dict.fromkeys(value for node in inside for value in node.inputs if value is not None)
        outside = [value for value in read if value not in made and not self.fixed(value)]
        floats = [value for value in outside if is_float(value)]
        if not floats or not any(node in self.summing for node in inside):
            return None
        if len(floats) > 1:
            told = ", ".join(repr(value.name) for value in floats)
            raise Unlike(f"what it leads to reads {told} beside the logits, not one value")
        (given,) = floats
        others = tuple(value for value in outside if value is not given)
        operators = [node for node in inside if is_mixture(node)]
        if len(operators) == 1:
            return Region(choice, given, logits, output, others, (), experts, operators[0])
        found = Chains(inside, given, logits, choice.outputs[1], experts, self.summing, self.fixed).found()
        if not found:
            return None
        shares = tuple(dict.fromkeys(number for value in read for number in _share(value)))
        return Region(
            *(choice, given, logits, output, others, tuple(found), experts),
            axis=self._axis(given, set(inside)),
            shares=shares,
        )

    def _axis(self, given: ir.Value, inside: set[ir.Node]) -> int:
        """Return along which axis of a value products sum that read it as it is."""
        rank = len(given.shape or ())
        for place in self._sums:
            if rank and place.node in inside and place.node.inputs[place.input] is given:
                return LAST if place.position % rank == rank - 1 else place.position % rank
        return LAST

    def _without_sizes(self, inside: Sequence[ir.Node], logits: ir.Value) -> list[ir.Node]:
        """Leave out what reads only the sizes of something that was there before: an exporter takes them anywhere."""
        made = {value for node in inside for value in node.outputs} | {logits}
        read = {value for node in inside if node.op_type not in SIZES for value in node.inputs}
        return [node for node in inside if node.op_type not in SIZES or node.inputs[0] in made | read]


def ancestors(value: ir.Value) -> set[ir.Node]:
    """Return the nodes that a value comes of."""
    found: set[ir.Node] = set()
    pending = [value]
    while pending:
        node = pending.pop().producer()
        if node is not None and node not in found:
            found.add(node)
            pending.extend(each for each in node.inputs if each is not None)
    return found


def _last_size(value: ir.Value) -> int | None:
    size = value.shape[-1] if value.shape else None
    return size if isinstance(size, int) else None


def _size(value: ir.Value) -> int | None:
    return None if value.const_value is None else value.const_value.size


def _share(value: ir.Value) -> Iterator[float]:
    """Yield the number that a value is, if it is a single one between 0 and 1."""
    if is_float(value) and _size(value) == 1 and value.const_value is not None:
        number = float(value.const_value.numpy().ravel()[0])
        if 0 < number < 1:
            yield number
