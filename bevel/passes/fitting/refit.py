"""Make the layers of a pruned model give again what those of the whole model gave: least squares, then statistics.

Both models are walked through side by side on the same inputs. Each layer of the pruned one is fitted, in the order of
the graph, to what its original gives on the original's input, from what it itself reads by then, so that it also makes
up for what the layers before it got wrong:

    minimize  mean |W x + b - W' y - b'|^2 + lambda |W' - W0|^2      x: input of the original, y: input of the pruned
    W' = W0 + (W C - W0 H) (H + lambda I)^-1                         C = cov(x, y), H = cov(y), W0: W as it was cut

(`lambda` grows where rows are few: `bevel.passes.fitting.damping`.)

Where a layer can add no constant, moments take the place of covariances. A normalization by fixed statistics then gets
those that its input has now, relative to what the original's input has on the same samples:

    mean += mean_pruned - mean_original         variance *= variance_pruned / variance_original

Source: the closed form of optimal brain surgery for a whole layer; statistics as in the recalibration of batch
normalization after quantization and pruning. The fit to the original's input, and the transfer by differences and
ratios rather than by replacement, are ours.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from bevel.ir.axes import Dim, atoms
from bevel.ir.edit import Indices, entries
from bevel.ir.groups import Analysis, analyse
from bevel.ir.piece import uses
from bevel.passes.base import Context
from bevel.passes.calibration import Feed
from bevel.passes.fitting.damping import apart, damping
from bevel.passes.fitting.layers import CONV, Layer, layers, rounded
from bevel.passes.fitting.normalization import (
    DATA,
    MEAN,
    SCALE,
    VARIANCE,
    align,
    is_normalization,
    parameter,
    statistics,
)
from bevel.passes.fitting.second_order import Damped
from bevel.passes.fitting.shift import bias_of, can_shift
from bevel.passes.fitting.unfold import joint_sums
from bevel.passes.fitting.walk import Walk

Array = np.ndarray[Any, Any]

# A channel that varies less than this in the original is constant: there is no ratio to transfer.
CONSTANT: Final = 1e-12


@dataclass
class Refit:
    """What was fitted: the new content of initializers by name, and how many layers and normalizations they are of."""

    contents: dict[str, Array] = field(default_factory=dict)
    layers: int = 0
    normalizations: int = 0
    tied: int = 0
    overflown: int = 0

    @property
    def notes(self) -> tuple[str, ...]:
        """Say what was done, for the report."""
        if not self.layers + self.tied + self.overflown:
            return ()
        done = f"{self.layers} layers refitted, {self.normalizations} normalizations given new statistics"
        left = {"share their weight with others": self.tied, "read numbers that overflow": self.overflown}
        return (done, *(f"{count} layers {why}: not refitted" for why, count in left.items() if count))


def refit(original: ir.Model, pruned: ir.Model, keeps: Indices, context: Context) -> Refit:
    """Fit every layer of `pruned`, in place, that pruning has touched to what it gave in `original`.

    `keeps` says which entries of the groups of `original` are left. With made-up inputs, normalizations use the
    statistics of those inputs along the way, so that what lies between them is distributed as in training, and only the
    change of the statistics is kept.
    """
    return _Fitting(original, pruned, keeps, context).run()


def scatter(original: ir.Model, keeps: Indices, contents: Mapping[str, Array]) -> None:
    """Put the content of fitted initializers at their places in the unpruned model: what pruning is compared with."""
    if not contents:
        return
    analysis = analyse(original)
    taken = _taken(analysis, keeps)
    for name, small in contents.items():
        value = original.graph.initializers[name]
        assert value.const_value is not None
        full = value.const_value.numpy().copy()
        full[np.ix_(*_places(analysis, value, taken))] = small
        value.const_value = ir.tensor(full, name=name)


def _taken(analysis: Analysis, keeps: Indices) -> dict[Dim, Array]:
    cut = {analysis[name]: np.asarray(keep, np.int64) for name, keep in keeps.items()}
    return {group.dim: keep for group, keep in cut.items() if len(keep) < group.size}


def _places(analysis: Analysis, value: ir.Value, taken: Mapping[Dim, Array]) -> list[Array]:
    """Return which places of each axis of an initializer are left."""
    axes = analysis.axes(value)
    assert axes is not None
    return [entries(axis, taken) for axis in axes]


class _Fitting:
    """The two models on their way, side by side."""

    def __init__(self, original: ir.Model, pruned: ir.Model, keeps: Indices, context: Context) -> None:
        self.context = context
        self.analysis = analyse(original)
        self.taken = _taken(self.analysis, keeps)
        self.pruned = pruned
        self.feeds: list[Feed] = list(context.calibration.samples(context.samples))
        self.whole = Walk(original, self.feeds, context.runtime)
        self.small = Walk(pruned, self.feeds, context.runtime)
        self.result = Refit()

    def run(self) -> Refit:
        """Fit node after node, in the order of the graph."""
        twins = {node.outputs[0].name: node for node in self.pruned.graph}
        whole = {layer.node: layer for layer in layers(self.analysis.model)}
        small = {layer.node: layer for layer in layers(self.pruned)}
        touched = set(self._touched())
        aligned = self.context.calibration.made_up
        stops = [
            node
            for node in self.analysis.model.graph
            if (node in whole and node in touched) or (is_normalization(node) and (aligned or node in touched))
        ]
        for done, node in enumerate(stops):
            self.context.progress("refitting", done, len(stops))
            twin = twins[node.outputs[0].name]
            self.whole.reach(node)
            self.small.reach(twin)
            if node in whole:
                self._layer(whole[node], small[twin])
            else:
                self._normalization(node, twin)
        self.context.progress("refitting", len(stops), len(stops))
        return self.result

    def _touched(self) -> Iterator[ir.Node]:
        """Yield the nodes of the original whose output pruning changes, in the order of the graph."""
        cut = {place.node for place in self.analysis.facts.sums if not self.taken.keys().isdisjoint(atoms(place.axis))}
        changed: set[ir.Value] = set()
        for node in self.analysis.model.graph:
            if node in cut or not changed.isdisjoint(uses(node)):
                changed.update(node.outputs)
                yield node

    def _layer(self, whole: Layer, small: Layer) -> None:
        """Fit one layer's weight and bias."""
        if len(small.weight.uses()) > 1:
            self.result.tied += 1
            return
        rows, columns = self._sides(whole)
        sums = self._sums(whole, small, columns)
        if not sums.finite:
            self.result.overflown += 1
            return
        target, start = whole.content(), small.content()
        shifted = can_shift(small)
        fitted = np.empty_like(start)
        shift = np.zeros(start.shape[:2])
        for group in range(len(start)):
            wanted = target[columns[group], rows[group]]
            part = sums.of(group, centred=shifted)
            fitted[group] = start[group] + part.correction(wanted, start[group])
            shift[group] = wanted @ part.mean_whole - fitted[group] @ part.mean_small
        self._write(small.weight, small.array(fitted))
        bias = bias_of(small)
        if bias is not None and shifted:
            self._write(bias, _content(bias) + shift.ravel())
        self.result.layers += 1

    def _sides(self, whole: Layer) -> tuple[list[Array], list[int]]:
        """Return, by group of the small layer, which rows are left of which group of the original."""
        axes = self.analysis.axes(whole.weight)
        assert axes is not None
        out = entries(axes[whole.out_axis], self.taken)
        if whole.node.op_type != CONV or whole.groups == 1:
            taps = prod(whole.kernel) if whole.node.op_type != CONV else 1
            return [(out[:, None] * taps + np.arange(taps)).ravel()], [0]
        width = whole.sizes[0] // whole.groups
        groups = np.unique(out // width)
        return [out[out // width == group] % width for group in groups], [int(group) for group in groups]

    def _sums(self, whole: Layer, small: Layer, groups: list[int]) -> "_Sums":
        """Sum what both layers read over all samples."""
        sums = _Sums()
        with self.context.runtime.open(joint_sums(whole, small, groups)) as runs:
            pairs = zip(self.whole.values(whole.data), self.small.values(small.data), strict=True)
            for x, y in pairs:
                sums.add(runs.run({"x": x, "y": y}), len(x))
        return sums

    def _normalization(self, node: ir.Node, twin: ir.Node) -> None:
        """Give a normalization the statistics that its input has now, relative to the original's."""
        scale = self.analysis.axes(parameter(node, SCALE))
        assert scale is not None
        kept = entries(scale[0], self.taken)
        measure = align if self.context.calibration.made_up else _measured
        mean, variance = (array[kept] for array in measure(self.whole, node))
        new_mean, new_variance = measure(self.small, twin)
        ratio = np.where(variance > CONSTANT, new_variance / np.maximum(variance, CONSTANT), 1.0)
        self._write(parameter(twin, MEAN), _content(parameter(twin, MEAN)) + new_mean - mean)
        self._write(parameter(twin, VARIANCE), _content(parameter(twin, VARIANCE)) * ratio)
        self.result.normalizations += 1

    def _write(self, value: ir.Value, array: Array) -> None:
        tensor = value.const_value
        assert tensor is not None and value.name is not None
        content = rounded(tensor, array)
        value.const_value = ir.tensor(content, name=value.name)
        self.result.contents[value.name] = content


@dataclass
class _Part:
    """What one group of a layer reads in both models: means, moments of the small one and across, of so many rows."""

    mean_whole: Array
    mean_small: Array
    second: Array
    cross: Array
    rows: int

    def correction(self, wanted: Array, start: Array) -> Array:
        """Return what to add to the weights `start` to come close to what `wanted` give in the original.

        It can be asked for once: the moment is damped in place.
        """
        missing = wanted @ self.cross - start @ self.second
        return Damped(self.second, damping(self.second, self.rows), overwrite=True).solve(missing.T).T


class _Sums:
    """Sums over rows, of each group."""

    def __init__(self) -> None:
        self.totals: dict[str, Array] = {}
        self.samples = 0

    def add(self, answer: Mapping[str, Array], samples: int) -> None:
        self.samples += samples
        for name, array in answer.items():
            if name in self.totals:
                self.totals[name] += array
            else:
                self.totals[name] = array.astype(np.float64)

    @property
    def finite(self) -> bool:
        """Whether nothing overflowed."""
        return all(np.isfinite(total).all() for total in self.totals.values())

    def of(self, group: int, *, centred: bool) -> _Part:
        """Return the means of one group, which are put in the place of its sums: it can be asked for once."""
        count = max(float(self.totals["rows"][0]), 1.0)
        x, y, second, cross = (self.totals[name][group] for name in ("total_x", "total_y", "second", "cross"))
        for total in (x, y, second, cross):
            total /= count
        rows = apart(int(count), self.samples)
        if not centred:
            return _Part(np.zeros_like(x), np.zeros_like(y), second, cross, rows)
        second -= np.outer(y, y)
        cross -= np.outer(x, y)
        return _Part(x, y, second, cross, rows)


def _measured(walk: Walk, node: ir.Node) -> tuple[Array, Array]:
    return statistics(walk.values(parameter(node, DATA)))


def _content(value: ir.Value) -> Array:
    assert value.const_value is not None
    return value.const_value.numpy().astype(np.float64)
