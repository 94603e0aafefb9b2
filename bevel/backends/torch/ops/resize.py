"""Resizing of images along every axis on its own.

The usual cases are torch's own kernels. All others are a matrix for each axis, (output positions x input positions), so
that gradients flow and sizes may be symbolic; positions are float64, as a rounded one may select another pixel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Final, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from bevel.backends.torch.ops.windows import least, most, whole
from bevel.backends.torch.table import HOST, Ints, lower
from bevel.errors import UnsupportedModel

Floats: TypeAlias = Annotated[Sequence[float], HOST]

_LINEAR: Final = {3: "linear", 4: "bilinear", 5: "trilinear"}
_POWERS: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 0.5, 0.25, 0.125)
_CONVERTED: Final = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Method:
    """How positions are found and what is taken there: the attributes of Resize."""

    mode: str = "nearest"
    coordinates: str = "asymmetric"
    nearest: str = "simple"
    cubic: float = -0.75
    antialias: bool = False
    exclude_outside: bool = False
    extrapolation: float = 0.0


@dataclass(frozen=True)
class Stretch:
    """One axis: its size, the new one, their ratio, and the new size before it was rounded, if that changed it."""

    axis: int
    size: int
    out: int
    scale: float
    rounded: float | None = None

    @property
    def width(self) -> float:
        """Return the new size before it was rounded."""
        return self.out if self.rounded is None else self.rounded


def _refuse_smooth_nearest(attributes: Mapping[str, Any]) -> str:
    nearest = attributes.get("mode", "nearest") == "nearest"
    return "antialias=1 of nearest pixels" if nearest and attributes.get("antialias") else ""


@lower("Resize", since=11, refuses=_refuse_smooth_nearest)
def resize(
    x: Tensor,
    roi: Tensor | None = None,
    scales: Floats | None = None,
    sizes: Ints | None = None,
    *,
    antialias: int = 0,
    axes: Sequence[int] = (),
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
) -> Tensor:
    """Resize axes by scales or to sizes."""
    method = Method(
        mode,
        coordinate_transformation_mode,
        nearest_mode,
        cubic_coeff_a,
        bool(antialias),
        bool(exclude_outside),
        extrapolation_value,
    )
    places = [axis % x.dim() for axis in axes] or list(range(x.dim()))
    if sizes:
        stretches = _to_sizes(x, places, sizes, keep_aspect_ratio_policy)
    else:
        assert scales is not None
        stretches = _by_scales(x, places, scales)
    if method.coordinates != "tf_crop_and_resize" or roi is None or roi.numel() == 0:
        return _resize(x, stretches, method)
    ends = roi.to(torch.float64).view(2, -1).unbind(1)
    return _resize(x, stretches, method, dict(zip(places, ends, strict=True)))


@lower("Resize", until=10)
@lower("Upsample", since=9)
def resize_10(x: Tensor, scales: Floats, *, mode: str = "nearest") -> Tensor:
    """Resize axes by scales, from the first position on."""
    return _resize(x, _by_scales(x, list(range(x.dim())), scales), Method(mode))


@lower("Upsample", since=7, until=8)
def upsample_7(x: Tensor, *, mode: str = "nearest", scales: Sequence[float]) -> Tensor:
    """Resize axes by scales, from the first position on."""
    return resize_10(x, scales, mode=mode)


@lower("Upsample", until=6)
def upsample_1(x: Tensor, *, height_scale: float, mode: str = "nearest", width_scale: float) -> Tensor:
    """Resize the last two axes, from the first position on."""
    return resize_10(x, [1.0, 1.0, height_scale, width_scale], mode="linear" if mode == "bilinear" else mode)


def _by_scales(x: Tensor, axes: Sequence[int], scales: Sequence[float]) -> list[Stretch]:
    return [_by_scale(axis, x.shape[axis], scale) for axis, scale in zip(axes, scales, strict=True)]


def _by_scale(axis: int, size: int, scale: float) -> Stretch:
    if scale == int(scale):
        return Stretch(axis, size, size * int(scale), scale)
    if isinstance(size, int):
        # Shape inference and ONNX Runtime multiply in float32: 10 * 0.7 is 7.
        out = int(np.float32(size * scale))
        return Stretch(axis, size, out, scale, None if out == size * scale else size * scale)
    return Stretch(axis, size, whole(size * (scale * (1 + 2**-25))), scale, size * scale)


def _to_sizes(x: Tensor, axes: Sequence[int], sizes: Sequence[int], policy: str) -> list[Stretch]:
    old = [x.shape[axis] for axis in axes]
    stretches = [Stretch(*row, row[2] / row[1]) for row in zip(axes, old, sizes, strict=True)]
    if policy == "stretch":
        return stretches
    common = stretches[0].scale
    for stretch in stretches[1:]:
        common = (least if policy == "not_larger" else most)(common, stretch.scale)
    widths = [common * size for size in old]
    rows = zip(stretches, widths, strict=True)
    return [replace(it, out=whole(width + 0.5), scale=common, rounded=width) for it, width in rows]


def _resize(
    x: Tensor, stretches: Sequence[Stretch], method: Method, crops: Mapping[int, Tensor] | None = None
) -> Tensor:
    moved = [stretch for stretch in stretches if stretch.axis in (crops or ()) or not _is_identity(stretch)]
    if crops is None and (done := _by_kernel(x, moved, method)) is not None:
        return done
    if method.mode == "nearest":
        for stretch in moved:
            x = _select(x, stretch, method, (crops or {}).get(stretch.axis))
        return x
    if x.dtype is torch.bool or x.is_complex():
        raise UnsupportedModel(f"Resize, {method.mode}, of {x.dtype}", remedy="only nearest entries of these are taken")
    wide = torch.float32 if x.dtype in _CONVERTED else x.dtype if x.is_floating_point() else torch.float64
    y = x.to(wide)
    for stretch in moved:
        y = _mix(y, stretch, method, (crops or {}).get(stretch.axis))
    if x.is_floating_point():
        return y.to(x.dtype)
    limits = torch.iinfo(x.dtype)
    return y.round().clamp(limits.min, limits.max).to(x.dtype)


def _is_identity(stretch: Stretch) -> bool:
    return stretch.rounded is None and statically_known_true(stretch.out == stretch.size)


def _by_kernel(x: Tensor, moved: Sequence[Stretch], method: Method) -> Tensor | None:
    """Resize by torch's own function where it is the same one."""
    spatial = {stretch.axis: stretch for stretch in moved}
    if not moved or x.dim() not in _LINEAR or not x.is_floating_point() or min(spatial) < 2:
        return x if not moved else None
    if method.antialias or any(stretch.rounded is not None for stretch in moved):
        return None
    size = [spatial[axis].out if axis in spatial else x.shape[axis] for axis in range(2, x.dim())]
    if method.mode == "nearest":
        # Torch's positions are float32, which rounds none of these ratios.
        exact = all(isinstance(stretch.scale, float) and stretch.scale in _POWERS for stretch in moved)
        simple = method.nearest == "floor" or (method.nearest == "simple" and all(it.scale >= 1 for it in moved))
        return F.interpolate(x, size) if exact and simple and method.coordinates == "asymmetric" else None
    corners = method.coordinates == "align_corners"
    half = method.coordinates in ("half_pixel", "half_pixel_symmetric") or (
        method.coordinates == "pytorch_half_pixel" and all(isinstance(it.out, int) and it.out > 1 for it in moved)
    )
    if not (corners or half) or method.exclude_outside:
        return None
    if method.mode == "linear":
        return F.interpolate(x, size, mode=_LINEAR[x.dim()], align_corners=corners)
    if x.dim() == 4 and method.cubic == -0.75:
        return F.interpolate(x, size, mode="bicubic", align_corners=corners)
    return None


