"""What a feed-forward layer reads and gives on the calibration data, as rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import onnx_ir as ir
from scipy.linalg.lapack import dtrtri

from bevel.errors import EditRefused
from bevel.ir.feed_forward import FeedForward
from bevel.ir.split import Parts
from bevel.passes.base import Context, Runtime
from bevel.passes.experts.writing import as_rows, from_rows, loosen
from bevel.passes.fitting.damping import apart
from bevel.passes.fitting.layers import Layer, layers
from bevel.passes.fitting.second_order import Damped
from bevel.passes.fitting.shift import bias_of
from bevel.passes.fitting.walk import Walk

Array = np.ndarray[Any, Any]

# What rows fill the memory with, above all: so many hidden entries, of a wide layer so many rows. Statistics of a few
# thousand entries do not change with more rows, but trained routers are better by them.
MOST_ENTRIES: Final = 2**25
ENOUGH_ROWS: Final = 16384
# How far the last product's weights, read from the graph, may be from what it was seen to compute.
SAME: Final = 1e-4
# Every so many-th part of the rows is held back from fits, to measure errors on.
HELD_BACK: Final = 4


@dataclass(frozen=True, eq=False)
class Evidence:
    """The rows that a layer reads, `[rows, channels]`, the sample each is of, and what the layer makes of them."""

    parts: Parts
    runtime: Runtime
    rows: Array
    samples: Array

    @property
    def layer(self) -> FeedForward:
        """The layer."""
        return self.parts.layer

    @cached_property
    def _inner(self) -> tuple[Array, Array, Array]:
        values = [self.layer.hidden, self.layer.bent, self.layer.gate]
        wanted = list(dict.fromkeys(values))
        found = self.run(self.parts.between(self.layer.input, wanted), self.rows)
        by_value = dict(zip(wanted, found, strict=True))
        hidden, bent, gate = (by_value[value] for value in values)
        return hidden, bent, gate

    @property
    def hidden(self) -> Array:
        """What the last product reads, `[rows, entries]`."""
        return self._inner[0]

    @property
    def bent(self) -> Array:
        """What the activation gives, `[rows, entries]`."""
        return self._inner[1]

    @cached_property
    def gates(self) -> tuple[Array, Array]:
        """The gate as a linear layer: its weights `[entries, channels]` and constants `[entries]`."""
        return self.linear(self.layer.gate)

    def linear(self, value: ir.Value) -> tuple[Array, Array]:
        """Return a value that is linear in the layer's input as weights `[entries, channels]` and constants."""
        model = self.parts.between(self.layer.input, [value])
        width = self.layer.channels[0]
        given = np.concatenate([np.zeros((1, width), self.rows.dtype), np.eye(width, dtype=self.rows.dtype)])
        (answer,) = self.run(model, given)
        return (answer[1:] - answer[0]).T, answer[0]

    @cached_property
    def down(self) -> Array:
        """The last product's weights, `[entries, channels]`."""
        model = self.parts.between(self.layer.hidden, [self.layer.output])
        size = self.layer.size
        given = np.concatenate([np.zeros((1, size), self.rows.dtype), np.eye(size, dtype=self.rows.dtype)])
        (answer,) = self.run(model, given)
        return np.asarray(answer[1:] - answer[0])

    @property
    def parameters(self) -> int:
        """How many numbers the layer's weights have."""
        return sum(value.const_value.size for value in self.layer.weights if value.const_value is not None)

    @cached_property
    def last(self) -> Layer | None:
        """The last product as a layer whose weights can be written, None where it is none."""
        node = self.layer.down
        return next((layer for layer in layers(self.parts.model) if layer.node is node), None)

    @cached_property
    def movable(self) -> bool:
        """Whether the last product's weights are what it multiplies by, so that new ones can be put there."""
        if self.last is None:
            return False
        content = self.last.content()
        if content.shape != (1, *self.down.T.shape):
            return False
        return bool(np.abs(content[0].T - self.down).max() <= SAME * np.abs(self.down).max())

    @cached_property
    def centre(self) -> float:
        """1 if the last product adds a constant, which can take the mean over, else 0."""
        return float(self.last is not None and bias_of(self.last) is not None)

    @cached_property
    def mean(self) -> Array:
        """The mean of each hidden entry over the rows to fit on, if a constant can take it over, else zeros."""
        return np.asarray(self.hidden[self.fitted].mean(0, dtype=np.float64) * self.centre)

    @cached_property
    def second(self) -> Array:
        """The second moment of the hidden entries around `mean`, over the rows to fit on, `[entries, entries]`.

        Raises `EditRefused` where it is infinite.
        """
        hidden = self.hidden[self.fitted]
        moment: Array = (hidden.T @ hidden).astype(np.float64)
        if not np.isfinite(moment).all():
            raise EditRefused(
                "what it computes of the samples overflows",
                where=f"layer {self.layer.name!r}",
                remedy=f"calibrate with data like those the model is for, or leave it alone: skip={self.layer.name}",
            )
        moment /= len(hidden)
        moment -= np.outer(self.mean, self.mean)
        return moment

    @cached_property
    def losses(self) -> Array:
        """What error dropping each hidden entry alone leaves in the output when the others make up for it.

        `|w_i|^2 / (H^-1)_ii`, where H is the second moment; its inverse comes of the triangular root alone.
        """
        root, _ = dtrtri(Damped(self.second).root, lower=1)
        return np.asarray(np.square(self.down, dtype=np.float64).sum(1) / np.square(root).sum(0))

    @cached_property
    def fitted(self) -> slice:
        """The rows to fit on."""
        return slice(0, len(self.rows) - len(self.rows) // HELD_BACK)

    @property
    def apart(self) -> int:
        """As how many rows that have nothing to do with each other those to fit on count."""
        fitted = self.samples[self.fitted]
        return apart(len(fitted), len(np.unique(fitted)))

    @cached_property
    def held(self) -> slice:
        """The rows to measure on."""
        return slice(self.fitted.stop if len(self.rows) >= HELD_BACK else 0, len(self.rows))

    def run(self, model: ir.Model, rows: Array) -> list[Array]:
        """Run a part of the layer on rows."""
        with self.runtime.open(loosen(model, self.layer)) as runs:
            answers = runs.run({model.graph.inputs[0].name or "": from_rows(rows, self.layer)})
        return [as_rows(answers[value.name or ""], self.layer) for value in model.graph.outputs]


def evidence(model: ir.Model, layers: Sequence[FeedForward], context: Context) -> Iterator[Evidence]:
    """Yield what layers read over the context's samples, in the order of the graph."""
    walk = Walk(model, context.calibration.samples(context.samples), context.runtime)
    places = {node: place for place, node in enumerate(model.graph)}
    ordered = sorted(layers, key=lambda layer: places[layer.producers[0]])
    for done, layer in enumerate(ordered):
        context.progress("experts", done, len(ordered))
        walk.reach(layer.producers[0])
        yield _gathered(Parts(model, layer), context.runtime, walk.values(layer.input))
    context.progress("experts", len(ordered), len(ordered))


def _gathered(parts: Parts, runtime: Runtime, arrays: Iterator[Array]) -> Evidence:
    rows: list[Array] = []
    samples: list[Array] = []
    count = total = 0
    most = max(MOST_ENTRIES // parts.layer.size, ENOUGH_ROWS)
    for array in arrays:
        each = as_rows(array, parts.layer)
        length = max(len(array), 1) if parts.layer.axis else 1
        samples.append(total + np.arange(len(each)) * length // max(len(each), 1))
        rows.append(each)
        total, count = total + length, count + len(each)
        if count >= most:
            break
    return Evidence(parts, runtime, np.concatenate(rows)[:most], np.concatenate(samples)[:most])
