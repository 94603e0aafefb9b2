"""Formats of quantized numbers: a grid or codebook and the scale of a block; found by name in `bevel.formats`.

>>> from bevel.passes.formats import block_format
>>> block_format("int4").bits(32)
5.0
>>> block_format("bfp4").bits(64)
4.125
"""

from bevel.errors import UsageError
from bevel.passes.formats.base import Format, Grid, Quantized
from bevel.passes.formats.schemes import Scheme
from bevel.registry import formats

__all__ = ["Format", "Grid", "Quantized", "Scheme", "any_format", "block_format"]


def block_format(name: str) -> Format:
    """Return an installed format of blocks; a name that is not there is a `UsageError` with the nearest one."""
    found = any_format(name)
    if isinstance(found, Scheme):
        raise UsageError(f"{name!r} has no blocks", where=formats().origin(name), remedy="quantize-blocks takes it")
    return found


def any_format(name: str) -> Format | Scheme:
    """Return an installed format, of blocks or of whole weights."""
    found = formats()[name]
    if not isinstance(found, Format | Scheme):
        raise UsageError(f"{name!r} is no format, but {type(found).__name__}", where=formats().origin(name))
    return found
