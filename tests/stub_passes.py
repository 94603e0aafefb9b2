"""Passes that keep their promise, break it, raise, or refuse; used by the tests of the machinery."""

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import onnx_ir as ir

from bevel.errors import EditRefused
from bevel.passes.base import Doc, Exact, Lossy, Masked, Outcome, Pass, Preserving, Range


def scale_weight(model, name, factor):
    value = model.graph.initializers[name]
    value.const_value = ir.tensor((value.const_value.numpy() * factor).astype(np.float32), name=name)


@dataclass(frozen=True)
class Nothing(Pass):
    """Do nothing."""

    name = "nothing"
    promise = Exact()

    def run(self, model, context):
        return Outcome(notes=("nothing was done",))


@dataclass(frozen=True)
class Scale(Pass):
    """Scale a weight, and say that only rounding happened."""

    name = "scale"
    promise = Preserving()
    factor: Annotated[float, Range(0, 10), Doc("what w2 is multiplied with")] = 1.0
    weight: str = "w2"

    def run(self, model, context):
        scale_weight(model, self.weight, self.factor)
        return Outcome()


@dataclass(frozen=True)
class LossyScale(Scale):
    """Scale a weight, honestly."""

    name = "lossy-scale"
    promise = Lossy()


@dataclass(frozen=True)
class Zero(Pass):
    """Drop hidden channels by zeroing their consumer; `lie` zeroes another one in the reference."""

    name = "zero"
    promise = Masked()
    lie: bool = False

    def run(self, model, context):
        zero_row(model, 0)
        return Outcome(reference=lambda reference: zero_row(reference, 1 if self.lie else 0))


def zero_row(model, row):
    value = model.graph.initializers["w2"]
    array = value.const_value.numpy().copy()
    array[row] = 0
    value.const_value = ir.tensor(array, name="w2")


@dataclass(frozen=True)
class Raises(Pass):
    """Raise an error of its own, after a write."""

    name = "raises"
    promise = Exact()

    def run(self, model, context):
        scale_weight(model, "w2", 2)
        raise KeyError("a bug")


@dataclass(frozen=True)
class Refuses(Pass):
    """Refuse."""

    name = "refuses"
    promise = Exact()

    def run(self, model, context):
        raise EditRefused("no channel is free", where="fc1")


@dataclass(frozen=True)
class Renames(Pass):
    """Rename an output."""

    name = "renames"
    promise = Exact()

    def run(self, model, context):
        model.graph.outputs[0].name = "other"
        return Outcome()


@dataclass(frozen=True)
class Breaks(Pass):
    """Leave a model that does not load: a weight of the wrong shape."""

    name = "breaks"
    promise = Exact()

    def run(self, model, context):
        value = model.graph.initializers["w2"]
        value.const_value = ir.tensor(value.const_value.numpy()[:-1], name="w2")
        return Outcome()


@dataclass(frozen=True)
class Options(Pass):
    """Have every kind of option."""

    name = "options"
    promise = Exact()
    ratio: Annotated[float, Range(0, 1), Doc("a share")] = 0.5
    round_to: Annotated[int, Range(1)] = 1
    scope: Literal["local", "global"] = "local"
    only: tuple[str, ...] = ()
    label: str = ""
    fast: bool = False
    most: int | None = None

    def run(self, model, context):
        return Outcome()


ALL = {cls.name: cls for cls in (Nothing, Scale, LossyScale, Zero, Raises, Refuses, Renames, Breaks, Options)}
