"""Rules for each operator family; importing a family registers its rules."""

from bevel.ir.rules import contraction, elementwise, indexing, layout, normalization, reduction, spatial

__all__ = ["contraction", "elementwise", "indexing", "layout", "normalization", "reduction", "spatial"]
