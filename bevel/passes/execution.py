"""What the pipeline hands to passes that have to run models: ONNX Runtime behind the face that passes see."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import onnx_ir as ir

from bevel.backends.onnxruntime import KERNEL_BLOCK, Level, Session, latencies


class Execution:
    """Runs models in ONNX Runtime on the CPU; see `bevel.passes.base.Runtime`."""

    @property
    def block(self) -> int:
        """How many channels a convolution or matrix kernel takes at once."""
        return KERNEL_BLOCK

    def open(self, model: ir.Model) -> Session:
        """Load a model as it is written."""
        return Session(model, level=Level.AS_WRITTEN)

    def latencies(self, models: Sequence[ir.Model], feed: Mapping[str, Any]) -> tuple[float, ...]:
        """Return the median time of a run of each model as it is deployed, in milliseconds."""
        with ExitStack() as stack:
            return latencies([stack.enter_context(Session(model)) for model in models], feed)
