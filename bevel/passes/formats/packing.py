"""Pack codes of less than a byte into bytes, the first in the low bits, and unpack them.

Codes of 3, 5, 6 and 7 bits are stored as planes: their low 2 or 4 bits packed on their own, then the next, so that each
plane has a whole number of codes in a byte and a decoder needs no shift across bytes.
"""

from typing import Any, Final

import numpy as np

from bevel.passes.formats.blocks import each

Array = np.ndarray[Any, Any]

BYTE: Final = 8
STRIP: Final = 64
"""The bytes of a line of the cache."""
ROWS: Final = 256
"""How many rows are packed at a time."""

WIDTHS: Final = (8, 4, 2, 1)
"""The widths of planes, of which a byte holds a whole number."""


def planes(bits: int) -> tuple[int, ...]:
    """Return the widths of the planes that codes are stored as, the one of the low bits first.

    >>> planes(4), planes(3), planes(7)
    ((4,), (2, 1), (4, 2, 1))
    """
    return tuple(width for width in WIDTHS if bits & width)


def pack(codes: Array, width: int) -> Array:
    """Return codes of 1, 2, 4 or 8 bits packed along the last axis; what is missing in the last byte is zeros.

    >>> pack(np.array([1, 2, 3], np.uint8), 4).tolist()
    [33, 3]
    """
    codes = codes.astype(np.uint8, copy=False)
    if codes.ndim != 2 or codes.flags.c_contiguous:
        return np.ascontiguousarray(_packed(codes, width))
    return _in_order(codes, width)


def _packed(codes: Array, width: int) -> Array:
    """Return packed codes in the order in memory that the codes have."""
    if width == BYTE:
        return codes
    each_byte = BYTE // width
    if missing := -codes.shape[-1] % each_byte:
        codes = np.pad(codes, [*([(0, 0)] * (codes.ndim - 1)), (0, missing)])
    packed = np.array(codes[..., ::each_byte], np.uint8)
    for place in range(1, each_byte):
        packed |= codes[..., place::each_byte] << np.uint8(place * width)
    return packed


def _in_order(codes: Array, width: int) -> Array:
    """Return codes packed along the last axis, which is not the fastest: some rows at a time, in strips of a line."""
    result = np.empty((codes.shape[0], -(-codes.shape[1] * width // BYTE)), np.uint8)

    def work(start: int) -> None:
        packed, to = _packed(codes[start : start + ROWS], width), result[start : start + ROWS]
        for strip in range(0, to.shape[1], STRIP):
            to[:, strip : strip + STRIP] = packed[:, strip : strip + STRIP]

    each(range(0, codes.shape[0], ROWS), work, codes.size)
    return result


def unpack(packed: Array, width: int, count: int) -> Array:
    """Return so many codes of some bits from bytes; the way back of `pack`.

    >>> unpack(np.array([33, 3], np.uint8), 4, 3).tolist()
    [1, 2, 3]
    """
    shifts = np.arange(0, BYTE, width, dtype=np.uint8)
    codes = (packed[..., None] >> shifts) & np.uint8((1 << width) - 1)
    return codes.reshape(*packed.shape[:-1], -1)[..., :count]


def to_planes(codes: Array, bits: int) -> list[Array]:
    """Return the planes of codes, each packed along the last axis."""
    packed, shift = [], 0
    for width in planes(bits):
        packed.append(pack((codes >> np.uint8(shift)) & np.uint8((1 << width) - 1), width))
        shift += width
    return packed


def from_planes(packed: list[Array], bits: int, count: int) -> Array:
    """Return so many codes from their planes; the way back of `to_planes`.

    >>> from_planes(to_planes(np.array([5, 0, 7], np.uint8), 3), 3, 3).tolist()
    [5, 0, 7]
    """
    shift, codes = 0, None
    for width, plane in zip(planes(bits), packed, strict=True):
        part = unpack(plane, width, count) << np.uint8(shift)
        codes = part if codes is None else codes | part
        shift += width
    assert codes is not None
    return codes
