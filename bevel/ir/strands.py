"""What one node does with each occurrence of a dimension: its rule, read once more with all occurrences told apart.

The analysis finds that two axes hold the same dimension, not which of its occurrences a node takes from where: query
and key of a fused projection hold the same head dimension twice in one axis, and a contraction meets it from both
sides. So the rule of a node is applied again to fresh axes of the same structure, one dimension for each occurrence;
those that it equates form a strand.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import onnx_ir as ir

from bevel.ir.axes import Axis, Dim, Product, Sum, atoms, paths, product, resolve, total
from bevel.ir.coupling import FIXED, find_rule
from bevel.ir.equation import couple
from bevel.ir.site import Facts, Opaque, Site


class Occurrence(NamedTuple):
    """Where a dimension stands: on which axis of a value, and the positions that lead to it within the axis."""

    value: ir.Value
    axis: int
    path: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.value.name}[{'.'.join(map(str, (self.axis, *self.path)))}]"


@dataclass
class Strand:
    """Occurrences of one dimension, by input and by output, that a node treats as one; `fixed` says why not at all.

    `summed`: the node sums products over it.
    """

    dim: Dim
    inputs: dict[int, list[Occurrence]] = field(default_factory=dict)
    outputs: dict[int, list[Occurrence]] = field(default_factory=dict)
    fixed: str = ""
    summed: bool = False

    @property
    def occurrences(self) -> list[Occurrence]:
        """All of them, those of inputs first."""
        return [each for side in (self.inputs, self.outputs) for found in side.values() for each in found]


UNALIGNED = "its axes do not line up"


def strands(site: Site) -> list[Strand]:
    """Tell apart what a node does with each occurrence of each dimension in its inputs and outputs."""
    return _Reading(site).strands()


class _Reading:
    """One node, read with every occurrence told apart."""

    def __init__(self, site: Site) -> None:
        self.node, self.known = site.node, site.facts
        self.facts = Facts(site.facts.symbols, integers=site.facts.integers)
        self.site = Site(site.node, self.facts, site.version)
        self.found: dict[Dim, Strand] = {}
        self.loose: list[Strand] = []

    def strands(self) -> list[Strand]:
        tagged = self._tag_inputs()
        try:
            self._apply_rule()
        except Opaque as reason:
            return self._torn_apart(str(reason))
        for index, occurrence, dim, tag in tagged:
            self._strand_of(dim, resolve(tag)).inputs.setdefault(index, []).append(occurrence)
        for index, output in enumerate(self.node.outputs):
            if output.name != "":  # what a node leaves out is no place, and has the name of all that is left out
                self._read_output(index, output)
        self._fix_marked()
        for summation in self.facts.sums:
            for root in atoms(summation.axis):
                if root in self.found:
                    self.found[root].summed = True
        return [*self.found.values(), *self.loose]

    def _apply_rule(self) -> None:
        rule = find_rule(self.node.domain, self.node.op_type)
        if rule is None:
            raise Opaque("no rule is known for it")
        coupling = rule(self.site)
        if coupling is not None:
            couple(self.site, coupling)

    def _tag_inputs(self) -> list[tuple[int, Occurrence, Dim, Dim]]:
        """Give every occurrence in an input a dimension of its own."""
        tagged: list[tuple[int, Occurrence, Dim, Dim]] = []
        for index, value in enumerate(self.node.inputs):
            axes = None if value is None else self.known.axes.get(value)
            if value is None or axes is None:
                continue
            copies = self.facts.axes.setdefault(value, tuple([_copy(axis) for axis in axes]))
            assert copies is not None
            for place, (axis, copy) in enumerate(zip(axes, copies, strict=True)):
                for (path, dim), tag in zip(paths(axis), list(atoms(copy)), strict=True):
                    tagged.append((index, Occurrence(value, place, path), dim, tag))
        return tagged

    def _strand_of(self, dim: Dim, root: Axis | None) -> Strand:
        """Return the strand of a dimension; what the graph does not know as one dimension is kept apart and fixed."""
        if isinstance(root, Dim):
            strand = self.found.setdefault(root, Strand(dim))
            if strand.dim is dim:
                return strand
        for part in () if root is None else atoms(root):
            self.found.setdefault(part, Strand(dim)).fixed = UNALIGNED
        self.loose.append(Strand(dim, fixed=UNALIGNED))
        return self.loose[-1]

    def _read_output(self, index: int, output: ir.Value) -> None:
        known, axes = self.known.axes.get(output), self.facts.axes.get(output)
        if axes is None or known is None or len(axes) != len(known):
            if output.uses() or output.is_graph_output() or known is not None:
                self._fix_all(UNALIGNED)
            self.loose += [_alone(index, each, dim, UNALIGNED) for each, dim in occurrences(output, self.known)]
            return
        for place, (axis, local) in enumerate(zip(known, axes, strict=True)):
            for path, dim, root in self._aligned(axis, local, ()):
                self._strand_of(dim, root).outputs.setdefault(index, []).append(Occurrence(output, place, path))

    def _aligned(
        self, known: Axis, local: Axis, path: tuple[int, ...]
    ) -> Iterator[tuple[tuple[int, ...], Dim, Dim | None]]:
        """Pair the dimensions of an axis, as it is known, with those of the node's own reading."""
        known, local = resolve(known), resolve(local)
        if isinstance(known, Dim) and isinstance(local, Dim) and known.size == local.size:
            yield path, known, local
            return
        pairs = list(zip(_parts(known), _parts(local), strict=False))
        if pairs and type(known) is type(local) and len(_parts(known)) == len(_parts(local)):
            for place, (left, right) in enumerate(pairs):
                yield from self._aligned(left, right, (*path, place))
            return
        for each, dim in paths(known, path):
            yield each, dim, None
        for root in atoms(local):
            if root in self.found:
                self.found[root].fixed = UNALIGNED

    def _fix_marked(self) -> None:
        for mark in self.facts.marks:
            if mark.keeps == FIXED:
                for root in atoms(mark.axis):
                    if root in self.found:
                        self.found[root].fixed = mark.why
        for conflict in self.facts.solver.conflicts:
            for root in (*atoms(conflict.left), *atoms(conflict.right)):
                if root in self.found:
                    self.found[root].fixed = UNALIGNED

    def _fix_all(self, why: str) -> None:
        for strand in self.found.values():
            strand.fixed = why

    def _torn_apart(self, why: str) -> list[Strand]:
        """Fix every occurrence at a node of which too little is known."""
        inputs = [
            Strand(dim, inputs={index: [each]}, fixed=why)
            for index, value in enumerate(self.node.inputs)
            if value is not None
            for each, dim in occurrences(value, self.known)
        ]
        outputs = [
            _alone(index, each, dim, why)
            for index, value in enumerate(self.node.outputs)
            for each, dim in occurrences(value, self.known)
        ]
        return inputs + outputs


