"""Sequences, optional values and strings: tensors inside them are left as they are."""

from __future__ import annotations

from bevel.ir.coupling import Coupling, rule
from bevel.ir.rules.fixed import pin, positions
from bevel.ir.site import Opaque, Site

pin(
    *("SequenceConstruct", "SequenceEmpty", "SequenceInsert", "SequenceErase", "SequenceAt", "SequenceLength"),
    *("SequenceMap", "SplitToSequence", "ConcatFromSequence"),
    why="tensors of a sequence share no axes",
)
pin("Optional", "OptionalHasElement", why="an optional value may have no axes")
pin("ImageDecoder", why="its input is an encoded file")
pin("StringNormalizer", why="how many strings it keeps depends on them")


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
    site.set(0, (*axes, positions(site, len(axes))))
    site.set(1, axes)


@rule("TfIdfVectorizer")
def tf_idf(site: Site) -> Coupling:
    """Count the n-grams of each sample."""
    return Coupling("_ -> _" if len(site.axes(0)) == 1 else "n _ -> n _")
