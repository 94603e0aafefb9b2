"""What scores the experts for each row: routers, as nodes of the graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from bevel.ir.split import Parts
from bevel.passes.experts.writing import Writer, loosen
from bevel.passes.fitting.layers import Layer, hold, layers
from bevel.passes.fitting.shift import bias_of

Array = np.ndarray[Any, Any]


class Router(Protocol):
    """Scores experts."""

    def scores(self, write: Writer, rows: ir.Value, parts: Parts) -> ir.Value:
        """Write what computes scores `[rows, experts]` of rows `[rows, channels]`: the larger, the sooner chosen."""

    @property
    def size(self) -> int:
        """How many numbers it has."""


@dataclass(frozen=True, eq=False)
class Linear:
    """A linear layer: `weight` `[channels, experts]` and `bias` `[experts]`."""

    weight: Array
    bias: Array

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return int(self.weight.size + self.bias.size)

    def scores(self, write: Writer, rows: ir.Value, parts: Parts) -> ir.Value:
        """Write a product and a sum."""
        product = write("MatMul", rows, write.learnt("router.weight", self.weight))
        return write("Add", product, write.learnt("router.bias", self.bias))


@dataclass(frozen=True, eq=False)
class Perceptron:
    """A linear layer, and what a small network adds to it: `first` with a Relu, then `second` `[entries, experts]`."""

    linear: Linear
    first: Linear
    second: Array

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return self.linear.size + self.first.size + int(self.second.size)

    def scores(self, write: Writer, rows: ir.Value, parts: Parts) -> ir.Value:
        """Write three products and their sum."""
        product = write("MatMul", rows, write.learnt("router.first.weight", self.first.weight))
        hidden = write("Relu", write("Add", product, write.learnt("router.first.bias", self.first.bias)))
        added = write("MatMul", hidden, write.learnt("router.second.weight", self.second))
        return write("Add", self.linear.scores(write, rows, parts), added)


@dataclass(frozen=True, eq=False)
class Neurons:
    """The magnitude of one hidden entry of each expert, with rows of unit length in what is read and in the weights."""

    entries: Array
    like: Array

    @property
    def size(self) -> int:
        """How many numbers it has, about: a row of the producers' weights for each expert."""
        return int(self.entries.size * self.like.shape[1])

    def scores(self, write: Writer, rows: ir.Value, parts: Parts) -> ir.Value:
        """Write the part of the layer that computes those entries."""
        unit = write("LpNormalization", rows, axis=-1, p=2)
        layer = parts.layer
        model = loosen(normalized(parts, self.entries, self.like), layer)
        hidden = write.graft(model, write.shaped(unit, layer, layer.channels[0]), "router")
        return write("Abs", write.flattened(hidden, layer, len(self.entries)))


@dataclass(frozen=True, eq=False)
class Oracle:
    """How late each expert is left out, each time the one whose absence costs least beside those absent already.

    It computes all experts, and so says how well a router could choose for this layer on what it really reads: the
    choice of `bevel.passes.experts.fits.choices`, made at run time. `down` are the last product's weights
    `[entries, channels]`, `belongs` `[experts, entries]` is one for the entries of an expert.
    """

    down: Array
    belongs: Array

    @property
    def size(self) -> int:
        """It is no router that one would run."""
        return 0

    def scores(self, write: Writer, rows: ir.Value, parts: Parts) -> ir.Value:
        """Write the inner products of what experts give, and one step for each expert that is left out."""
        outputs = self._outputs(write, rows, parts)
        gram = write("MatMul", outputs, write("Transpose", outputs, perm=[0, 2, 1]))
        last = write.integers("oracle.last", -1)
        alone = write("ReduceSum", write("Mul", outputs, outputs), last, keepdims=0)
        twice = write("Mul", gram, write.floats("oracle.two", np.array(2)))
        left, score = (write("Sub", alone, alone) for _ in range(2))  # zeros of the shape `[rows, experts]`
        for _ in range(len(self.belongs) - 1):
            absent = write("Unsqueeze", left, last)
            beside = write("Squeeze", write("MatMul", twice, absent), last)
            left = write("Add", left, self._worst(write, write("Add", alone, beside), left))
            score = write("Sub", score, left)
        return score

    def _outputs(self, write: Writer, rows: ir.Value, parts: Parts) -> ir.Value:
        """Write what each expert gives, `[rows, experts, channels]`."""
        layer = parts.layer
        model = loosen(parts.neurons(np.arange(layer.size)), layer)
        given = write.shaped(rows, layer, layer.channels[0])
        hidden = write.flattened(write.graft(model, given, "oracle"), layer, layer.size)
        apart = write("Unsqueeze", hidden, write.integers("oracle.middle", 1))
        own = write("Mul", apart, write.floats("oracle.belongs", self.belongs))
        return write("MatMul", own, write.floats("oracle.down", self.down))

    def _worst(self, write: Writer, cost: ir.Value, left: ir.Value) -> ir.Value:
        """Write a one for the expert that costs least of those not left out yet."""
        gone = write("Cast", left, dtype=ir.DataType.BOOL, to=ir.DataType.BOOL.value)
        open_cost = write("Where", gone, write.floats("oracle.never", np.array(np.inf)), cost)
        worst = write("ArgMin", open_cost, dtype=ir.DataType.INT64, axis=1, keepdims=0)
        values = write.floats("oracle.values", np.array([0, 1]))
        return write("OneHot", worst, write.integers("oracle.experts", len(self.belongs)), values, axis=-1)


def normalized(parts: Parts, entries: Array, like: Array) -> ir.Model:
    """Return what computes hidden entries from rows of unit length with weights of unit length.

    Constants shrink as the products do: by the length of the weights, and by the mean length of rows `like` those read.
    """
    model = parts.neurons(entries)
    length = float(np.linalg.norm(like, axis=1).mean())
    for layer in layers(model):
        _normalize(layer, max(length, 1e-12))
    return model


def _normalize(layer: Layer, length: float) -> None:
    matrices, bias = layer.content(), bias_of(layer)
    norms = np.maximum(np.linalg.norm(matrices, axis=2, keepdims=True), 1e-12)
    hold(layer.weight, layer.array(matrices / norms))
    if bias is not None and bias.const_value is not None:
        hold(bias, bias.const_value.numpy() / norms.ravel() / length)


def unit_rows(rows: Array) -> Array:
    """Return rows divided by their lengths.

    >>> unit_rows(np.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
    [[0.6, 0.8], [0.0, 0.0]]
    """
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)).astype(rows.dtype)
