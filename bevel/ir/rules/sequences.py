"""Sequences, optional values and strings: tensors inside them are left as they are."""

from __future__ import annotations

from bevel.ir.axes import Axis
from bevel.ir.coupling import Coupling, Freedom, rule
from bevel.ir.resize import operand_sizes
from bevel.ir.rules.fixed import pin, positions
from bevel.ir.rules.layout import cut_apart
from bevel.ir.site import Axes, Opaque, Site
from bevel.ir.sizes import is_symbolic

pin(
    *("SequenceConstruct", "SequenceEmpty", "SequenceInsert", "SequenceErase", "SequenceLength", "SequenceMap"),
    "ConcatFromSequence",
    why="tensors of a sequence share no axes",
)
pin("Optional", "OptionalHasElement", why="an optional value may have no axes")
pin("ImageDecoder", why="its input is an encoded file")
pin("StringNormalizer", why="how many strings it keeps depends on them")


@rule("SplitToSequence")
def split_to_sequence(site: Site) -> None:
    """Cut one axis into parts that SequenceAt takes out again, as PyTorch writes `chunk` and `split`."""
    axes, sequence = site.axes(0), site.node.outputs[0]
    if sequence.is_graph_output() or any(use.node.op_type != "SequenceAt" for use in sequence.uses()):
        raise Opaque("the sequence is used as a whole")
    place = site.position(site.integer("axis"), len(axes))
    parts = cut_apart(site, axes[place], _part_sizes(site, axes[place].size))
    site.facts.sequences[sequence] = [_with_part(site, axes, place, part) for part in parts]
    if site.has(1):
        site.states(operand_sizes(site.node, 1, parts))


def _part_sizes(site: Site, size: int) -> list[int]:
    if is_symbolic(size):
        raise Opaque("it cuts an axis of symbolic size")
    if not site.has(1):
        return [1] * size
    given = site.required_integers(1)
    if site.axes(1) == ():
        given = [min(given[0], size - start) for start in range(0, size, given[0])]
    if sum(given) != size:
        raise Opaque(f"its parts {given} do not fit an axis of size {size}")
    return given


def _with_part(site: Site, axes: Axes, place: int, part: Axis) -> Axes:
    kept = () if not site.has(1) and not site.integer("keepdims", 1) else (part,)
    return (*axes[:place], *kept, *axes[place + 1 :])


@rule("SequenceAt")
def sequence_at(site: Site) -> None:
    """Take one part of an axis that was cut."""
    parts, (place,) = site.facts.sequences.get(site.value(0)), site.required_integers(1)
    if parts is None or not -len(parts) <= place < len(parts):
        raise Opaque("where its sequence comes from is not known")
    site.set(0, parts[place])


@rule("OptionalGetElement")
def optional_get_element(site: Site) -> None:
    """Pass a tensor on; what an optional value holds is left as it is."""
    if site.value(0).type is None or site.value(0).shape is None:
        raise Opaque("an optional value may have no axes")
    site.set(0, site.axes(0))


@rule("StringSplit")
def string_split(site: Site) -> None:
    """Give each string an axis of its parts."""
    axes = site.axes(0)
    site.keep(axes, Freedom.PERMUTE, "the longest of its entries decides how many parts there are")
    site.set(0, (*axes, positions(site, len(axes))))
    site.set(1, axes)


@rule("TfIdfVectorizer")
def tf_idf(site: Site) -> Coupling:
    """Count the n-grams of each sample."""
    return Coupling("_ -> _" if len(site.axes(0)) == 1 else "n _ -> n _")
