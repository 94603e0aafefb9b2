"""Operators on images: resizing, sampling, regions. Positions are fixed, samples and channels stay free."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from bevel.ir.axes import Axis
from bevel.ir.coupling import Coupling, rule
from bevel.ir.resize import operand_sizes
from bevel.ir.rules.fixed import MICROSOFT, positions
from bevel.ir.site import POSITIONS, SIZES, Axes, Opaque, Site

# Other ways to map positions leave an axis alone where its scale is one.
_MOVES_ALWAYS = frozenset({"tf_crop_and_resize", "tf_half_pixel_for_nn"})


@rule("Resize", "Upsample")
def resize(site: Site) -> None:
    """Resample some axes; those whose scale is one stay as they are."""
    axes = site.axes(0)
    places = [site.position(place, len(axes)) for place in site.integer_list("axes") or range(len(axes))]
    whole = _whole_by_size(site, axes, places) if site.has(3) else _whole_by_scale(site, axes, places)
    if site.text("coordinate_transformation_mode") in _MOVES_ALWAYS:
        whole = whole - set(places)
    site.fix([axis for place, axis in enumerate(axes) if place not in whole], POSITIONS)
    for index in range(1, site.inputs):
        if site.has(index):
            site.fix(site.axes(index), SIZES)
    site.set(0, [axis if place in whole else positions(site, place) for place, axis in enumerate(axes)])
    if site.has(3):
        sizes = site.required_integers(3)
        site.states(operand_sizes(site.node, 3, _sizes_of_whole(axes, places, sizes, whole)))


def _sizes_of_whole(axes: Axes, places: Sequence[int], sizes: Sequence[int], whole: set[int]) -> list[Axis | int]:
    return [axes[place] if place in whole else size for place, size in zip(places, sizes, strict=True)]


def _whole_by_size(site: Site, axes: Axes, places: Sequence[int]) -> set[int]:
    """Return the axes that keep their size, where each size is a target of its own."""
    if site.text("keep_aspect_ratio_policy", "stretch") != "stretch":
        return set(range(len(axes))) - set(places)
    sizes = site.required_integers(3)
    return set(range(len(axes))) - {
        place for place, size in zip(places, sizes, strict=True) if size != axes[place].size
    }


def _whole_by_scale(site: Site, axes: Axes, places: Sequence[int]) -> set[int]:
    """Return the axes whose scale is one."""
    scales = _scales(site)
    if len(scales) != len(places):
        raise Opaque("its scales do not fit its axes")
    return set(range(len(axes))) - {place for place, scale in zip(places, scales, strict=True) if scale != 1.0}


def _scales(site: Site) -> list[float]:
    attributes = site.node.attributes
    if "scales" in attributes:
        return list(attributes["scales"].as_floats())
    if "height_scale" in attributes:
        return [1.0, 1.0, attributes["height_scale"].as_float(), attributes["width_scale"].as_float()]
    tensor = site.value(1 if site.inputs == 2 else 2).const_value
    if tensor is None:
        raise Opaque("its scales are not known before it runs")
    return [float(scale) for scale in tensor.numpy().ravel()]


@rule("GridSample")
@rule("GridSample", domain=MICROSOFT)
def grid_sample(site: Site) -> Coupling:
    """Sample each image at the places of a grid."""
    return Coupling("n c *, n * _ -> n c *")


@rule("AffineGrid")
def affine_grid(site: Site) -> None:
    """Make a grid of places for each affine map; the operand repeats how many there are."""
    maps = site.axes(0)
    sizes = site.required_integers(1)
    site.fix(maps[1:], POSITIONS)
    grid = [positions(site, place) for place in range(1, len(sizes))]
    site.set(0, (maps[0], *grid))
    site.states(operand_sizes(site.node, 1, [maps[0], *sizes[1:]]))


@rule("RoiAlign")
def roi_align(site: Site) -> Coupling:
    """Sample regions, each of one image that is addressed by value."""
    return Coupling("_ c _ _, m _, m -> m c _ _")


@rule("MaxRoiPool")
def max_roi_pool(site: Site) -> Coupling:
    """Reduce regions, each of one image that is addressed by value."""
    return Coupling("_ c _ _, m _ -> m c _ _")


@rule("MaxUnpool")
def max_unpool(site: Site) -> Coupling:
    """Put entries back to places that count across samples and channels."""
    return Coupling("?, ?, ? -> ?")


@rule("Col2Im")
def columns_to_image(site: Site) -> Coupling:
    """Add up overlapping blocks; each channel has its own."""
    image = site.required_integers(1)
    taps = prod(site.required_integers(2))
    return Coupling(f"n (c k) _, ?, ? -> n c{' _' * len(image)}", sizes={"k": taps}, fixed="k")


@rule("CenterCropPad")
def center_crop_pad(site: Site) -> None:
    """Crop or pad some axes around their middle; those that keep their size stay free."""
    axes, sizes = site.axes(0), site.required_integers(1)
    listed = site.integer_list("axes")
    places = [site.position(place, len(axes)) for place in (range(len(axes)) if listed is None else listed)]
    changed = {place for place, size in zip(places, sizes, strict=True) if size != axes[place].size}
    site.fix([axes[place] for place in sorted(changed)], POSITIONS)
    site.set(0, [positions(site, place) if place in changed else axis for place, axis in enumerate(axes)])
    elements = _sizes_of_whole(axes, places, sizes, set(range(len(axes))) - changed)
    site.states(operand_sizes(site.node, 1, elements))


@rule("Det")
def determinant(site: Site) -> Coupling:
    """Return one number for each matrix; swapping its rows changes the sign."""
    return Coupling("... _ _ -> ...")
