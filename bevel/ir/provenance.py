"""Where an initializer came from: which parameter or buffer of a module, and through which transform.

It is kept in the initializer's metadata, so that clones, passes and files carry it along.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import onnx_ir as ir

KEY: Final = "bevel.provenance"
ORIGIN: Final = "bevel.origin"
LEARNT: Final = "bevel.learnt"

Kind: TypeAlias = Literal["transpose", "unsqueeze", "squeeze", "cast"]


@dataclass(frozen=True)
class Transform:
    """One step from a parameter to its initializer.

    `numbers` are the axes' order (transpose), the axes of size one that were added or taken away, counted in the result
    or in the operand (unsqueeze, squeeze), or the parameter's `ir.DataType` before a cast.
    """

    kind: Kind
    numbers: tuple[int, ...]


@dataclass(frozen=True)
class Provenance:
    """The names of a parameter or buffer in the `state_dict` of its module, and how the initializer was made from it.

    There are several names where parameters are tied. A persistent constant that is not trained is no parameter.
    """

    names: tuple[str, ...]
    trainable: bool
    transforms: tuple[Transform, ...] = ()

    def then(self, kind: Kind, numbers: Sequence[int]) -> Provenance:
        """Return the provenance after one more step."""
        step = Transform(kind, tuple(int(number) for number in numbers))
        return Provenance(self.names, self.trainable, (*self.transforms, step))

    def axis(self, axis: int, rank: int) -> int | None:
        """Return which axis of the parameter an axis of the initializer of `rank` is; None for one that was added.

        >>> Provenance(("fc.weight",), True).then("transpose", (1, 0)).axis(0, 2)
        1
        """
        axes: list[int | None] = list(range(self.parameter_rank(rank)))
        for step in self.transforms:
            if step.kind == "transpose":
                axes = [axes[place] for place in step.numbers]
            elif step.kind == "unsqueeze":
                for place in sorted(step.numbers):
                    axes.insert(place, None)
            elif step.kind == "squeeze":
                axes = [source for place, source in enumerate(axes) if place not in step.numbers]
        return axes[axis]

    def invert(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return an initializer's content in the layout and type of the parameter.

        >>> Provenance(("fc.weight",), True).then("transpose", (1, 0)).invert(np.zeros((3, 5))).shape
        (5, 3)
        """
        for step in reversed(self.transforms):
            if step.kind == "transpose":
                array = np.transpose(array, np.argsort(step.numbers))
            elif step.kind == "unsqueeze":
                array = np.squeeze(array, axis=step.numbers)
            elif step.kind == "squeeze":
                array = np.expand_dims(array, step.numbers)
            else:
                array = array.astype(ir.DataType(step.numbers[0]).numpy())
        return array

    def parameter_rank(self, rank: int) -> int:
        """Return how many axes the parameter of an initializer of `rank` has."""
        added = {"unsqueeze": 1, "squeeze": -1}
        return rank - sum(added.get(step.kind, 0) * len(step.numbers) for step in self.transforms)


def provenance(value: ir.Value) -> Provenance | None:
    """Return where an initializer came from, if that is known."""
    text = value.metadata_props.get(KEY)
    if text is None:
        return None
    read = json.loads(text)
    steps = tuple(Transform(step["kind"], tuple(step["numbers"])) for step in read["transforms"])
    return Provenance(tuple(read["names"]), read["trainable"], steps)


def set_provenance(value: ir.Value, source: Provenance) -> None:
    """Note where an initializer came from."""
    value.metadata_props[KEY] = json.dumps(asdict(source))


@dataclass(frozen=True)
class Origin:
    """The module that a model came from: every name of its `state_dict` in order, and what the graph does not use.

    `unused` says of those parameters and buffers whether they are trained, and what they hold.
    """

    names: tuple[str, ...]
    unused: Mapping[str, tuple[bool, ir.TensorProtocol]]


def origin(model: ir.Model) -> Origin | None:
    """Return the module that a model came from; files do not keep it, clones and passes do."""
    found: Origin | None = model.graph.meta.get(ORIGIN)
    return found


def set_origin(model: ir.Model, source: Origin) -> None:
    """Note which module a model came from."""
    model.graph.meta[ORIGIN] = source


def is_learnt(value: ir.Value) -> bool | None:
    """Say whether an initializer holds what training learns, where that is known: from its parameter, or from a mark.

    Of what a pass made new no parameter is known. Unmarked, `bevel.to_torch` takes it for a constant in models that
    came from a module, and for a parameter in others.
    """
    source = provenance(value)
    if source is not None:
        return source.trainable
    mark = value.metadata_props.get(LEARNT)
    return None if mark is None else mark == "true"


def mark_learnt(value: ir.Value, learnt: bool | None) -> None:
    """Note whether a new initializer holds what training learns; None for what is not known."""
    if learnt is not None:
        value.metadata_props[LEARNT] = "true" if learnt else "false"
