"""What rules of several families say of axes whose order carries meaning, and of operators left as they are."""

from __future__ import annotations

from bevel.ir.axes import Axis, fresh
from bevel.ir.coupling import rule
from bevel.ir.site import POSITIONS, Opaque, Site

MICROSOFT = "com.microsoft"


def positions(site: Site, place: int, why: str = POSITIONS, output: int = 0) -> Axis:
    """Make an output axis whose order carries meaning, of the size that was inferred or of one of its own."""
    sizes = site.output_sizes(output)
    name = f"{site.node.outputs[output].name}[{place}]"
    known = sizes is not None and place < len(sizes)
    axis = fresh(sizes[place] if sizes is not None and known else site.facts.symbols.unknown(name))
    site.fix(axis, why)
    return axis


def pin(*op_types: str, why: str, domain: str = "") -> None:
    """Register operators of which nothing that touches them may change."""

    @rule(*op_types, domain=domain)
    def pinned(site: Site) -> None:
        raise Opaque(why)
