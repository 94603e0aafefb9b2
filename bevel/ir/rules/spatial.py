"""Operators over positions: pooling, resizing, sampling. Positions are fixed, samples and channels stay free."""

from __future__ import annotations

from bevel.ir.action import HOMOGENEOUS, LINEAR
from bevel.ir.coupling import Coupling, rule
from bevel.ir.site import Site


def spatial(site: Site) -> str:
    """Return words for the axes after sample and channel."""
    return " ".join(f"s{place}" for place in range(len(site.axes(0)) - 2))


@rule("AveragePool", acts=LINEAR)
@rule("LpPool", "MaxPool", acts=HOMOGENEOUS)
def pool(site: Site) -> Coupling:
    """Reduce windows of positions; the indices that MaxPool can return count positions and channels."""
    if site.outputs > 1:
        return Coupling("_ _ * -> _ _ *, ?")
    return Coupling("n c * -> n c *")


@rule("GlobalAveragePool", acts=LINEAR)
@rule("GlobalLpPool", "GlobalMaxPool", acts=HOMOGENEOUS)
def global_pool(site: Site) -> Coupling:
    """Reduce all positions."""
    words = spatial(site)
    ones = " 1" * len(words.split())
    return Coupling(f"n c {words} -> n c{ones}", statistics=words.split())
