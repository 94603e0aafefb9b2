"""A weight that is read becomes codes: alone, or with thin matrices beside it that others may share."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from math import nan, sqrt
from typing import Any, Literal, TypeAlias

import numpy as np

from bevel.errors import UsageError
from bevel.passes.fitting.moments import Moments
from bevel.passes.formats import Format, Quantized
from bevel.passes.formats.blocks import Axis, finite
from bevel.passes.quantization.branches import Branched
from bevel.passes.quantization.forms import Form, Found
from bevel.passes.quantization.ledger import Entry, Result
from bevel.passes.quantization.methods import LEARNT, compensating, errors, quantized, relative_error
from bevel.passes.quantization.repair import Member, repaired
from bevel.passes.quantization.schemed import Schemed
from bevel.passes.quantization.writing import stored

Array = np.ndarray[Any, Any]
Rounding: TypeAlias = Literal["nearest", "clip", "hqq", "gptq", "adaround", "cbq"]
Branch: TypeAlias = Literal["none", "lorc", "svdquant"]
Metric: TypeAlias = Literal["weights", "inputs"]


@dataclass(frozen=True)
class Encoder:
    """How codes are chosen, and what stands beside them."""

    rounding: Rounding
    branch: Branch
    rank: int
    metric: Metric

    def learns(self, entry: Entry) -> bool:
        """Say whether a weight looks at what its layer reads: it has one reader, whose inputs can be seen."""
        repairs = self.metric == "inputs" and isinstance(entry.form, Branched | Schemed)
        return (self.rounding in LEARNT or repairs) and entry.target.layer is not None and not entry.target.others

    def together(self, unit: Sequence[Entry], moment: Moments | None = None) -> Sequence[Result | None]:
        """Return weights that share a projection, or one alone, in their forms; None if one of them is not finite."""
        if not isinstance(unit[0].form, Branched):
            return [self._alone(entry, moment) for entry in unit]
        with ExitStack() as stack:
            matrices = [stack.enter_context(entry.target.reading()) for entry in unit]
            if not all(finite(matrix) for matrix in matrices):
                return [None] * len(unit)
            return self._repaired(unit, matrices, moment)

    def _repaired(
        self, unit: Sequence[Entry], matrices: Sequence[Array], moment: Moments | None
    ) -> list[Result | None]:
        """Return weights with what is beside them."""
        assert self.branch != "none"
        members = [
            Member(
                matrix,
                entry.target.in_axis,
                partial(self._quantized, entry),
                None if moment is None or self.rounding not in LEARNT else partial(self._compensating, entry, moment),
            )
            for entry, matrix in zip(unit, matrices, strict=True)
        ]
        metric = moment.second[0] if moment is not None and self.metric == "inputs" else None
        return [
            Result(found, stored(entry.form, found), *errors(entry.target, matrix, found.decode(), moment))
            for entry, matrix, found in zip(
                unit, matrices, repaired(members, self.branch, self.rank, metric), strict=True
            )
        ]

    def _alone(self, entry: Entry, moment: Moments | None = None) -> Result | None:
        """Return a weight in its form, None if it is not finite."""
        target = entry.target
        with target.reading() as matrix:
            if not finite(matrix):
                return None
            if isinstance(entry.form, Schemed):
                whole = entry.form.encoded(matrix, None if moment is None else moment.second)
                return Result(whole, stored(entry.form, whole), *errors(target, matrix, whole.decode(), moment))
            if moment is None:
                found, lost = self._quantized(entry, matrix), nan
            else:
                found, lost = compensating(target, matrix, *_layout(entry), moment, self.rounding)
            return Result(found, stored(entry.form, found), relative_error(matrix, found), sqrt(lost))

    def _compensating(self, entry: Entry, moment: Moments, matrix: Array) -> Quantized:
        return compensating(entry.target, matrix, *_layout(entry), moment, self.rounding)[0]

    def _quantized(self, entry: Entry, matrix: Array) -> Quantized:
        return quantized(matrix, *_layout(entry), self.rounding)

    def late(self, entry: Entry) -> Found:
        """Return a weight that nobody looked at before."""
        with entry.target.reading() as matrix:
            if not finite(matrix):
                raise UsageError("it holds what is no number", where=f"weight {entry.name!r}", remedy="skip it")
            return entry.form.encoded(matrix) if isinstance(entry.form, Schemed) else self._quantized(entry, matrix)


def _layout(entry: Entry) -> tuple[Format, Axis, int]:
    """Return the format of a weight, the axis that its blocks run along, and their size."""
    assert isinstance(entry.form, Form)
    return entry.form.format, entry.form.axis, entry.form.block
