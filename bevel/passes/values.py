"""Values of made-up inputs: indices within the tables they index, masks mostly on, floats from a standard normal.

Those of an image vary slowly from pixel to pixel, as photographs and drawings do.
"""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from bevel.ir.signature import Input

MASK_NAME = re.compile(r"mask", re.IGNORECASE)
POSITION_NAME = re.compile(r"pos(ition)?(_?ids?)?$", re.IGNORECASE)
WORDS = ("", "a", "of", "tree", "House", "river 7", "né", "snow-white")
# Masks hide one place in eight: enough to be exercised, few enough that no row is all hidden often.
MASKED_SHARE = 1 / 8
# An input with so few channels beside two more axes is an image.
MOST_COLOURS = 4

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Free:
    """What integers are that index nothing: from `least` on; numbers of tokens are `whole`, if it is known."""

    least: int | None
    whole: int | None


def dims(wanted: Input) -> tuple[int | str | None, ...]:
    """Return the sizes of an input's axes; it is a vector where nothing is known of them."""
    return (None,) if wanted.shape is None else wanted.shape


def counts(wanted: Input) -> bool:
    """Say whether an input may be a number of tokens, or one for each sample: no index, that is, into a table."""
    return wanted.dtype.is_integer() and wanted.dtype.itemsize > 1 and wanted.below is None and len(dims(wanted)) < 2


def value_of(wanted: Input, shape: tuple[int, ...], free: Free, rng: np.random.Generator) -> Any:
    """Return an array of some shape for an input, or a list of two for a sequence."""
    if wanted.sequence:
        return [_array(wanted, shape, free, rng), _array(wanted, shape, free, rng)]
    return _array(wanted, shape, free, rng)


def _array(wanted: Input, shape: tuple[int, ...], free: Free, rng: np.random.Generator) -> Array:
    dtype = wanted.dtype
    if dtype.is_string():
        return rng.choice(np.array(WORDS, dtype=object), shape)
    if dtype == ir.DataType.BOOL:
        return np.asarray(rng.random(shape) >= MASKED_SHARE)
    if MASK_NAME.search(wanted.name):
        return _mask(wanted, shape, rng)
    if dtype.is_integer():
        return _integers(wanted, shape, free, rng).astype(dtype.numpy())
    normal: Any = rng.standard_normal(shape)
    if (axes := pixel_axes(shape)) and dtype.is_floating_point():
        return smooth(normal, axes).astype(dtype.numpy())
    if dtype in (ir.DataType.COMPLEX64, ir.DataType.COMPLEX128):
        normal = normal + 1j * rng.standard_normal(shape)
    return np.asarray(normal).astype(dtype.numpy())


def pixel_axes(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """Return the two axes of pixels, if an array of some shape is a batch of images; channels come first or last."""
    if len(shape) != 4 or min(shape) < 1:
        return None
    return (2, 3) if shape[1] <= MOST_COLOURS else (1, 2) if shape[3] <= MOST_COLOURS else None


def smooth(noise: Array, axes: tuple[int, int]) -> Array:
    """Give white noise the spectrum of natural images: amplitudes that fall as one over the frequency.

    Mean square stays one on average. Source: Field 1987, Relations between the statistics of natural images and the
    response properties of cortical cells.
    """
    rows, columns = (noise.shape[axis] for axis in axes)
    frequency = np.hypot(np.fft.fftfreq(rows)[:, None], np.fft.fftfreq(columns)[None])
    frequency[0, 0] = 1 / max(rows, columns)
    gain = 1 / frequency
    gain /= np.sqrt(np.square(gain).mean())
    gain = np.expand_dims(gain, [axis for axis in range(noise.ndim) if axis not in axes])
    image: Array = np.fft.ifft2(np.fft.fft2(noise, axes=axes) * gain, axes=axes).real
    return image


def _mask(wanted: Input, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Return a mask that is on; an integer mask ends in a few zeros, as padding does."""
    mask = np.ones(shape, wanted.dtype.numpy())
    if wanted.dtype.is_integer() and mask.ndim == 2 and shape[0] > 1:
        hidden = int(rng.integers(0, max(shape[1] // 2, 1)))
        mask[-1, shape[1] - hidden :] = 0
    return mask


def _integers(wanted: Input, shape: tuple[int, ...], free: Free, rng: np.random.Generator) -> Array:
    if POSITION_NAME.search(wanted.name):
        return np.broadcast_to(np.arange(shape[-1] if shape else 1) % (wanted.below or 2**31), shape)
    if wanted.below is not None:
        return rng.integers(0, max(wanted.below, 1), shape)
    if wanted.dtype.itemsize == 1:
        lowest = int(wanted.dtype.min) if free.least is None else free.least
        return rng.integers(lowest, int(wanted.dtype.max), shape, endpoint=True)
    if free.whole is not None and counts(wanted):
        # What is one for each sample is the index of the last token, as in GroupQueryAttention.
        return np.full(shape, free.whole - len(shape))
    # Lengths, counts and sizes are scalars or vectors; 1 is the value most of them accept.
    start = free.least or 0
    return rng.integers(start, start + 2, shape) if len(shape) > 1 else np.ones(shape, np.int64)
