"""Operators that divide by statistics: any order of the normalised entries is the same, dropping some is not."""

from __future__ import annotations

from bevel.ir.action import CENTRED, GAINED, NONLINEAR, ROOT_MEAN_SQUARE, SHIFTED, Action
from bevel.ir.axes import ONE
from bevel.ir.coupling import Coupling, Freedom, rule
from bevel.ir.rules.spatial import spatial
from bevel.ir.site import Opaque, Site

STATISTICS = "its statistics run over it"


@rule("LayerNormalization", acts=CENTRED)
@rule("RMSNormalization", acts=ROOT_MEAN_SQUARE)
def layer_normalization(site: Site) -> None:
    """Normalise over the axes from `axis` on; gain and bias have those axes, or are spread over all of the input."""
    axes = site.axes(0)
    place = site.position(site.integer("axis", -1), len(axes))
    for index in range(1, site.inputs):
        if site.has(index):
            site.broadcast(axes, site.axes(index))
    site.keep(axes[place:], Freedom.PERMUTE, STATISTICS)
    statistics = (*axes[:place], *[ONE] * (len(axes) - place))
    for index, output in enumerate((axes, statistics, statistics)):
        site.set(index, output)


def _trains(site: Site) -> bool:
    return bool(site.integer("training_mode")) or site.outputs > 1


def fixed_statistics(site: Site) -> Action:
    """Outside training, the statistics are operands like any other."""
    return NONLINEAR if _trains(site) else SHIFTED


@rule("BatchNormalization", acts=fixed_statistics)
def batch_normalization(site: Site) -> Coupling:
    """Scale and shift each channel; in training mode the statistics run over everything else."""
    words = spatial(site)
    return Coupling(
        f"n c {words}, c, c, c, c -> n c {words}, c, c, c, c",
        statistics=["n", *words.split()] if _trains(site) else (),
    )


@rule("InstanceNormalization", acts=GAINED)
def instance_normalization(site: Site) -> Coupling:
    """Normalise each channel of each sample over its positions."""
    words = spatial(site)
    return Coupling(f"n c {words}, c, c -> n c {words}", statistics=words.split())


@rule("GroupNormalization", acts=GAINED)
def group_normalization(site: Site) -> Coupling:
    """Normalise each group of channels over the group and its positions."""
    words = spatial(site)
    gain = "g" if site.version < 21 else "(g c)"
    return Coupling(
        f"n (g c) {words}, {gain}, {gain} -> n (g c) {words}",
        sizes={"g": site.integer("num_groups")},
        statistics=["c", *words.split()],
        states={"num_groups": "g"},
    )


@rule("LpNormalization")
def lp_normalization(site: Site) -> None:
    """Divide by a norm over one axis."""
    axes = site.axes(0)
    site.keep(axes[site.position(site.integer("axis", -1), len(axes))], Freedom.PERMUTE, STATISTICS)
    site.set(0, axes)


@rule("MeanVarianceNormalization")
def mean_variance_normalization(site: Site) -> None:
    """Normalise over the listed axes."""
    axes = site.axes(0)
    listed = site.integer_list("axes")
    places = listed if listed is not None else [0, 2, 3]
    site.keep([axes[site.position(place, len(axes))] for place in places], Freedom.PERMUTE, STATISTICS)
    site.set(0, axes)


@rule("Softmax", "LogSoftmax", "Hardmax")
def softmax(site: Site) -> None:
    """Normalise over one axis, or before opset 13 over all axes from one on; ties of Hardmax go to the first."""
    axes = site.axes(0)
    last = site.version >= 13
    place = site.position(site.integer("axis", -1 if last else 1), len(axes))
    normalised = axes[place : place + 1] if last else axes[place:]
    if site.node.op_type == "Hardmax":
        site.fix(normalised, "ties go to the first of its entries")
    site.keep(normalised, Freedom.PERMUTE, STATISTICS)
    site.set(0, axes)


@rule("LRN")
def local_response_normalization(site: Site) -> None:
    """Normalise each channel by its neighbours, so channels keep their order."""
    axes = site.axes(0)
    if len(axes) < 2:
        raise Opaque("its input has no channels")
    site.fix(axes[1], "each channel is normalised by its neighbours")
    site.set(0, axes)
