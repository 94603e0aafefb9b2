"""What a form is: the tensors that a quantized weight is stored as, and the nodes that read them."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, TypeAlias, TypeVar

import numpy as np
import onnx_ir as ir

from bevel.ir.names import Names
from bevel.passes.formats import Format, Quantized
from bevel.passes.formats.blocks import Axis
from bevel.passes.formats.codebooks import Codebook
from bevel.passes.formats.integers import Integers
from bevel.passes.formats.learned import Learned
from bevel.passes.quantization.targets import Target

Array = np.ndarray[Any, Any]
Layout: TypeAlias = Mapping[str, tuple[tuple[int, ...], ir.DataType]]
"""Shape and type of each tensor by what it holds."""

CODES, SCALE, ZERO = "codes", "scale", "zero"
BYTE: Final = 8


class Found(Protocol):
    """A weight in some format."""

    def decode(self) -> Array:
        """Return what it stands for, the matrix as it is stored."""


F = TypeVar("F", bound=Found)


@dataclass(frozen=True, eq=False)
class Storage(ABC, Generic[F]):
    """A way to store one weight."""

    target: Target

    @property
    @abstractmethod
    def layout(self) -> Layout:
        """What tensors there will be."""

    @abstractmethod
    def arrays(self, found: F) -> dict[str, Array]:
        """Return what the tensors hold; codes of less than a byte are packed into bytes."""

    @abstractmethod
    def wire(self, model: ir.Model, values: Mapping[str, ir.Value], names: Names) -> None:
        """Let the weight's reader read the tensors instead."""

    @property
    def stem(self) -> "Storage[Any]":
        """The form of the codes, without what stands beside them."""
        return self

    @property
    def nbytes(self) -> int:
        """The bytes of the tensors."""
        return sum(-(-int(np.prod(shape)) * kind.bitwidth // BYTE) for shape, kind in self.layout.values())


@dataclass(frozen=True, eq=False)
class Form(Storage[Quantized]):
    """A way to store one weight in a format, with blocks of so many along an axis of its matrix."""

    format: Format
    axis: Axis
    block: int


@dataclass(frozen=True)
class Whole:
    """A format as whole numbers of so many bits: `stored` by code; the scale is divided by `factor`."""

    bits: int
    stored: Array
    factor: float = 1.0
    shift: int = 0

    @property
    def plain(self) -> bool:
        """Whether codes are stored as they are."""
        return bool(np.array_equal(self.stored, np.arange(len(self.stored))))


def whole(fmt: Format, widths: tuple[int, ...]) -> Whole | None:
    """Return a format as unsigned numbers of the least of some widths, their zero in the middle if none is stored.

    None where the levels are no multiples of one number, or too many.
    """
    factor = _multiplier(fmt)
    if factor is None:
        return None
    numbers = np.rint(fmt.levels * factor).astype(np.int64)
    for bits in widths:
        shift = 0 if fmt.zero_bits else 1 << (bits - 1)
        if numbers.min() + shift >= 0 and numbers.max() + shift < 1 << bits:
            return Whole(bits, (numbers + shift).astype(np.uint8), factor, shift)
    return None


def _multiplier(fmt: Format) -> float | None:
    """Return the least power of two that makes every level a whole number."""
    if isinstance(fmt, Integers):
        return 1.0
    if not isinstance(fmt, Codebook) or isinstance(fmt, Learned):
        return None
    factors = (2.0**power for power in range(BYTE))
    return next((factor for factor in factors if np.all(fmt.levels * factor % 1 == 0)), None)


def rows(quantized: Quantized, array: Array) -> Array:
    """Return scales or zero points `[outputs, blocks]` of blocks that run along the inputs."""
    outer, blocks, inner = array.shape
    return array.transpose(0, 2, 1).reshape(outer * inner, blocks)


def reader(form: Form, op_type: str, domain: str, inputs: list[ir.Value | None], attributes: dict[str, int]) -> None:
    """Put a node in place of the one that reads a weight, with its name and what is known of it."""
    old, graph = form.target.node, form.target.node.graph
    assert isinstance(graph, ir.Graph)
    new = ir.node(op_type, inputs, attributes, domain=domain, name=old.name)
    new.doc_string = old.doc_string
    new.metadata_props.update(old.metadata_props)
    ir.convenience.replace_nodes_and_values(graph, old, [old], [new], old.outputs, new.outputs)


def put(
    before: ir.Node, op_type: str, inputs: Sequence[ir.Value], name: str, names: Names, **attributes: int
) -> ir.Value:
    """Put a node with one output in front of another, and return that output."""
    graph = before.graph
    assert isinstance(graph, ir.Graph)
    node = ir.node(op_type, inputs, attributes, name=names.free(name))
    node.outputs[0].name = node.name
    graph.insert_before(before, node)
    return node.outputs[0]
