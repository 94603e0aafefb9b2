"""Recover what pruning or compression cost: train a smaller module to answer as the original does."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

from torch import nn

from bevel.backends.torch.finetuning.data import Batches
from bevel.backends.torch.finetuning.history import Point, Recovery
from bevel.backends.torch.finetuning.loop import Loop, Mode, Progress
from bevel.backends.torch.finetuning.loss import Distance, Distillation, Loss
from bevel.backends.torch.finetuning.steps import Precision, Schedule, Updates
from bevel.backends.torch.finetuning.validation import Evaluate, Validation
from bevel.backends.torch.finetuning.weights import Checkpoint, tensors
from bevel.errors import UsageError, nearest

__all__ = ["Loss", "Point", "Progress", "Recovery", "finetune"]


def finetune(
    student: nn.Module,
    teacher: nn.Module | None,
    data: Iterable[Any],
    *,
    labels: int | str | None = None,
    loss: Distance | Loss = "kl",
    temperature: float = 2.0,
    label_weight: float = 1.0,
    class_dim: int = -1,
    output: int | str | None = None,
    epochs: int | None = None,
    steps: int | None = None,
    lr: float = 1e-3,
    warmup: float = 0.05,
    weight_decay: float = 0.01,
    max_grad_norm: float = 1.0,
    precision: Precision = "auto",
    mode: Mode = "train",
    evaluate: Evaluate | None = None,
    evaluate_every: int | None = None,
    greater_is_better: bool = True,
    patience: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int | None = None,
    seed: int = 0,
    progress: Progress = lambda what, done, total: None,
) -> Recovery:
    """Train `student` in place to answer as `teacher` does, and return how it went.

    `data` is a DataLoader, or anything else that can be gone through again and again. A batch is a tensor, a tuple of
    arguments or a dict of keyword arguments for both modules. `labels` says which part of it (by place or key) is no
    argument but the labels: class numbers, where -100 does not count, or floating-point targets.

    The loss is a distance to the teacher's output, plus `label_weight` times the cross-entropy (of targets: the squared
    error) against the labels. "kl" is distillation of logits at a `temperature`, with the classes along `class_dim`;
    "mse", for regressions, the mean squared difference; "kl+mse" their sum; and a function of both modules' outputs and
    the labels is used as it is. Of several outputs, `output` chooses one. Without a teacher there must be labels, or
    such a function.

    It runs `epochs` (1 if nothing is said) or `steps`: AdamW, whose `weight_decay` is for matrices only; a rate that
    rises to `lr` over the part `warmup` of the steps, then falls to 0 along a cosine; gradients clipped to
    `max_grad_norm`; arithmetic in bfloat16 or float16 on CUDA, in float32 elsewhere, unless `precision` says
    otherwise. In `mode` "eval" the student's batch normalisations keep their statistics and nothing is dropped out; in
    "train" they follow the data. The teacher is in eval mode and does not change. Modes are put back at the end.

    `evaluate` gives the score of the student (in eval mode) before the first step, then after every epoch or
    `evaluate_every` steps. The best weights are kept and given to the student at the end, so that it never ends worse
    than it began; after `patience` evaluations without a better one the run stops.

    With `checkpoint`, a file, the run is saved after every epoch, or `checkpoint_every` steps; called again, it goes on
    from there to what it would have become uninterrupted, bit for bit where the device computes so. A finished run's
    file gives the finished weights at once. The same `seed` gives the same order of data and the same weights on one
    device. Random generators are left as they were found.

    Raises `TrainingDiverged` where the loss or a gradient is not finite; the student is left at its best weights, or
    without `evaluate` at those before that step.
    """
    options = {name: value for name, value in locals().items() if isinstance(value, str | int | float | None)}
    check_positive(lr=lr, temperature=temperature, max_grad_norm=max_grad_norm)
    check_not_negative(warmup=warmup, weight_decay=weight_decay, label_weight=label_weight, seed=seed)
    check_counts(
        epochs=epochs, steps=steps, evaluate_every=evaluate_every, patience=patience, checkpoint_every=checkpoint_every
    )
    check_together(epochs, steps, warmup, mode, evaluate, patience, evaluate_every)
    check_sources(student, teacher, labels, loss)
    batches = Batches(data, labels)
    schedule = Schedule(lr, warmup, steps or (epochs or 1) * epoch_length(batches))
    updates = Updates(student, schedule, weight_decay=weight_decay, max_grad_norm=max_grad_norm, precision=precision)
    return Loop(
        student,
        teacher,
        batches,
        Distillation(loss, temperature, label_weight, class_dim, output) if isinstance(loss, str) else loss,
        updates,
        Validation(evaluate, greater_is_better, patience),
        Checkpoint(Path(checkpoint), settings(options, student, batches)) if checkpoint is not None else None,
        progress,
        seed=seed,
        mode=mode,
        evaluate_every=evaluate_every,
        checkpoint_every=checkpoint_every,
    ).run()


def settings(options: Mapping[str, Any], student: nn.Module, batches: Batches) -> dict[str, Any]:
    """Return what must be the same for a run to go on from a checkpoint: all but where and how often it is written."""
    kept = {name: value for name, value in options.items() if not name.startswith("checkpoint")}
    return {**kept, "student": signature(student), "batches of an epoch": batches.length()}


def check_positive(**options: float) -> None:
    """Refuse options that are not above 0 and finite."""
    for name, value in options.items():
        if not 0 < value < math.inf:
            raise UsageError(f"{name}={value}", where=name, remedy="it must be a number above 0")


def check_not_negative(**options: float) -> None:
    """Refuse options that are below 0 or not finite."""
    for name, value in options.items():
        if not 0 <= value < math.inf:
            raise UsageError(f"{name}={value}", where=name, remedy="it must be a number, 0 or above")


def check_counts(**options: int | None) -> None:
    """Refuse counts below 1; None stands for a default."""
    for name, value in options.items():
        if value is not None and (not isinstance(value, int) or value < 1):
            raise UsageError(f"{name}={value}", where=name, remedy="it must be a whole number of 1 or more")


def check_together(
    epochs: int | None,
    steps: int | None,
    warmup: float,
    mode: str,
    evaluate: Evaluate | None,
    patience: int | None,
    evaluate_every: int | None,
) -> None:
    """Refuse options that contradict each other."""
    if epochs is not None and steps is not None:
        raise UsageError("only one of them can be said", where="epochs, steps", remedy="leave one out")
    if mode not in get_args(Mode):
        raise UsageError(f"unknown mode {mode!r}", where="mode", remedy=nearest(mode, get_args(Mode)))
    if warmup >= 1:
        raise UsageError(f"warmup={warmup} leaves no steps", where="warmup", remedy="it is a part of the steps: 0 to 1")
    if evaluate is None and (patience is not None or evaluate_every is not None):
        raise UsageError("there is no score to go by", where="patience, evaluate_every", remedy="pass evaluate=")


def check_sources(
    student: nn.Module, teacher: nn.Module | None, labels: int | str | None, loss: Distance | Loss
) -> None:
    """Refuse a run that has nothing to learn from, or whose teacher would change as the student does."""
    if teacher is None and labels is None and isinstance(loss, str):
        raise UsageError("there is nothing to learn from", remedy="pass a teacher, labels=, or a loss function")
    if teacher is None:
        return
    held = {tensor.data_ptr(): name for name, tensor in tensors(teacher).items() if tensor.numel()}
    for name, parameter in student.named_parameters():
        if parameter.requires_grad and parameter.data_ptr() in held:
            raise UsageError(
                f"{name!r} shares its memory with the teacher's {held[parameter.data_ptr()]!r}",
                where="student",
                remedy="pass copy.deepcopy(module) as the teacher",
            )


def epoch_length(batches: Batches) -> int:
    """Return the number of batches of an epoch, which must be known."""
    length = batches.length()
    if length is None:
        raise UsageError("it does not know its length", where="data", remedy="pass steps= instead of epochs=")
    if not length:
        raise UsageError("there is no batch in it", where="data")
    return length


def signature(module: nn.Module) -> str:
    """Describe the names and shapes of a module's tensors in one line."""
    shapes = {name: list(tensor.shape) for name, tensor in tensors(module).items()}
    digest = hashlib.sha256(str(shapes).encode()).hexdigest()[:8]
    return f"{sum(tensor.numel() for tensor in tensors(module).values()):,} numbers in {len(shapes)} tensors ({digest})"
