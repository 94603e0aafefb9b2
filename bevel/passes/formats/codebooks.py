"""Codebooks times a scale: any set of levels; small floats, quantiles of the normal distribution, dynamic trees."""

from dataclasses import dataclass
from functools import cached_property
from itertools import product
from statistics import NormalDist
from typing import Any, Final, Literal, TypeAlias

import ml_dtypes
import numpy as np

from bevel.passes.formats.base import Format, Grid
from bevel.passes.formats.scales import FLOAT_BITS, POWER_BITS, POWERS, exponent, largest, powers, usable

Array = np.ndarray[Any, Any]

Scale: TypeAlias = Literal["float", "power", "small"]
"""How scales are kept: as floats, as powers of two (OCP microscaling), or as 8-bit floats times one float (NVFP4)."""


@dataclass(frozen=True)
class Codebook(Format):
    """Levels of a table, times a scale that brings the block's largest magnitude to the greatest.

    With a power of two for a scale, it is the largest magnitude's exponent less that of the greatest level: magnitudes
    beyond that level are clipped to it, as in the OCP Microscaling Formats specification.
    """

    table: tuple[float, ...] = ()
    scale: Scale = "float"

    @cached_property
    def levels(self) -> Array:
        """The levels."""
        return np.array(self.table, np.float32)

    @cached_property
    def _borders(self) -> Array:
        """What lies half-way between neighbouring levels; their sums are exact in double precision."""
        exact = np.array(self.table)
        borders: Array = ((exact[1:] + exact[:-1]) / 2).astype(np.float32)
        return borders

    @property
    def top(self) -> float:
        """The greatest level."""
        return self.table[-1]

    def grid(self, blocks: Array, base: float = 1.0) -> Grid:
        """Return scales that make the largest magnitude of each block about the greatest level."""
        magnitude = largest(blocks)
        if self.scale == "power":
            return Grid(powers(exponent(magnitude) - int(np.log2(self.top))))
        if self.scale == "float":
            return Grid(usable(magnitude / np.float32(self.top)))
        known = self.scales(base)
        assert known is not None
        borders = (known[1:] + known[:-1]) / 2
        return Grid(known[np.searchsorted(borders, magnitude / np.float32(self.top))])

    def codes(self, blocks: Array, grid: Grid) -> Array:
        """Return the nearest levels."""
        return np.searchsorted(self._borders, blocks / grid.scale).astype(np.uint8)

    def values(self, codes: Array, grid: Grid) -> Array:
        """Return levels times scale."""
        result: Array = self.levels[codes]
        result *= grid.scale
        return result

    @property
    def shares_factor(self) -> bool:
        """Whether scales are 8-bit floats times one float."""
        return self.scale == "small"

    def base(self, array: Array) -> float:
        """Return the factor that brings the largest scale of an array to the greatest 8-bit float."""
        if not self.shares_factor or not array.size:
            return 1.0
        magnitude = max(float(array.max()), -float(array.min()))
        return float(np.float32(magnitude / (self.top * float(SMALL_SCALES[-1])))) or 1.0

    def scales(self, base: float) -> Array | None:
        """Return the powers of two, or the positive 8-bit floats times the base."""
        if self.scale == "float":
            return None
        return POWERS if self.scale == "power" else SMALL_SCALES * np.float32(base)


def small_floats(name: str) -> tuple[float, ...]:
    """Return the finite numbers of a type of `ml_dtypes` with at most eight bits, ascending; zero once.

    >>> small_floats("float4_e2m1fn")[7:]
    (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
    """
    kind = np.dtype(getattr(ml_dtypes, name))
    numbers = np.arange(256, dtype=np.uint8).view(kind).astype(np.float64)
    return tuple(sorted({float(number) + 0.0 for number in numbers if np.isfinite(number)}))


def normal_float() -> tuple[float, ...]:
    """Return the 16 levels of NF4: eight quantiles of the normal distribution below zero, zero, and seven above it.

    Source: Dettmers et al. 2023, QLoRA.
    """
    # The outermost quantile is the mean of those that 15 and 16 equal parts would begin at.
    offset = (1 - 1 / 32 + 1 - 1 / 30) / 2
    above, below = (
        [NormalDist().inv_cdf(share) for share in np.linspace(offset, 0.5, count)[:-1].tolist()] for count in (9, 8)
    )
    return tuple(level / above[0] for level in sorted([*(-level for level in below), 0.0, *above]))


def dynamic_tree(bits: int, decades: int) -> tuple[float, ...]:
    """Return the levels of the signed dynamic map: each decade has half as many as the one above it.

    The greatest is 1, and -1 is absent. Source: Dettmers et al. 2022, 8-bit Optimizers via Block-wise Quantization.

    >>> len(dynamic_tree(8, 7)), dynamic_tree(4, 3)[8:]
    (256, (0.0055, 0.0325, 0.0775, 0.2125, 0.4375, 0.6625, 0.8875, 1.0))
    """
    positive: list[float] = []
    for decade in range(decades):
        edges = np.linspace(0.1, 1, (1 << (decade + bits - 1 - decades)) + 1)
        positive.extend((edges[1:] + edges[:-1]) / 2 / 10.0 ** (decades - 1 - decade))
    levels = sorted(sign * level for sign, level in product((-1, 1), positive))
    return tuple(round(float(level), 12) for level in sorted([*levels, 0.0, 1.0]))


# Positive, so that no block of numbers other than zero has a scale of zero.
SMALL_SCALES: Final[Array] = np.array([each for each in small_floats("float8_e4m3fn") if each > 0], np.float32)
# The levels of bitsandbytes' 4-bit float, in twelfths.
TWELFTHS: Final = (0, 0.0625, 2, 3, 4, 6, 8, 12)

FP8_E4M3, FP8_E5M2 = (
    Codebook(f"fp8-{short}", 8, FLOAT_BITS, table=small_floats(f"float8_{short}{suffix}"))
    for short, suffix in (("e4m3", "fn"), ("e5m2", ""))
)
MXFP8_E4M3, MXFP8_E5M2, MXFP6_E2M3, MXFP6_E3M2, MXFP4 = (
    Codebook(name, bits, POWER_BITS, table=small_floats(kind), scale="power")
    for name, bits, kind in (
        ("mxfp8-e4m3", 8, "float8_e4m3fn"),
        ("mxfp8-e5m2", 8, "float8_e5m2"),
        ("mxfp6-e2m3", 6, "float6_e2m3fn"),
        ("mxfp6-e3m2", 6, "float6_e3m2fn"),
        ("mxfp4", 4, "float4_e2m1fn"),
    )
)
NVFP4: Final = Codebook("nvfp4", 4, POWER_BITS, table=small_floats("float4_e2m1fn"), scale="small")
NF4: Final = Codebook("nf4", 4, FLOAT_BITS, table=normal_float())
FP4: Final = Codebook(
    "fp4", 4, FLOAT_BITS, table=tuple(sorted({sign * each / 12 + 0.0 for each in TWELFTHS for sign in (-1, 1)}))
)
DYNAMIC8: Final = Codebook("dynamic8", 8, FLOAT_BITS, table=dynamic_tree(8, 7))
DYNAMIC4: Final = Codebook("dynamic4", 4, FLOAT_BITS, table=dynamic_tree(4, 3))
