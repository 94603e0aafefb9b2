"""What is settled for all weights of a model, and what some made that others can read, too."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from bevel.passes.quantization.branches import Projection


@dataclass(frozen=True)
class Made:
    """What blocks run along where that is chosen weight by weight; tables by content; projections by what they read."""

    axes: Mapping[str, str] = field(default_factory=dict)
    tables: dict[bytes, ir.Value] = field(default_factory=dict)
    projections: dict[ir.Value, Projection] = field(default_factory=dict)
