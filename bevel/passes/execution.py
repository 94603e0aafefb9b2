"""What the pipeline hands to passes that have to run models: ONNX Runtime, and PyTorch for gradients."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import onnx_ir as ir

from bevel.backends.onnxruntime import KERNEL_BLOCK, Level, Session, latencies
from bevel.backends.optional import backend


class Execution:
    """Runs models in ONNX Runtime on the CPU; see `bevel.passes.base.Runtime`."""

    @property
    def block(self) -> int:
        """How many channels a convolution or matrix kernel takes at once."""
        return KERNEL_BLOCK

    def open(self, model: ir.Model) -> Session:
        """Load a model as passes see it."""
        return Session(model, level=Level.AS_WRITTEN, draft=True)

    def latencies(self, models: Sequence[ir.Model], feed: Mapping[str, Any]) -> tuple[float, ...]:
        """Return the median time of a run of each model as it is deployed, in milliseconds."""
        with ExitStack() as stack:
            return latencies([stack.enter_context(Session(model)) for model in models], feed)

    def gradients(
        self, model: ir.Model, feeds: Iterable[Mapping[str, Any]], kind: str, seed: int
    ) -> Iterator[Mapping[str, np.ndarray[Any, Any]]]:
        """Yield gradients by initializer name, taken in PyTorch, which is imported now."""
        found: Iterator[Mapping[str, np.ndarray[Any, Any]]] = backend("gradients").gradients(model, feeds, kind, seed)
        return found

    def router(self, *seen: Any, **options: Any) -> Sequence[np.ndarray[Any, Any]]:
        """Return the weights and constants of a router that was trained in PyTorch, which is imported now."""
        found: Sequence[np.ndarray[Any, Any]] = backend("routers").trained(*seen, **options)
        return found

    def rounding(self) -> Callable[..., Any]:
        """Return what chooses codes in PyTorch, which is imported now."""
        found: Callable[..., Any] = backend("rounding").rounded
        return found
