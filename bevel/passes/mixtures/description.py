"""What a mixture of experts is, whatever nodes it is made of.

y = sum over the experts that are taken of gate_e(logits) * (act(x U_e + b_e, ...) D_e + c_e)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol, TypeAlias

import numpy as np
import onnx_ir as ir
from scipy.special import expit, softmax

from bevel.passes.base import Runtime
from bevel.passes.experts.writing import Writer
from bevel.passes.mixtures.rows import LAST

Array = np.ndarray[Any, Any]
Kind: TypeAlias = Literal["one", "chosen", "counted", "softmax", "sigmoid", "sigmoid-share", "router"]

KINDS: Final[tuple[Kind, ...]] = ("one", "chosen", "softmax", "sigmoid", "sigmoid-share")
# Of these, those that say something where rows take different numbers of experts; counted is chosen elsewhere.
COUNTED_KINDS: Final[tuple[Kind, ...]] = ("one", "chosen", "counted", "softmax")


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


class Weighing(Protocol):
    """Nodes that choose experts and weigh them."""

    def gates(self, logits: Array) -> Array:
        """Return what each expert counts for each row, `[rows, experts]`, of logits as rows."""

    def write(self, write: Writer, logits: ir.Value, kept: Sequence[int] | None) -> ir.Value:
        """Write the same; where experts go, for those `kept`."""

    def penalty(self, kept: Sequence[int]) -> Array:
        """Return what is added to logits so that experts which are not kept count nothing, `[experts]`."""


@dataclass(frozen=True)
class Gating:
    """What an expert that is taken counts, from the logits of all experts.

    one            always the same
    chosen         the softmax over the logits of those that are taken
    counted        the same, times how many are taken
    softmax        the softmax over all logits
    sigmoid        the sigmoid of its logit
    sigmoid-share  the same, divided by the sum over those that are taken
    router         what nodes make of the logits that no other kind says; these choose as well

    All times `scale`. Where experts were merged, `groups` says for each logit which of them it is for; one that several
    logits are for counts the sum. With a `threshold`, a row takes its best experts until the softmax of all logits,
    summed over those, reaches that.
    """

    kind: Kind
    scale: float = 1.0
    groups: tuple[int, ...] | None = None
    threshold: float | None = None
    router: Weighing | None = None

    def total(self, active: int) -> float | None:
        """Return what the gates of a row that takes so many experts add up to; None where rows differ.

        >>> Gating("one", 0.5).total(4), Gating("chosen").total(4), Gating("softmax").total(4)
        (2.0, 1.0, None)
        """
        if self.kind in ("one", "counted"):
            return self.scale * active if self.threshold is None else None
        return self.scale if self.kind in ("chosen", "sigmoid-share") else None

    def each(self, active: int) -> float:
        """Return what an expert that is taken counts on average, where nothing but how many are taken decides that.

        >>> Gating("one", 0.5).each(4), Gating("chosen").each(4), Gating("one", threshold=0.5).each(2)
        (0.5, 0.25, 1.0)
        """
        return self.scale if self.kind in ("one", "counted") else self.scale / active

    def gates(self, logits: Array, active: int) -> Array:
        """Return what each expert counts for each row, zero for those not taken, `[rows, experts]`.

        >>> Gating("chosen").gates(np.array([[0.0, 0.0, -9.0]]), 2).tolist()
        [[0.5, 0.5, 0.0]]
        """
        if self.router is not None:
            return np.asarray(self.scale * self.router.gates(logits) @ self.belongs(logits.shape[1]))
        mask = taken(logits, active, self.threshold)
        if self.kind == "one":
            gates = mask.astype(np.float64)
        elif self.kind in ("chosen", "counted"):
            gates = softmax(np.where(mask, logits.astype(np.float64), -np.inf), axis=1)
            gates = gates * mask.sum(1, keepdims=True) if self.kind == "counted" else gates
        elif self.kind == "softmax":
            gates = softmax(logits.astype(np.float64), axis=1) * mask
        else:
            gates = expit(logits.astype(np.float64)) * mask
        if self.kind == "sigmoid-share":
            gates = gates / np.maximum(gates.sum(1, keepdims=True), 1e-30)
        return np.asarray(self.scale * gates @ self.belongs(gates.shape[1]))

    def belongs(self, logits: int) -> Array:
        """Return which expert each logit is for, `[logits, experts]`, zeros and ones.

        >>> Gating("one", groups=(0, 1, 0)).belongs(3).tolist()
        [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]
        """
        if self.groups is None:
            return np.eye(logits)
        return np.eye(max(self.groups) + 1)[list(self.groups)]


def taken(logits: Array, active: int, threshold: float | None = None) -> Array:
    """Return which experts rows take: those with the largest logits, `[rows, experts]`, up to a threshold if given.

    >>> taken(np.array([[1.0, 3.0, 2.0]]), 2).tolist()
    [[False, True, True]]
    >>> taken(np.array([[1.0, 3.0, 2.0]]), 2, 0.5).tolist()
    [[False, True, False]]
    """
    best = np.argsort(-logits, axis=1, kind="stable")[:, :active]
    inside = np.ones(best.shape, bool)
    if threshold is not None:
        shares = np.take_along_axis(softmax(logits.astype(np.float64), axis=1), best, axis=1)
        inside = np.cumsum(shares, axis=1) - shares < threshold
    mask = np.zeros(logits.shape, bool)
    np.put_along_axis(mask, best, inside, axis=1)
    return mask


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
