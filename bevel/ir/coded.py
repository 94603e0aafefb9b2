"""Caches that a model takes in and gives out as codes: what is said of them, and how the codes get to the interface.

While passes run, such a model still has floats at its interface: nodes encode what comes in, and decode what goes out.
`narrow` takes these nodes away, so that whoever runs the model keeps codes between two steps. What a program needs to
make codes of a cache in floats is in the model's metadata, as JSON: a list with an object for each cache.

    input, output   the names of the graph's input and output
    bits            8: signed bytes, scale * code; 4: two codes to a byte along the last axis, the even entry in the
                    low half, scale * (code - 8)
    scale, shape    numbers in the order of rows, and the shape in which they broadcast against the cache
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from bevel.errors import EditRefused
from bevel.ir.canonical.dead import remove_dead
from bevel.ir.names import Names

Array = np.ndarray[Any, Any]

KEY: Final = "bevel.caches"
INSIDE: Final = "codes"
TYPES: Final = {8: ir.DataType.INT8, 4: ir.DataType.UINT8}
PER_BYTE: Final = {8: 1, 4: 2}
NIBBLE, MIDDLE = 16, 8


@dataclass(frozen=True, eq=False)
class Coded:
    """A cache in codes: the graph's input and output, the bits of a code, and scales that broadcast against it.

    `inside` are the names of the values that hold the codes, while the interface is in floats.

    >>> cache = Coded("past", "present", 4, np.float32([[0.5, 2.0]]))
    >>> codes = cache.encode(np.float32([[1.0, -4.0]])); codes
    array([[106]], dtype=uint8)
    >>> cache.decode(codes, np.dtype(np.float32))
    array([[ 1., -4.]], dtype=float32)
    """

    past: str
    present: str
    bits: int
    scale: Array
    inside: tuple[str, str] | None = None

    @property
    def levels(self) -> int:
        """The largest code."""
        return levels(self.bits)

    def encode(self, array: Array) -> Array:
        """Return the codes of a cache in floats, two of them in a byte where they have 4 bits."""
        steps = np.rint(array.astype(np.float32) / self.scale)
        codes = np.clip(steps, -self.levels - 1, self.levels)
        if self.bits == 8:
            return codes.astype(np.int8)
        shifted = (codes + MIDDLE).astype(np.uint8)
        packed: Array = shifted[..., ::2] + shifted[..., 1::2] * np.uint8(NIBBLE)
        return packed

    def decode(self, codes: Array, dtype: np.dtype[Any]) -> Array:
        """Return what codes stand for, in a type of floats."""
        if self.bits == 4:
            pairs = np.stack((codes % NIBBLE, codes // NIBBLE), -1)
            codes = pairs.reshape(*codes.shape[:-1], -1).astype(np.int8) - np.int8(MIDDLE)
        return np.asarray(codes.astype(np.float32) * self.scale).astype(dtype)


def levels(bits: int) -> int:
    """Return the largest signed code of so many bits; the smallest one is one farther from zero."""
    return (1 << (bits - 1)) - 1


def coded(model: ir.Model) -> list[Coded]:
    """Return what a model's metadata says of its caches."""
    return [_read(entry) for entry in json.loads(model.metadata_props.get(KEY, "[]"))]


def _read(entry: dict[str, Any]) -> Coded:
    scale = np.array(entry["scale"], np.float32).reshape(entry["shape"])
    return Coded(entry["input"], entry["output"], entry["bits"], scale, tuple(entry.get(INSIDE, ())) or None)


def set_coded(model: ir.Model, caches: Iterable[Coded]) -> None:
    """Say of a model's caches how they are coded."""
    model.metadata_props[KEY] = json.dumps([_written(cache) for cache in caches])


def _written(cache: Coded) -> dict[str, Any]:
    scale = [float(str(number)) for number in cache.scale.reshape(-1)]  # the shortest text of a float in 32 bits
    entry = {"input": cache.past, "output": cache.present, "bits": cache.bits}
    inside = {} if cache.inside is None else {INSIDE: list(cache.inside)}
    return {**entry, "scale": scale, "shape": list(cache.scale.shape), **inside}


def is_wide(model: ir.Model) -> bool:
    """Tell whether a model has codes inside for caches that are floats at its interface."""
    return KEY in model.metadata_props and any(cache.inside for cache in coded(model))


def narrow(model: ir.Model) -> None:
    """Let a model take in and give out the codes of its caches: what encodes and decodes them at the interface goes.

    Raises `EditRefused` if a later pass took away the values that hold the codes.
    """
    caches = coded(model)
    made = {value.name: value for node in model.graph for value in node.outputs}
    pairs = [[made.get(name) for name in cache.inside or ()] for cache in caches]
    for cache, pair in zip(caches, pairs, strict=True):
        if None in pair:
            raise EditRefused(
                "a later pass took away what holds the codes of this cache",
                where=f"input {cache.past!r}",
                remedy="let the pass that quantizes caches be the last one",
            )
    names = Names(model)
    for cache, pair in zip(caches, pairs, strict=True):
        if cache.inside is not None:
            past, present = (value for value in pair if value is not None)
            _take_in(model.graph, cache.past, past)
            _give_out(model.graph, cache.present, present, cache.bits, names)
    remove_dead(model)
    set_coded(model, [Coded(cache.past, cache.present, cache.bits, cache.scale) for cache in caches])


def _take_in(graph: ir.Graph, name: str, codes: ir.Value) -> None:
    """Put an input that is codes in the place of one in floats."""
    place = next(place for place, value in enumerate(graph.inputs) if value.name == name)
    old = graph.inputs[place]
    new = ir.Value(name=name, type=codes.type, shape=codes.shape, doc_string=old.doc_string)
    new.metadata_props.update(old.metadata_props)
    for node, index in tuple(codes.uses()):
        node.replace_input_with(index, new)
    graph.inputs[place] = new
    old.name = None


def _give_out(graph: ir.Graph, name: str, codes: ir.Value, bits: int, names: Names) -> None:
    """Give out codes where a graph gave out what they stand for."""
    place = next(place for place, value in enumerate(graph.outputs) if value.name == name)
    old = graph.outputs[place]
    graph.outputs[place] = codes
    codes.shape = None if old.shape is None else shape_of_codes(list(old.shape), bits)
    old.name = names.free(f"{name}.restored")
    codes.metadata_props.update(old.metadata_props)
    codes.name = name


def narrowed(size: int | ir.SymbolicDim, bits: int) -> int | ir.SymbolicDim:
    """Return how many bytes hold the codes of so many entries."""
    return size // PER_BYTE[bits] if isinstance(size, int) else size


def shape_of_codes(shape: Sequence[int | ir.SymbolicDim], bits: int) -> ir.Shape:
    """Return the shape of the bytes that hold the codes of an array."""
    return ir.Shape([*shape[:-1], narrowed(shape[-1], bits)])
