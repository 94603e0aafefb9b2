"""What a run of fine-tuning did, point by point."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Point:
    """How far a run was after `step` steps: the mean loss since the point before, the rate, the validation's score.

    Point 0 is before the first step, and has no loss.

    >>> print(Point(step=20, loss=0.25, lr=1e-3, score=0.975))
    step     20  loss      0.25  lr    0.001  score 0.975
    """

    step: int
    loss: float | None
    lr: float
    score: float | None = None

    def __str__(self) -> str:
        score = "" if self.score is None else f"  score {self.score:.4g}"
        loss = "-" if self.loss is None else f"{self.loss:.4g}"
        return f"step {self.step:>6}  loss {loss:>9}  lr {self.lr:8.2g}{score}"


@dataclass(frozen=True)
class Recovery:
    """What a run of `finetune` did.

    `steps` were made of the `planned` ones. The module has the weights that it had after `best_step`: the last step,
    unless there were evaluations. `seconds` count from the last resumption.
    """

    history: tuple[Point, ...]
    steps: int
    planned: int
    best_step: int
    seconds: float

    @property
    def stopped_early(self) -> bool:
        """Tell whether patience ran out."""
        return self.steps < self.planned

    @property
    def score(self) -> float | None:
        """Return the score of the weights that the module has now; None without evaluations."""
        return next((point.score for point in self.history if point.step == self.best_step), None)

    def __str__(self) -> str:
        end = f"{self.steps} of {self.planned} steps in {self.seconds:.0f} s, weights of step {self.best_step}"
        return "\n".join([*map(str, self.history), end])
