"""The loop of fine-tuning: batches, losses, steps, points of history, checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from bevel.backends.torch.finetuning.chance import random_state, random_state_kept, set_random_state
from bevel.backends.torch.finetuning.data import Batch, Batches
from bevel.backends.torch.finetuning.history import Point, Recovery
from bevel.backends.torch.finetuning.loss import Distillation, Loss
from bevel.backends.torch.finetuning.steps import Updates
from bevel.backends.torch.finetuning.validation import Validation
from bevel.backends.torch.finetuning.weights import Checkpoint, copied, restore, tensors
from bevel.backends.torch.state import modes_kept
from bevel.errors import TrainingDiverged, UsageError

Mode: TypeAlias = Literal["train", "eval"]

Progress: TypeAlias = Callable[[str, int, int], object]
"""Is told what is going on, how many steps are done, and of how many."""


@dataclass
class Loop:
    """A run under way: what it works with, then where it is."""

    student: nn.Module
    teacher: nn.Module | None
    batches: Batches
    objective: Loss
    updates: Updates
    validation: Validation
    checkpoint: Checkpoint | None
    progress: Progress
    seed: int
    mode: Mode
    evaluate_every: int | None
    checkpoint_every: int | None

    step: int = 0
    epoch: int = 0
    position: int = 0
    losses: list[float] = field(default_factory=list)
    history: list[Point] = field(default_factory=list)
    resumed: dict[str, Any] | None = None

    def run(self) -> Recovery:
        """Run to the end, from the checkpoint if there is one; modes and random generators are left as they were."""
        start = time.perf_counter()
        with modes_kept(*self._modules()), random_state_kept(self.batches.generators):
            self._resume()
            self._modes()
            if not self.resumed:
                self._check_batch()
                if self.validation.evaluate is not None:
                    self._note()
            while not self._finished():
                self._epoch()
        self.student.zero_grad()
        self.validation.finish(self.student)
        best = self.step if self.validation.evaluate is None else self.validation.best_step
        return Recovery(tuple(self.history), self.step, self._total, best, time.perf_counter() - start)

    @property
    def _total(self) -> int:
        return self.updates.schedule.steps

    def _modules(self) -> list[nn.Module]:
        return [self.student] if self.teacher is None else [self.student, self.teacher]

    def _finished(self) -> bool:
        return self.step >= self._total or self.validation.exhausted

    def _modes(self) -> None:
        """Set train and eval modes."""
        if self.teacher is not None:
            self.teacher.eval()
        self.student.train(self.mode == "train")

    def _check_batch(self) -> None:
        """Refuse a first batch that the modules do not take, or outputs that the loss makes no sense for."""
        batch = next(self.batches.epoch(self.seed, 0), None)
        if batch is None:
            raise UsageError("there is no batch in it", where="data")
        for module in self._modules():
            batch.check(module)
        with modes_kept(self.student), self.updates.autocast():
            self.student.eval()  # statistics of normalisations stay as they are
            returned, taught = batch.call(self.student), self._taught(batch)
            if isinstance(self.objective, Distillation):
                self.objective.check(returned, taught, batch.labels)
            loss = self.objective(returned, taught, batch.labels)
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
            raise UsageError(
                "it returned no single number that depends on the student's parameters",
                where="loss",
                remedy="return a tensor of one element, computed from the student's output without detaching it",
            )

    def _epoch(self) -> None:
        """Go through the data once, or through what is left of an interrupted epoch, or until the run is finished."""
        batches = self.batches.epoch(self.seed, self.epoch, skip=self.position)
        if self.resumed and self.position:
            set_random_state(self.resumed["random"], self.batches.generators)
        self.resumed = None
        for batch in batches:
            self._take(batch)
            if self._finished():
                break
        else:
            if not self.position:
                raise UsageError(f"there is no batch in it in epoch {self.epoch}", where="data")
            self.epoch, self.position = self.epoch + 1, 0
        if self.evaluate_every is None or self._finished():
            self._note()
        if self.checkpoint_every is None or self._finished():
            self._save()

    def _take(self, batch: Batch) -> None:
        """Make one step, and what is due after it."""
        self.losses.append(self._update(batch))
        self.step, self.position = self.step + 1, self.position + 1
        self.progress("finetune", self.step, self._total)
        if self.evaluate_every and self.step % self.evaluate_every == 0:
            self._note()
        if self.checkpoint_every and self.step % self.checkpoint_every == 0:
            self._save()

    def _update(self, batch: Batch) -> float:
        """Change the weights by one step and return the loss; leave them as they were where it is not finite."""
        statistics = copied(dict(self.student.named_buffers()))
        with self.updates.autocast():
            loss = self.objective(batch.call(self.student), self._taught(batch), batch.labels)
        value = loss.item()
        if math.isfinite(value) and self.updates.apply(loss, self.step):
            return value
        restore(self.student, self.validation.weights or statistics)
        raise TrainingDiverged(
            f"the loss is {value:g}" if not math.isfinite(value) else f"a gradient is not finite (loss {value:g})",
            where=f"step {self.step + 1} of {self._total}, batch {self.position} of epoch {self.epoch}",
            remedy=f"look for NaN in that batch; else lower lr (now {self.updates.schedule.lr:g}), raise warmup, or "
            'choose precision="float32"',
        )

    @torch.no_grad()
    def _taught(self, batch: Batch) -> Any:
        return None if self.teacher is None else batch.call(self.teacher)

    def _note(self) -> None:
        """Add a point to the history, once a step."""
        if self.history and self.history[-1].step == self.step:
            return
        score = self.validation.judge(self.student, self.step)
        loss = fmean(self.losses) if self.losses else None
        self.history.append(Point(self.step, loss, self.updates.schedule.at(max(self.step - 1, 0)), score))
        self.losses.clear()

    def _save(self) -> None:
        """Write everything that a later run needs to go on exactly from here."""
        if self.checkpoint is None:
            return
        own = {name: getattr(self, name) for name in ("step", "epoch", "position", "losses")}
        self.checkpoint.save(
            {
                "own": own,
                "history": [asdict(point) for point in self.history],
                "weights": dict(tensors(self.student)),
                "updates": self.updates.state(),
                "validation": self.validation.state(),
                "random": random_state(self.batches.generators),
            }
        )

    def _resume(self) -> None:
        """Go on from the checkpoint, if there is one."""
        self.resumed = self.checkpoint.load() if self.checkpoint is not None else None
        if self.resumed is None:
            return
        for name, value in self.resumed["own"].items():
            setattr(self, name, value)
        self.history = [Point(**point) for point in self.resumed["history"]]
        restore(self.student, self.resumed["weights"])
        self.updates.set_state(self.resumed["updates"])
        self.validation.set_state(self.resumed["validation"])
