"""Every error that Bevel raises on purpose.

A message says what went wrong and where (file, node or value by name), then what to do about it.

    BevelError
      UsageError            the request makes no sense: a name, an option, a budget        exit 2
      ModelError            the model cannot be read                                       exit 2
        InvalidModel        it is not a well-formed ONNX model
        MissingData         its external data is absent, too short or outside its folder
        UnsupportedModel    it is valid, but nothing here can run or represent it
      CalibrationError      the calibration inputs do not fit the model                    exit 2
      EditRefused           an edit would change what the model computes                   exit 2
      RuleError             an operator rule contradicts the node it was given             exit 3
      PassFailed            a pass raised something else than a BevelError                 exit 3
      PromiseBroken         a pass did not keep its promise                                exit 1
      BudgetMissed          the result is right, but too large, too slow or too far off    exit 1
      TrainingDiverged      fine-tuning met a loss or gradient that is no number           exit 1
"""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import ClassVar


class BevelError(Exception):
    """The root of the tree: `what` happened, `where`, and the `remedy`."""

    exit_code: ClassVar[int] = 2

    def __init__(self, what: str, *, where: str = "", remedy: str = "") -> None:
        self.what = what
        self.where = where
        self.remedy = remedy
        super().__init__(str(self))

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        remedy = f"\n  {self.remedy}" if self.remedy else ""
        return f"{place}{self.what}{remedy}"


class UsageError(BevelError):
    """The request makes no sense: an unknown name, a bad option, a malformed pipeline."""


class ModelError(BevelError):
    """The model cannot be read."""


class InvalidModel(ModelError):
    """The bytes are not a well-formed ONNX model."""


class MissingData(ModelError):
    """External data is absent, too short, or outside the model's folder."""


class UnsupportedModel(ModelError):
    """The model is valid ONNX, but it cannot be represented or run here."""


class CalibrationError(BevelError):
    """Calibration inputs do not fit the model's signature."""


class EditRefused(BevelError):
    """An edit would change what the model computes; nothing was written."""


class RuleError(BevelError):
    """An operator rule contradicts the node it was given."""

    exit_code = 3


class PassFailed(BevelError):
    """A pass raised an error of its own."""

    exit_code = 3


class PromiseBroken(BevelError):
    """A pass did not keep its promise; its result was thrown away."""

    exit_code = 1


class BudgetMissed(BevelError):
    """The result is right, but misses a budget the user set."""

    exit_code = 1


class TrainingDiverged(BevelError):
    """Fine-tuning met a loss or gradient that is not finite; the module was left at its last good weights."""

    exit_code = 1


def nearest(name: str, choices: Iterable[str]) -> str:
    """Say which of `choices` was probably meant.

    >>> nearest("prune-chanels", ["fold", "prune-channels"])
    "did you mean 'prune-channels'?"
    >>> nearest("xyz", ["fold", "simplify"])
    'valid: fold, simplify'
    """
    known = sorted(choices)
    close = get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"valid: {', '.join(known)}"
