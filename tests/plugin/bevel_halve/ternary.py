"""A format: minus one, zero and one, times a scale."""

from bevel.passes.formats.codebooks import Codebook

TERNARY = Codebook("ternary", 2, 32, table=(-1.0, 0.0, 1.0))
