"""Regions of images: pooled to one size, or chosen by their scores."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bevel.backends.torch.table import lower


@lower("RoiAlign", until=15)
def roi_align_10(
    x: Tensor,
    rois: Tensor,
    batch: Tensor,
    *,
    mode: str = "avg",
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
) -> Tensor:
    """Pool interpolated points of every region; positions are those of pixels' corners."""
    return roi_align(
        x,
        rois,
        batch,
        coordinate_transformation_mode="output_half_pixel",
        mode=mode,
        output_height=output_height,
        output_width=output_width,
        sampling_ratio=sampling_ratio,
        spatial_scale=spatial_scale,
    )


@lower("RoiAlign", since=16)
def roi_align(
    x: Tensor,
    rois: Tensor,
    batch: Tensor,
    *,
    coordinate_transformation_mode: str = "half_pixel",
    mode: str = "avg",
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
) -> Tensor:
    """Pool interpolated points of every region; the mean of a cell is one weighted sum of pixels."""
    height, width = x.shape[2:]
    wide = torch.promote_types(x.dtype, torch.float32)
    half_pixel = coordinate_transformation_mode == "half_pixel"
    left, top, right, bottom = (rois.to(wide) * spatial_scale - (0.5 if half_pixel else 0.0)).unbind(1)
    spans = [bottom - top, right - left]
    if not half_pixel:
        spans = [span.clamp(min=1.0) for span in spans]
    rows, row_weights, row_used = _points(top, spans[0], output_height, height, sampling_ratio)
    columns, column_weights, column_used = _points(left, spans[1], output_width, width, sampling_ratio)
    # region, cell row, cell column, point row, point column
    pixels = rows[:, :, None, :, None] * width + columns[:, None, :, None, :]
    pixels = (pixels + batch.view(-1, 1, 1, 1, 1) * (height * width)).flatten(3)
    weights = (row_weights[:, :, None, :, None] * column_weights[:, None, :, None, :]).flatten(3)
    used = (row_used[:, :, None, :, None] & column_used[:, None, :, None, :]).flatten(3)
    table = x.to(wide).permute(0, 2, 3, 1).flatten(0, 2)
    if mode == "max":
        values = table[pixels] * weights.unsqueeze(-1)
        pooled = values.masked_fill(~used.unsqueeze(-1), -torch.inf).amax(3)
        pooled = pooled.masked_fill(~used.any(3, keepdim=True), 0.0)
    else:
        weights = weights / (used.sum(3, keepdim=True) / 4).clamp(min=1)
        sums = F.embedding_bag(
            pixels.flatten(0, 2), table, mode="sum", per_sample_weights=weights.flatten(0, 2).to(wide)
        )
        pooled = sums.view(*pixels.shape[:3], -1)
    return pooled.permute(0, 3, 1, 2).to(x.dtype)


