"""What a mixture of experts is, whatever nodes it is made of.

y = sum over the experts that are taken of gate_e(logits) * (act(x U_e + b_e, ...) D_e + c_e)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from bevel.passes.base import Runtime
from bevel.passes.mixtures.gating import Gating
from bevel.passes.mixtures.rows import LAST

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Expert:
    """The weights of one expert: `ups` `[channels, hidden]` each, one or a gate and what it multiplies; `down`.

    `biases` `[hidden]` belong to `ups`, `constant` `[channels]` to `down` `[hidden, channels]`.
    """

    ups: tuple[Array, ...]
    biases: tuple[Array, ...]
    down: Array
    constant: Array

    @property
    def size(self) -> int:
        """How many hidden entries it has."""
        return len(self.down)

    @property
    def numbers(self) -> int:
        """How many parameters it has; constants that are zero count for nothing."""
        constants = sum(array.size for array in (*self.biases, self.constant) if np.any(array))
        return int(sum(array.size for array in (*self.ups, self.down)) + constants)

    def ordered(self, order: Array) -> Expert:
        """Return the same expert with its hidden entries in another order, or some of them."""
        ups = tuple(array[:, order] for array in self.ups)
        return Expert(ups, tuple(array[order] for array in self.biases), self.down[order], self.constant)

    def rows(self) -> Array:
        """Return all that belongs to each hidden entry, `[hidden, numbers]`: what it reads, its constants, its way out.

        Each of these parts is divided by its overall size, so that none counts for more because it is larger.
        """
        parts = [*(array.T for array in self.ups), self.down, *(array[:, None] for array in self.biases)]
        return np.concatenate([part / max(float(np.linalg.norm(part)), 1e-30) for part in parts], axis=1)

    def scaled(self, factor: float) -> Expert:
        """Return what gives so many times as much."""
        if factor == 1.0:
            return self
        return Expert(self.ups, self.biases, self.down * factor, self.constant * factor)


@dataclass(frozen=True, eq=False)
class Activation:
    """What is between the products of an expert: a model from one or two values to one, entry by entry."""

    model: ir.Model

    def hidden(self, given: Sequence[Sequence[Array]], runtime: Runtime) -> list[Array]:
        """Return what it makes of the values of each expert, rows `[rows, hidden]`."""
        names = [value.name or "" for value in self.model.graph.inputs]
        output = self.model.graph.outputs[0].name or ""
        with runtime.open(self.model) as runs:
            return [np.asarray(runs.run(dict(zip(names, rows, strict=True)))[output]) for rows in given]


@dataclass(frozen=True, eq=False)
class Mixture:
    """A mixture of experts in a graph: `output` is what the experts that are taken add up to, of rows of `input`.

    `logits` has a number for each expert and row, of which the `active` largest are taken. `name` is that of the node
    which chooses, `form` says what the mixture is made of. Channels stand along `axis` of input and output. `shared` is
    what every row gets besides, if that is part of it. `others` are read for their sizes. `rounded`: what the graph
    multiplies is rounded to 8 bits, so that the description is not as near.
    """

    name: str
    form: str
    input: ir.Value
    logits: ir.Value
    output: ir.Value
    active: int
    gating: Gating
    experts: tuple[Expert, ...]
    activation: Activation
    axis: int = LAST
    shared: Expert | None = None
    others: tuple[ir.Value, ...] = ()
    rounded: bool = False

    @property
    def channels(self) -> tuple[int, int]:
        """How many channels experts read and give."""
        return self.experts[0].ups[0].shape[0], self.experts[0].down.shape[1]

    @property
    def numbers(self) -> int:
        """How many parameters the experts have, the shared one included."""
        return sum(expert.numbers for expert in (*self.experts, *([self.shared] if self.shared else [])))

    def hidden(self, rows: Array, runtime: Runtime) -> list[Array]:
        """Return the hidden entries of every expert for rows of the input, `[rows, hidden]` each."""
        return hidden(self.experts, self.activation, rows, runtime)

    def outputs(self, rows: Array, runtime: Runtime) -> Array:
        """Return what every expert makes of rows of the input, `[experts, rows, channels]`."""
        found = self.hidden(rows, runtime)
        return np.stack([
            each @ expert.down + expert.constant for each, expert in zip(found, self.experts, strict=True)
        ])  # fmt: skip

    def always(self, rows: Array, runtime: Runtime) -> Array:
        """Return what every row gets, whatever it takes, `[rows, channels]`, or zero."""
        if self.shared is None or not self.shared.size:
            return np.zeros(1, np.float32) if self.shared is None else self.shared.constant
        (found,) = hidden([self.shared], self.activation, rows, runtime)
        return np.asarray(found @ self.shared.down + self.shared.constant)


def hidden(experts: Sequence[Expert], activation: Activation, rows: Array, runtime: Runtime) -> list[Array]:
    """Return the hidden entries of experts for rows, `[rows, hidden]` each."""
    given = [
        [(rows @ up + bias).astype(np.float32) for up, bias in zip(expert.ups, expert.biases, strict=True)]
        for expert in experts
    ]
    return activation.hidden(given, runtime)


@dataclass(frozen=True)
class Refused:
    """A node that chooses, and why what it leads to is no mixture of experts that is known."""

    node: str
    why: str

    def __str__(self) -> str:
        return f"{self.node}: {self.why}"
