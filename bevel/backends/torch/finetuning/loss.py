"""What fine-tuning minimises: the distance between student and teacher, and the error against labels.

Distillation is that of Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network" (2015): the
Kullback-Leibler divergence of the student's distribution from the teacher's, both softened by a temperature T, times
T^2 so that gradients keep their size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Final, Literal, Protocol, TypeAlias, get_args

from torch import Tensor
from torch.nn import functional

from bevel.errors import UsageError, nearest

Distance: TypeAlias = Literal["kl", "mse", "kl+mse"]

IGNORED: Final = -100
"""The label of a position that does not count, as in `torch.nn.CrossEntropyLoss`."""

SUM_OF_PROBABILITIES: Final = 1e-3
"""How far from 1 the sum of probabilities may be: bfloat16 rounds each of them at 2**-9."""


class Loss(Protocol):
    """The loss of a batch, given what the modules return; the teacher and the labels are None where there are none."""

    def __call__(self, student: Any, teacher: Any, labels: Tensor | None) -> Tensor:
        """Return a tensor of one element."""


@dataclass(frozen=True)
class Distillation:
    """Distance to the teacher's output plus `label_weight` times the error against labels; see `finetune`.

    Positions whose label is -100 do not count, neither here nor there.
    """

    distance: Distance = "kl"
    temperature: float = 2.0
    label_weight: float = 1.0
    class_dim: int = -1
    output: int | str | None = None

    def __post_init__(self) -> None:
        if self.distance not in get_args(Distance):
            remedy = f"{nearest(self.distance, get_args(Distance))}; or pass a function"
            raise UsageError(f"unknown loss {self.distance!r}", where="loss", remedy=remedy)

    def __call__(self, student: Any, teacher: Any, labels: Tensor | None) -> Tensor:
        """Return the loss, computed in float32 whatever the precision of the outputs."""
        logits = self._output(student).float()
        labels = None if labels is None else labels.to(logits.device)
        total = logits.new_zeros(())
        if teacher is not None:
            total = total + self._distance(logits, self._output(teacher).to(logits.device).float(), labels)
        if labels is not None:
            total = total + self.label_weight * self._error(logits, labels)
        return total

    def check(self, student: Any, teacher: Any, labels: Tensor | None) -> None:
        """Refuse outputs, of a first batch, for which the loss makes no sense."""
        logits = tensor_of(student, self.output, "the student's output")
        if not logits.is_floating_point():
            raise UsageError(f"it holds {logits.dtype}", where="the student's output", remedy="return logits")
        if teacher is not None:
            self._check_distance(logits, tensor_of(teacher, self.output, "the teacher's output"))
        if labels is not None:
            self._check_labels(logits, labels)

    def _output(self, returned: Any) -> Tensor:
        return tensor_of(returned, self.output, "an output")

    def _distance(self, student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        counted = slice(None) if labels is None or labels.is_floating_point() else labels != IGNORED
        total = student.new_zeros(())
        if "kl" in self.distance:
            total = total + average(divergence(student, teacher, self.temperature, self.class_dim)[counted])
        if "mse" in self.distance:
            total = total + average((student - teacher).square().movedim(self.class_dim, -1)[counted])
        return total

    def _error(self, logits: Tensor, labels: Tensor) -> Tensor:
        if labels.is_floating_point():
            return functional.mse_loss(logits, labels)
        losses = functional.cross_entropy(
            logits.movedim(self.class_dim, 1), labels.long(), ignore_index=IGNORED, reduction="none"
        )
        return average(losses[labels != IGNORED])

    def _check_distance(self, student: Tensor, teacher: Tensor) -> None:
        if student.shape != teacher.shape:
            raise UsageError(
                f"the student returns {list(student.shape)}, the teacher {list(teacher.shape)}",
                where="outputs of the first batch",
                remedy="they must be of one shape; choose one of several outputs with output=, or pass a loss function",
            )
        if "kl" in self.distance and not is_logits(teacher, self.class_dim):
            raise UsageError(
                f"an output of shape {list(teacher.shape)} is no row of logits along dimension {self.class_dim}",
                where="the teacher's output",
                remedy='use loss="mse" for a regression or for probabilities; class_dim= says where the classes are',
            )

    def _check_labels(self, logits: Tensor, labels: Tensor) -> None:
        expected = list(logits.shape)
        if not labels.is_floating_point():
            del expected[self.class_dim]
        if list(labels.shape) != expected:
            raise UsageError(
                f"they are of shape {list(labels.shape)}, the output asks for {expected}",
                where="labels",
                remedy="labels are class numbers (integers) or targets of the output's own shape (floating point)",
            )


def divergence(student: Tensor, teacher: Tensor, temperature: float, dim: int) -> Tensor:
    """Return T^2 KL(teacher || student) of distributions softened by T, for each position.

    >>> import torch
    >>> logits = torch.tensor([[1.0, 2.0, 3.0]])
    >>> divergence(logits, logits + 5, 2.0, -1).abs().max().item() < 1e-6
    True
    """
    log_student = functional.log_softmax(student / temperature, dim)
    log_teacher = functional.log_softmax(teacher / temperature, dim)
    pointwise: Tensor = functional.kl_div(log_student, log_teacher, reduction="none", log_target=True)
    return pointwise.sum(dim).mul(temperature * temperature)


def average(values: Tensor) -> Tensor:
    """Return the mean, 0 of nothing."""
    return values.sum() / max(values.numel(), 1)


def is_logits(output: Tensor, dim: int) -> bool:
    """Tell whether an output may be logits: of two classes or more, and no probabilities."""
    if not -output.dim() <= dim < output.dim() or output.dim() < 2 or output.shape[dim] < 2:
        return False
    sums = output.float().sum(dim)
    return bool((output < 0).any() or ((sums - 1).abs() > SUM_OF_PROBABILITIES).any())


def tensor_of(returned: Any, chosen: int | str | None, where: str) -> Tensor:
    """Return the chosen one of a module's outputs: by place, by name, or the one called `logits`, or the only one."""
    if isinstance(returned, Tensor) and not (isinstance(chosen, int) and chosen not in (0, -1)):
        return returned
    parts = named_parts(returned)
    names = list(parts)
    if chosen is None and ("logits" in parts or len(parts) == 1):
        chosen = "logits" if "logits" in parts else 0
    if isinstance(chosen, int) and -len(names) <= chosen < len(names):
        chosen = names[chosen]
    picked = parts.get(chosen) if isinstance(chosen, str) else None
    if isinstance(picked, Tensor):
        return picked
    problem = "there are several outputs" if chosen is None else f"there is no tensor {chosen!r}"
    raise UsageError(
        problem if parts else f"it is of type {type(returned).__name__}",
        where=where,
        remedy=f"choose one with output=, by place or name: {', '.join(names)}" if parts else "return a tensor",
    )


def named_parts(returned: Any) -> dict[str, Any]:
    """Return a module's outputs by name; those of a tuple are called by their places."""
    if isinstance(returned, Mapping):
        return dict(returned)
    if hasattr(returned, "_asdict"):
        return dict(returned._asdict())
    if isinstance(returned, Tensor | tuple | list):
        parts = [returned] if isinstance(returned, Tensor) else returned
        return {str(place): part for place, part in enumerate(parts)}
    if is_dataclass(returned):
        return {field.name: value for field in fields(returned) if (value := getattr(returned, field.name)) is not None}
    return {"logits": returned.logits} if hasattr(returned, "logits") else {}
