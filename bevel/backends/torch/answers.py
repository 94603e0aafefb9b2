"""Losses without labels: a model's outputs read as a distribution, whose answers stand for the labels.

An output that is a softmax, or that a matrix product gives (logits), is a distribution over its last axis; any other
output of floats is read as the mean of a normal distribution, as wide as the output is large. Where an output is a
distribution over classes, only such outputs count: what a language model hands to its next call is no answer.

Two answers are taken. One is *drawn*: then the gradients' second moment is the Fisher information, and half of its
quadratic form is what an edit changes the model's answers by (the Kullback-Leibler divergence, or the relative squared
error), to second order. The answers of a feed's rows are drawn apart, so that products between rows vanish in the mean
and one backward pass does for all rows. The other is the *predicted* answer, the likeliest class, which is what a label
mostly is; the mean of a normal distribution is the output itself, which has no gradient, so there the loss is half the
output's squared norm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import onnx_ir as ir
import torch
from torch import Tensor

from bevel.errors import UnsupportedModel

Reading: TypeAlias = Literal["probabilities", "logits", "numbers"]
Loss: TypeAlias = Callable[[Tensor, Reading], Tensor]

_PRODUCTS: Final = ("MatMul", "Gemm", "LogSoftmax")


@dataclass(frozen=True)
class Answers:
    """How the outputs of a model are read, in order."""

    readings: tuple[Reading, ...]

    @classmethod
    def of(cls, model: ir.Model) -> Answers:
        """Read the outputs of a model."""
        return cls(tuple(map(reading, model.graph.outputs)))

    def loss(self, outputs: Sequence[Any], loss: Loss) -> Tensor:
        """Add the losses of the outputs that count. Raises `UnsupportedModel` where there is none."""
        floats = [
            (output, kind)
            for output, kind in zip(outputs, self.readings, strict=True)
            if isinstance(output, Tensor) and output.is_floating_point() and output.numel()
        ]
        if not floats:
            raise UnsupportedModel("gives no floats to differentiate", where="model outputs")
        chosen = [pair for pair in floats if pair[1] != "numbers"] or floats
        return torch.stack([loss(output, kind) for output, kind in chosen]).sum()


def reading(value: ir.Value) -> Reading:
    """Say what an output is: `logits` or `probabilities` over its last axis, or just numbers."""
    if value.shape is None or len(value.shape) < 2 or value.shape[-1] == 1:
        return "numbers"
    node = value.producer()
    if node is not None and node.op_type == "Add":  # a bias
        node = next((made for taken in node.inputs if taken is not None and (made := taken.producer())), None)
    if node is None or node.domain != "":
        return "numbers"
    if node.op_type == "Softmax" and node.attributes.get_int("axis", -1) in (-1, len(value.shape) - 1):
        return "probabilities"
    return "logits" if node.op_type in _PRODUCTS else "numbers"


def drawn(output: Tensor, kind: Reading) -> Tensor:
    """Return the negative log-likelihood of drawn answers, over the root of their number.

    >>> drawn(torch.full((4, 2), 0.5), "probabilities") / 4**0.5
    tensor(0.6931)
    """
    if kind == "numbers":
        noise = torch.randn_like(output)
        return (noise * output / _scale(output)).sum() / math.sqrt(output.numel())
    rows = _log_probabilities(output, kind)
    answers = torch.multinomial(rows.detach().exp(), 1)
    return -rows.gather(1, answers).sum() / math.sqrt(len(rows))


def predicted(output: Tensor, kind: Reading) -> Tensor:
    """Return the mean loss against the likeliest answer, or half the squared norm of numbers."""
    if kind == "numbers":
        return (output / _scale(output)).square().mean() / 2
    rows = _log_probabilities(output, kind)
    return -rows.amax(1).mean()


def _log_probabilities(output: Tensor, kind: Reading) -> Tensor:
    """Return log-probabilities [rows, classes]."""
    flat = output.flatten(0, -2)
    if kind == "probabilities":
        return flat.clamp_min(torch.finfo(flat.dtype).tiny).log()
    return flat.log_softmax(1)


def _scale(output: Tensor) -> Tensor:
    """Return the root mean square of an output, as a constant."""
    return output.detach().square().mean().sqrt().clamp_min(torch.finfo(output.dtype).tiny)
