"""Fourier transforms: frequencies and frames are positions, all beside them is free."""

from __future__ import annotations

from bevel.ir.coupling import Coupling, rule
from bevel.ir.rules.fixed import MICROSOFT, positions
from bevel.ir.site import POSITIONS, Site


@rule("DFT")
def fourier_transform(site: Site) -> None:
    """Transform one axis; the last holds real and imaginary parts."""
    axes = list(site.axes(0))
    listed = site.integer("axis", 1) if site.version < 20 else -2
    if site.version >= 20 and site.has(2):
        listed = site.required_integers(2)[0]
    place = site.position(listed, len(axes))
    site.fix((axes[place], axes[-1]), POSITIONS)
    for changed in (place, len(axes) - 1):
        axes[changed] = positions(site, changed)
    site.set(0, axes)


@rule("STFT")
def short_time_fourier_transform(site: Site) -> Coupling:
    """Transform frames of each signal."""
    return Coupling("b *, ., _, . -> b _ _ _")


@rule("Rfft", "Irfft", domain=MICROSOFT)
def real_fourier_transform(site: Site) -> None:
    """Transform the last axes; real and imaginary parts lie along one more."""
    axes, count = site.axes(0), site.integer("signal_ndim")
    forward = site.node.op_type == "Rfft"
    kept = len(axes) - count - (0 if forward else 1)
    site.fix(axes[kept:], POSITIONS)
    made = range(kept, kept + count + (1 if forward else 0))
    site.set(0, (*axes[:kept], *(positions(site, place) for place in made)))