def _alone(index: int, occurrence: Occurrence, dim: Dim, why: str) -> Strand:
    return Strand(dim, outputs={index: [occurrence]}, fixed=why)


def occurrences(value: ir.Value, facts: Facts) -> Iterator[tuple[Occurrence, Dim]]:
    """Yield where dimensions stand in a value."""
    for place, axis in enumerate(facts.axes.get(value) or ()):
        for path, dim in paths(axis):
            yield Occurrence(value, place, path), dim


def _parts(axis: Axis) -> tuple[Axis, ...]:
    if isinstance(axis, Dim):
        return ()
    return axis.factors if isinstance(axis, Product) else axis.terms


def _copy(axis: Axis) -> Axis:
    """Build an axis of the same structure from dimensions of its own, one for each occurrence."""
    axis = resolve(axis)
    if isinstance(axis, Dim):
        return Dim(axis.size)
    if isinstance(axis, Product):
        return product(*[_copy(factor) for factor in axis.factors])
    return total(*[_copy(term) for term in axis.terms])


def alternatives(axis: Axis, left: tuple[int, ...], right: tuple[int, ...]) -> bool:
    """Say whether two places within an axis lie in different parts of a sum, so that no entry holds both.

    >>> half, other = Dim(2), Dim(3)
    >>> alternatives(total(half, product(other, half)), (0,), (1, 1))
    True
    """
    axis = resolve(axis)
    for a, b in zip(left, right, strict=False):
        if a != b:
            return isinstance(axis, Sum)
        axis = resolve(_parts(axis)[a])
    return False
