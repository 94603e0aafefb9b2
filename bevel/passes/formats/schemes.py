"""Schemes: formats of whole weights that are no grid of blocks, and the few operators that they are decoded with.

A scheme turns weights `[out, in]` into tensors, and says once how these become weights again, in terms of `Operators`.
With numbers for values that is decoded here; with a graph's values it is the graph that decodes.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeAlias, TypeVar

import numpy as np

from bevel.passes.formats.packing import BYTE, planes, to_planes, unpack

Array = np.ndarray[Any, Any]
Sizes: TypeAlias = Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]
"""Shape and type of each tensor by what it holds."""

V = TypeVar("V")

BYTES: Final = np.arange(1 << BYTE, dtype=np.uint8)


class Operators(ABC, Generic[V]):
    """What decoders are made of; arguments broadcast as in ONNX."""

    @abstractmethod
    def constant(self, array: Array) -> V:
        """Return an array as a value."""

    @abstractmethod
    def gather(self, table: V, index: V) -> V:
        """Return the entries of a table along its first axis."""

    @abstractmethod
    def matmul(self, a: V, b: V) -> V:
        """Return the product of matrices."""

    @abstractmethod
    def add(self, a: V, b: V) -> V:
        """Return the sum."""

    @abstractmethod
    def subtract(self, a: V, b: V) -> V:
        """Return the difference."""

    @abstractmethod
    def multiply(self, a: V, b: V) -> V:
        """Return the product."""

    @abstractmethod
    def divide(self, a: V, b: V) -> V:
        """Return the quotient."""

    @abstractmethod
    def root(self, a: V) -> V:
        """Return the square root."""

    @abstractmethod
    def less(self, a: V, b: V) -> V:
        """Return where one is less than the other."""

    @abstractmethod
    def integers(self, a: V) -> V:
        """Return values as integers of 32 bits."""

    @abstractmethod
    def floats(self, a: V) -> V:
        """Return values in single precision."""

    @abstractmethod
    def reshape(self, a: V, shape: tuple[int, ...]) -> V:
        """Return values in another shape."""

    @abstractmethod
    def head(self, a: V, count: int, axis: int) -> V:
        """Return the first entries along an axis."""

    @abstractmethod
    def concatenate(self, parts: Sequence[V], axis: int) -> V:
        """Return values one after the other."""

    @abstractmethod
    def transpose(self, a: V) -> V:
        """Return the transpose of a matrix."""


class Numbers(Operators[Array]):
    """The operators on arrays."""

    def constant(self, array: Array) -> Array:
        """Return the array."""
        return array

    def gather(self, table: Array, index: Array) -> Array:
        """Return the entries of a table along its first axis."""
        found: Array = table[index]
        return found

    def matmul(self, a: Array, b: Array) -> Array:
        """Return the product of matrices."""
        found: Array = a @ b
        return found

    def add(self, a: Array, b: Array) -> Array:
        """Return the sum."""
        found: Array = a + b
        return found

    def subtract(self, a: Array, b: Array) -> Array:
        """Return the difference."""
        found: Array = a - b
        return found

    def multiply(self, a: Array, b: Array) -> Array:
        """Return the product."""
        found: Array = a * b
        return found

    def divide(self, a: Array, b: Array) -> Array:
        """Return the quotient."""
        found: Array = a / b
        return found

    def root(self, a: Array) -> Array:
        """Return the square root."""
        found: Array = np.sqrt(a)
        return found

    def less(self, a: Array, b: Array) -> Array:
        """Return where one is less than the other."""
        found: Array = a < b
        return found

    def integers(self, a: Array) -> Array:
        """Return values as integers of 32 bits."""
        return a.astype(np.int32)

    def floats(self, a: Array) -> Array:
        """Return values in single precision."""
        return a.astype(np.float32)

    def reshape(self, a: Array, shape: tuple[int, ...]) -> Array:
        """Return values in another shape."""
        return a.reshape(shape)

    def head(self, a: Array, count: int, axis: int) -> Array:
        """Return the first entries along an axis."""
        return a[(slice(None),) * axis + (slice(count),)]

    def concatenate(self, parts: Sequence[Array], axis: int) -> Array:
        """Return values one after the other."""
        return np.concatenate(parts, axis)

    def transpose(self, a: Array) -> Array:
        """Return the transpose of a matrix."""
        return a.T


@dataclass(frozen=True)
class Scheme(ABC):
    """A way to keep whole weights `[out, in]` in a few bits each. It is small in the file alone."""

    name: str

    @abstractmethod
    def sizes(self, out: int, inner: int) -> Sizes:
        """Return what tensors there are for weights of some size."""

    @abstractmethod
    def encode(self, weights: Array, strength: Array | None = None) -> dict[str, Array]:
        """Return the tensors of weights in single precision.

        `strength` `[in]` is the mean square of each input: how much the errors of its weights count.
        """

    @abstractmethod
    def decode(self, operators: Operators[V], tensors: Mapping[str, V], out: int, inner: int) -> V:
        """Return the weights that tensors stand for."""

    def bits(self, out: int, inner: int) -> float:
        """Return the mean bits of an element, with all that is stored."""
        total = sum(int(np.prod(shape)) * kind.itemsize for shape, kind in self.sizes(out, inner).values())
        return total * BYTE / max(out * inner, 1)

    def round_trip(self, weights: Array, strength: Array | None = None) -> Array:
        """Return weights as they are when they were encoded and decoded."""
        return self.decode(Numbers(), self.encode(weights, strength), *weights.shape)


@dataclass(frozen=True)
class Encoded:
    """Weights in a scheme; `in_axis` is the axis of inputs that the matrix has which they are given back as."""

    scheme: Scheme
    tensors: Mapping[str, Array]
    shape: tuple[int, int]
    in_axis: int

    def decode(self) -> Array:
        """Return what the tensors stand for."""
        out, inner = self.shape[1 - self.in_axis], self.shape[self.in_axis]
        weights = self.scheme.decode(Numbers(), self.tensors, out, inner)
        return weights if self.in_axis else weights.T


def encoded(scheme: Scheme, matrix: Array, in_axis: int, strength: Array | None = None) -> Encoded:
    """Return a matrix in a scheme."""
    weights = np.ascontiguousarray(matrix if in_axis else matrix.T)
    return Encoded(scheme, scheme.encode(weights, strength), (matrix.shape[0], matrix.shape[1]), in_axis)


def digits(bits: int) -> list[tuple[int, int]]:
    """Return the width of each plane of codes of up to 32 bits, and the bits below it.

    >>> digits(12), digits(15)
    ([(8, 0), (4, 8)], [(8, 0), (4, 8), (2, 12), (1, 14)])
    """
    found: list[tuple[int, int]] = []
    while bits > BYTE:
        found.append((BYTE, BYTE * len(found)))
        bits -= BYTE
    start = BYTE * len(found)
    for width in planes(bits):
        found.append((width, start))
        start += width
    return found


def coded_sizes(name: str, bits: int, count: int) -> Sizes:
    """Return the planes that so many codes are stored as: rows, for integers in a vector may be taken for a shape."""
    return {_plane(name, shift): ((1, -(-count * width // BYTE)), np.dtype(np.uint8)) for width, shift in digits(bits)}


def coded(name: str, bits: int, codes: Array) -> dict[str, Array]:
    """Return the planes of codes of up to 32 bits, a vector."""
    found = {}
    for width, shift in digits(bits):
        part = ((codes >> shift) & ((1 << width) - 1)).astype(np.uint8)
        (plane,) = to_planes(part, width)
        found[_plane(name, shift)] = plane[None]
    return found


def decoded(operators: Operators[V], tensors: Mapping[str, V], name: str, bits: int, count: int) -> V:
    """Return codes `[1, count]` as integers from their planes; the way back of `coded`."""
    found: V | None = None
    for width, shift in digits(bits):
        table = unpack(BYTES[:, None], width, BYTE // width).astype(np.int32) << shift
        index = operators.integers(tensors[_plane(name, shift)])
        part = operators.reshape(operators.gather(operators.constant(table), index), (1, -1))
        if count % (BYTE // width):
            part = operators.head(part, count, 1)
        found = part if found is None else operators.add(found, part)
    assert found is not None
    return found


def _plane(name: str, shift: int) -> str:
    return f"{name}{shift}"
