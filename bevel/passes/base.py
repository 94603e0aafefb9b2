"""What a pass is: a frozen dataclass with typed options, a promise, and `run`.

@dataclass(frozen=True)
class Halve(Pass):
    \"\"\"Halve every weight.\"\"\"

    name = "halve"
    promise = Lossy()
    times: Annotated[int, Range(1, 8), Doc("how often")] = 1

    def run(self, model, context): ...
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, TypeAlias

import numpy as np
import onnx_ir as ir

from bevel.ir.places import Places
from bevel.passes import options
from bevel.passes.calibration import Calibration
from bevel.passes.options import Choice, Doc, Range

__all__ = [
    "Choice",
    "Context",
    "Doc",
    "Exact",
    "Lossy",
    "Masked",
    "Outcome",
    "Pass",
    "Preserving",
    "Progress",
    "Promise",
    "Range",
    "Rounder",
    "Runs",
    "Runtime",
    "Slope",
    "silent",
]

# float32 rounds at 2**-24 = 6e-8 of a value. A sum of k terms taken in another order moves by about sqrt(k) roundings
# of its largest partial sum: 4e-6 for k = 4096, the widest reduction commonly met. Twice that, for two such in a row.
REASSOCIATION_RTOL = 1e-5


@dataclass(frozen=True)
class Promise:
    """What a pass guarantees about the outputs; `rtol` is None where nothing is guaranteed."""

    rtol: float | None = None

    def __str__(self) -> str:
        return type(self).__name__ if not self.rtol else f"{type(self).__name__} {self.rtol:g}"


@dataclass(frozen=True)
class Exact(Promise):
    """The outputs are equal in every element; NaN equals NaN, and -0 equals 0."""

    rtol: float | None = 0.0


@dataclass(frozen=True)
class Preserving(Promise):
    """The outputs are equal up to the order in which floating-point sums are taken."""

    rtol: float | None = REASSOCIATION_RTOL


@dataclass(frozen=True)
class Masked(Promise):
    """The outputs equal those of the pass's input with zeros for what was dropped: a channel, a branch.

    What a pass fitted in its place is in both.
    """

    rtol: float | None = REASSOCIATION_RTOL


@dataclass(frozen=True)
class Lossy(Promise):
    """The outputs change; the error is measured and reported, and compared with the user's limit if there is one."""

    rtol: None = None


class Progress(Protocol):
    """Is told how far a long loop has come."""

    def __call__(self, what: str, done: int, total: int) -> None:
        """Say that `done` of `total` steps of `what` are done."""


def silent(what: str, done: int, total: int) -> None:
    """Report no progress."""


class Runs(Protocol):
    """A model that is loaded and can be run."""

    def run(self, feed: Mapping[str, Any]) -> dict[str, Any]:
        """Return every output by name."""


Slope: TypeAlias = Literal["fisher", "predicted", "curvature", "flow"]
"""A kind of gradient that needs no labels; `bevel/backends/torch/gradients.py` says what each is."""


class Rounder(Protocol):
    """Chooses codes of the weights of a part of a model together, by how far its output is off."""

    def __call__(
        self,
        model: ir.Model,
        feeds: Sequence[Mapping[str, Any]],
        wanted: Iterable[np.ndarray],
        weights: Mapping[str, Mapping[str, Any]],
        seed: int,
    ) -> tuple[Mapping[str, tuple[np.ndarray, np.ndarray]], float, float]:
        """Return what was chosen of each weight, and the relative error of the output before and after.

        `bevel/backends/torch/rounding.py` says what is given and returned. Raises `UnsupportedModel` where torch cannot
        differentiate the part.
        """


class Runtime(Protocol):
    """What executes models for a pass, which sees no backend itself."""

    @property
    def block(self) -> int:
        """How many channels a kernel takes at once: widths that are multiples of it waste nothing."""

    def open(self, model: ir.Model) -> AbstractContextManager[Runs]:
        """Load a model as it is written, without further rewrites."""

    def latencies(self, models: Sequence[ir.Model], feed: Mapping[str, Any]) -> tuple[float, ...]:
        """Return the median time of a run of each model as it is deployed, in milliseconds, taken in turns."""

    def gradients(
        self, model: ir.Model, feeds: Iterable[Mapping[str, Any]], kind: Slope, seed: int
    ) -> Iterator[Mapping[str, np.ndarray]]:
        """Yield gradients by the names of the initializers that are learnt: for each feed if `fisher`, else once.

        Raises `UnsupportedModel`, which names the node, where a model cannot be differentiated, and `UsageError` where
        PyTorch is not installed.
        """

    def router(
        self,
        rows: np.ndarray,
        gram: np.ndarray,
        along: np.ndarray,
        best: np.ndarray,
        start: Sequence[np.ndarray],
        *,
        width: int,
        epochs: int,
        seed: int,
    ) -> Sequence[np.ndarray]:
        """Return the weights and constants of a router of experts that was trained on what they give.

        `bevel/backends/torch/routers.py` says what the arrays are. Raises `UsageError` where PyTorch is not installed.
        """

    def rounding(self) -> Rounder:
        """Return what chooses the codes of a part of a model. Raises `UsageError` where PyTorch is not installed."""


# Statistics of a layer's input come from a few thousand rows (tokens, pixels) at least: 128 samples have more.
SAMPLES = 128


@dataclass(frozen=True)
class Context:
    """What a pass may know beside the model and its options; `samples` is how many inputs statistics are made of.

    `max_error` is the user's limit for the relative error of lossy passes, if there is one.
    """

    seed: int
    calibration: Calibration
    runtime: Runtime
    progress: Progress = silent
    samples: int = SAMPLES
    max_error: float | None = None


@dataclass(frozen=True)
class Outcome:
    """What a pass says about its own run.

    `reference` turns a clone of the pass's input into what the promise compares with (prune: zero the consumers of what
    was dropped); None means the input itself. `notes` are sentences for the report. `worst` names the parts of the
    model that changed most, the worst first: what a user may leave out where the error is above the limit. `where` says
    which entries of the reference's values are left in the result's of the same names: with it, a network that
    multiplies roundings can be compared in pieces.
    """

    reference: Callable[[ir.Model], None] | None = None
    notes: tuple[str, ...] = ()
    worst: tuple[str, ...] = ()
    where: Places | None = None


@dataclass(frozen=True)
class Pass(ABC):
    """A rewrite of a model, and what it promises.

    Subclasses are frozen dataclasses whose fields are the options. Values out of range raise `UsageError` when the
    instance is made. An instance keeps no state: the same model, options and seed give the same bytes.
    """

    name: ClassVar[str]
    promise: ClassVar[Promise]

    def __post_init__(self) -> None:
        options.check(self)

    @abstractmethod
    def run(self, model: ir.Model, context: Context) -> Outcome:
        """Edit `model` in place. Refuse, with a `BevelError`, before the first write."""

    def __str__(self) -> str:
        return options.render(self)