def _positions(stretch: Stretch, coordinates: str, crop: Tensor | None, device: torch.device) -> Tensor:
    """Return where the new entries of an axis lie among the old ones."""
    at: Tensor = torch.arange(stretch.out, dtype=torch.float64, device=device)
    last = stretch.size - 1
    if coordinates == "asymmetric":
        return at / stretch.scale
    if coordinates == "align_corners":
        return at * last / most(stretch.width - 1, 1e-6)
    if coordinates == "tf_crop_and_resize":
        start, end = (at.new_zeros(()), at.new_ones(())) if crop is None else crop.unbind()
        if stretch.width == 1:
            return at + (start + end) * last / 2
        return at * (end - start) * last / most(stretch.width - 1, 1e-6) + start * last
    if coordinates == "pytorch_half_pixel" and isinstance(stretch.out, int):
        return at if stretch.out == 1 else (at + 0.5) / stretch.scale - 0.5
    if coordinates == "pytorch_half_pixel":
        single = torch.scalar_tensor(stretch.out, device=device) == 1
        return torch.where(single, at, (at + 0.5) / stretch.scale - 0.5)
    offset = stretch.size / 2 * (1 - stretch.out / stretch.width) if coordinates == "half_pixel_symmetric" else 0.0
    return (at + 0.5) / stretch.scale - 0.5 + offset


