"""Losses without labels: a model's outputs are read as a distribution, which stands for them.

An output that is a softmax, or that a matrix product gives (logits), is a distribution over its last axis; any other
output of floats is read as the mean of a normal distribution, as wide as the output is large. Where an output is a
distribution over classes, only such outputs count: what a language model hands to its next call is no answer.

Of such a distribution the Fisher information `F` is known, and an edit `d` of the weights moves the model's answers by
`d F d / 2` to second order: that is the Kullback-Leibler divergence, or half the relative squared error of numbers. The
gradient of `fisher` is a random vector whose second moment is `F`. Labels drawn from the model would give one, too, but
a model that is sure of itself nearly always draws the label that teaches nothing.

What training would see is `predicted`: the loss against the likeliest class, or, since numbers that are their own
targets have no loss, half their squared norm. Logits are divided by their standard deviation first, where it is above
one: a loss that is zero up to rounding has no gradient, and a trained network's often is.
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

_GIVE_LOGITS: Final = ("MatMul", "Gemm", "LogSoftmax")


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
        pairs = [(output, kind) for output, kind in zip(outputs, self.readings, strict=True) if _is_answer(output)]
        if not pairs:
            raise UnsupportedModel("gives no floats to differentiate", where="model outputs")
        chosen = [pair for pair in pairs if pair[1] != "numbers"] or pairs
        return torch.stack([loss(output, kind) for output, kind in chosen]).sum()


def _is_answer(output: Any) -> bool:
    """Say whether an output is a tensor of floats with something in it."""
    return isinstance(output, Tensor) and output.is_floating_point() and output.numel() > 0


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
    return "logits" if node.op_type in _GIVE_LOGITS else "numbers"


def fisher(output: Tensor, kind: Reading) -> Tensor:
    """Return what has a gradient `g` with `E[g g^T]` the mean over all rows, or numbers, of their Fisher information.

    With normal `e`, `sum(sqrt(p) e log p)` has by logits the gradient `sqrt(p) e - p sum(sqrt(p) e)`, whose covariance
    is that of a class drawn from `p`. Rows are drawn apart, so their cross products vanish in the mean.
    """
    if kind == "numbers":
        return (torch.randn_like(output) * output / _size(output)).sum() / math.sqrt(output.numel())
    rows = _log_probabilities(output, kind)
    roots = (rows.detach() / 2).exp()
    return (roots * torch.randn_like(rows) * rows).sum() / math.sqrt(len(rows))


def predicted(output: Tensor, kind: Reading) -> Tensor:
    """Return the mean loss against the likeliest class, or half the mean square of numbers.

    >>> predicted(torch.tensor([[0.5, 0.25, 0.25]]), "probabilities")
    tensor(0.6931)
    """
    if kind == "numbers":
        return (output / _size(output)).square().mean() / 2
    if kind == "logits":
        output = output / output.detach().std(-1).mean().clamp_min(1)
    return -_log_probabilities(output, kind).amax(1).mean()


def _log_probabilities(output: Tensor, kind: Reading) -> Tensor:
    """Return log-probabilities [rows, classes]."""
    flat = output.flatten(0, -2)
    return flat.clamp_min(torch.finfo(flat.dtype).tiny).log() if kind == "probabilities" else flat.log_softmax(1)


def _size(output: Tensor) -> Tensor:
    """Return the root mean square of an output, as a constant."""
    return output.detach().square().mean().sqrt().clamp_min(torch.finfo(output.dtype).tiny)