def _points(start: Tensor, span: Tensor, cells: int, size: int, ratio: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return, for every region and cell of an axis, the pixels around its points, their weights, and which are meant.

    A ratio of 0 takes as many points as a cell of the region has pixels, which is why a largest number is looked for.
    """
    step = (span / cells).unsqueeze(1)
    counts = torch.full_like(step, ratio) if ratio > 0 else step.detach().ceil().clamp(min=0)
    most = ratio if ratio > 0 else int(counts.to(torch.int64).amax()) if counts.numel() else 0
    point = torch.arange(most, device=start.device, dtype=start.dtype)
    cell = torch.arange(cells, device=start.device, dtype=start.dtype).view(1, -1, 1)
    step, counts = step.unsqueeze(2), counts.unsqueeze(2)
    at = start.view(-1, 1, 1) + cell * step + (point + 0.5) * step / counts.clamp(min=1)
    inside = (at >= -1.0) & (at <= size)
    at = at.clamp(min=0).clamp(max=size - 1)
    low = at.detach().floor()
    share = at - low
    pixels = torch.stack([low, (low + 1).clamp(max=size - 1)], 3).to(torch.int64)
    weights = torch.stack([1 - share, share], 3) * inside.unsqueeze(3)
    used = (point < counts).expand_as(at).unsqueeze(3).expand_as(weights)
    return pixels.flatten(2), (weights * used).flatten(2), used.flatten(2)


@lower("MaxRoiPool")
def max_roi_pool(x: Tensor, rois: Tensor, *, pooled_shape: Sequence[int], spatial_scale: float = 1.0) -> Tensor:
    """Return the largest entry of every cell of every region."""
    corners = torch.floor(rois[:, 1:].to(torch.float64) * spatial_scale + 0.5)
    left, top, right, bottom = corners.unbind(1)
    rows = _cells(top, bottom, pooled_shape[0], x.shape[2])
    columns = _cells(left, right, pooled_shape[1], x.shape[3])
    images = x[rois[:, 0].to(torch.int64)]
    # Largest along each row of cells first, then along each column of them.
    strips = torch.stack([_largest(images, row[:, None, :, None], 2) for row in rows.unbind(1)], 2)
    cells = torch.stack([_largest(strips, column[:, None, None, :], 3) for column in columns.unbind(1)], 3)
    return cells.masked_fill(cells == -torch.inf, 0.0)


def _cells(start: Tensor, end: Tensor, cells: int, size: int) -> Tensor:
    """Return which positions are in which cell of an axis: region, cell, position."""
    step = ((end - start + 1).clamp(min=1) / cells).unsqueeze(1)
    cell = torch.arange(cells, device=start.device, dtype=start.dtype)
    first = torch.floor(cell * step) + start.unsqueeze(1)
    last = torch.ceil((cell + 1) * step) + start.unsqueeze(1)
    at = torch.arange(size, device=start.device, dtype=start.dtype)
    return (at >= first.unsqueeze(2)) & (at < last.unsqueeze(2))


def _largest(x: Tensor, mask: Tensor, axis: int) -> Tensor:
    return x.masked_fill(~mask, -torch.inf).amax(axis)


@lower("NonMaxSuppression")
def non_max_suppression(
    boxes: Tensor,
    scores: Tensor,
    max_output_boxes_per_class: Tensor | None = None,
    iou_threshold: Tensor | None = None,
    score_threshold: Tensor | None = None,
    *,
    center_point_box: int = 0,
) -> Tensor:
    """Choose boxes by falling score, without those that overlap with a chosen one."""
    if max_output_boxes_per_class is None:
        return torch.zeros(0, 3, dtype=torch.int64, device=boxes.device)
    corners = boxes.detach()
    if center_point_box:
        middle, half = corners[..., :2], corners[..., 2:] / 2
        corners = torch.cat([middle - half, middle + half], -1)
    none = scores.new_zeros(0)
    overlap = none if iou_threshold is None else iou_threshold.detach()
    least = none if score_threshold is None else score_threshold.detach()
    chosen: Tensor = _suppress(corners, scores.detach(), max_output_boxes_per_class.reshape(-1), overlap, least)
    return chosen


@torch.library.custom_op("bevel::suppress", mutates_args=())
def _suppress(boxes: Tensor, scores: Tensor, count: Tensor, overlap: Tensor, least: Tensor) -> Tensor:
    """Choose boxes; an operator of its own for `torch.export`, to which it is one call of an unknown number of rows."""
    limit, most = int(count[0]), float(overlap.reshape(-1)[0]) if overlap.numel() else 0.0
    first, second = boxes[..., :2], boxes[..., 2:]
    low, high = torch.minimum(first, second), torch.maximum(first, second)
    chosen: list[Tensor] = []
    for image, kind in ((image, kind) for image in range(scores.shape[0]) for kind in range(scores.shape[1])):
        ranked = scores[image, kind]
        order = torch.argsort(ranked, descending=True, stable=True)
        if least.numel():
            order = order[ranked[order] > least.reshape(-1)[0]]
        kept = _greedy(low[image], high[image], order, limit, most)
        place = torch.tensor([image, kind], device=boxes.device).expand(len(kept), 2)
        chosen.append(torch.cat([place, kept.unsqueeze(1)], 1))
    return torch.cat(chosen) if chosen else torch.zeros(0, 3, dtype=torch.int64, device=boxes.device)


def _greedy(low: Tensor, high: Tensor, order: Tensor, limit: int, most: float) -> Tensor:
    kept: list[Tensor] = []
    areas = (high - low).prod(-1)
    while len(order) and len(kept) < limit:
        best, order = order[0], order[1:]
        kept.append(best)
        sides = torch.minimum(high[order], high[best]) - torch.maximum(low[order], low[best])
        shared = sides.clamp(min=0).prod(-1)
        union = areas[order] + areas[best] - shared
        order = order[~((shared > 0) & (shared / union > most))]
    return torch.stack(kept) if kept else order[:0]


@_suppress.register_fake
def _rows(boxes: Tensor, scores: Tensor, count: Tensor, overlap: Tensor, least: Tensor) -> Tensor:
    return boxes.new_empty(torch.library.get_ctx().new_dynamic_size(), 3, dtype=torch.int64)