def _select(x: Tensor, stretch: Stretch, method: Method, crop: Tensor | None) -> Tensor:
    """Take the nearest entries along an axis."""
    at = _positions(stretch, method.coordinates, crop, x.device)
    rule = method.nearest
    if rule == "simple":
        rule = "ceil" if stretch.scale < 1 else "floor"
    if rule == "round_prefer_floor":
        nearest = torch.ceil(at - 0.5)
    elif rule == "round_prefer_ceil":
        nearest = torch.floor(at + 0.5)
    else:
        nearest = torch.ceil(at) if rule == "ceil" else torch.floor(at)
    index = nearest.to(torch.int64).clamp(min=0).clamp(max=stretch.size - 1)
    return _extrapolate(x.index_select(stretch.axis, index), at, stretch, method)


def _mix(x: Tensor, stretch: Stretch, method: Method, crop: Tensor | None) -> Tensor:
    """Mix the entries along an axis by a matrix; those beyond an end are its last one."""
    at = _positions(stretch, method.coordinates, crop, x.device)
    scale = least(stretch.scale, 1.0) if method.antialias else 1.0
    reach = 1 if method.mode == "linear" else 2
    before = whole(-(-reach // scale)) - 1 if scale != 1.0 else reach - 1
    base = torch.ceil(at) - 1
    steps = torch.arange(-before, before + 2, dtype=at.dtype, device=x.device)
    neighbours = base.unsqueeze(1) + steps
    weights = _kernel((neighbours - at.unsqueeze(1)) * scale, method)
    if method.exclude_outside:
        weights = torch.where((neighbours < 0) | (neighbours >= stretch.size), 0.0, weights)
    if method.antialias or method.exclude_outside:
        total = weights.sum(1, keepdim=True)
        weights = weights / torch.where(total == 0, 1.0, total)
    index = neighbours.to(torch.int64).clamp(min=0).clamp(max=stretch.size - 1)
    matrix = weights.new_zeros(stretch.out, stretch.size).scatter_add(1, index, weights)
    mixed = F.linear(x.movedim(stretch.axis, -1), matrix.to(x.dtype)).movedim(-1, stretch.axis)
    return _extrapolate(mixed, at, stretch, method)


def _kernel(distance: Tensor, method: Method) -> Tensor:
    """Weigh neighbours by their distance: the tent, or Keys' cubic."""
    t = distance.abs()
    if method.mode == "linear":
        return (1 - t).clamp(min=0)
    a = method.cubic
    near = ((a + 2) * t - (a + 3)) * t * t + 1
    far = ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
    return torch.where(t <= 1, near, torch.where(t < 2, far, 0.0))


def _extrapolate(x: Tensor, at: Tensor, stretch: Stretch, method: Method) -> Tensor:
    if method.coordinates != "tf_crop_and_resize":
        return x
    outside = (at < 0) | (at > stretch.size - 1)
    return torch.where(outside.view(-1, *[1] * (x.dim() - stretch.axis - 1)), method.extrapolation, x)
