"""What a nested model keeps beside its own weights: which groups are ordered, and weights fitted to some widths.

The table is in the model's metadata. The fitted weights are initializers that no node uses; each says so in its own
metadata, so that clean-ups leave it alone. A fit stands for a weight as it was when it was fitted: it has that weight's
checksum, so that one which was changed since is recognised.
"""

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from bevel.errors import UnsupportedModel, UsageError
from bevel.ir.content import content

KEY: Final = "bevel.nest"


@dataclass(frozen=True)
class Fit:
    """Weights fitted to one width of a group: the initializer that they stand in for, and the one that has them."""

    group: str
    width: int
    weight: str
    stored: str
    checksum: int


@dataclass(frozen=True)
class Nest:
    """The groups that are ordered, the most important entries first, by name with their size; and the fits."""

    groups: Mapping[str, int]
    fits: Sequence[Fit] = field(default=())

    def write(self, model: ir.Model) -> None:
        """Note it in a model's metadata."""
        fits = [list(vars(fit).values()) for fit in self.fits]
        model.metadata_props[KEY] = json.dumps({"groups": dict(self.groups), "fits": fits}, sort_keys=True)


def share(text: str, where: str) -> float:
    """Read a share of a group's entries, above 0 and at most 1."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number <= 1:
        raise UsageError(f"{text!r} is no width", where=where, remedy="a share of the entries: above 0, at most 1")
    return number


def entries_of(size: int, part: float) -> int:
    """Return how many of a group's entries a share is, at least one."""
    return max(1, round(size * part))


def checksum(value: ir.Value) -> int:
    """Return a checksum of an initializer's content."""
    assert value.const_value is not None
    with content(value.const_value) as array:
        return zlib.crc32(np.ascontiguousarray(array).tobytes())


def store(model: ir.Model, name: str, array: np.ndarray[Any, Any]) -> None:
    """Keep an array as an initializer that no node uses."""
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
    value.metadata_props[KEY] = "kept"
    model.graph.register_initializer(value)


def read(model: ir.Model) -> Nest:
    """Return what a nested model keeps; raises `UnsupportedModel` where there is nothing, or nothing readable."""
    text = model.metadata_props.get(KEY)
    if text is None:
        raise UnsupportedModel("the model is not nested", remedy="order it first: optimize --passes nest")
    try:
        found = json.loads(text)
        groups = {str(name): int(size) for name, size in found["groups"].items()}
        fits = [
            Fit(str(group), int(width), str(weight), str(stored), int(check))
            for group, width, weight, stored, check in found["fits"]
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnsupportedModel("what it says of its nested groups is damaged", remedy="nest the model again") from error
    return Nest(groups, fits)


def remove(model: ir.Model) -> None:
    """Take away everything that a nested model keeps beside its own weights."""
    model.metadata_props.pop(KEY, None)
    for name, value in list(model.graph.initializers.items()):
        if KEY in value.metadata_props:
            del model.graph.initializers[name]
