"""Optimize the built-in model, and print what it costs and how often it is right, before and after.

    python -m bevel.demo

Accuracy is of 500 test images that neither the training nor the verification saw. Nothing is trained again here.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from rich.console import Console
from rich.table import Table

from bevel.backends.files import save
from bevel.backends.onnxruntime import Session, latency
from bevel.frontends.onnx import load
from bevel.ir.cost import cost
from bevel.models import path
from bevel.passes.pipeline import optimize
from bevel.report import Report, count, error_text, factor, size

PIPELINES = (
    "fold",
    "fold,prune-channels{ratio=0.25}",
    "fold,prune-channels{ratio=0.5}",
    "fold,prune-channels{ratio=0.6}",
)
COLUMNS = ("passes", "parameters", "file", "MACs an image", "latency", "accuracy", "verified to")
BATCH = 64  # images a run, for latency and for verification
ROUNDS, RUNS = 20, 10  # of latency: the models take turns, and the best round counts
WIDTH = 130

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Digits:
    """Test images `[n, 1, 8, 8]` with labels `[n]`, and other images to verify on."""

    image: Array
    label: Array
    calibration: Array

    @classmethod
    def shipped(cls) -> "Digits":
        """Read the images that come with the package."""
        with np.load(path("digits.npz")) as file:
            return cls(file["image"], file["label"], file["calibration"])

    def feeds(self) -> Iterator[dict[str, Array]]:
        """Yield the calibration images in batches."""
        for start in range(0, len(self.calibration), BATCH):
            yield {"image": self.calibration[start : start + BATCH]}


@dataclass(frozen=True)
class Figures:
    """What a model costs and what it is worth: bytes of its file, milliseconds a batch, part of test images right."""

    parameters: int
    file: int
    macs: int
    accuracy: float
    milliseconds: float

    @classmethod
    def of(cls, model: ir.Model, digits: Digits, milliseconds: float) -> "Figures":
        """Measure `model`, whose latency is known."""
        with Session(model) as session:
            (logits,) = session.run({"image": digits.image}).values()
        total = cost(model)
        right = float((logits.argmax(1) == digits.label).mean())
        return cls(total.parameters, saved_bytes(model), total.macs, right, milliseconds)

    def row(self, before: "Figures") -> tuple[str, ...]:
        """Write the figures, each with its ratio to those of `before`."""
        return (
            f"{count(self.parameters)}  {factor(self.parameters, before.parameters)}",
            f"{size(self.file)}  {factor(self.file, before.file)}",
            f"{count(self.macs)}  {factor(self.macs, before.macs)}",
            f"{self.milliseconds:.2f} ms  {factor(self.milliseconds, before.milliseconds)}",
            f"{self.accuracy:.1%}",
        )


def latencies(models: Sequence[ir.Model], feed: Mapping[str, Array]) -> list[float]:
    """Return each model's milliseconds for `feed` on one thread, in turns so that a busy machine slows all alike."""
    with ExitStack() as stack:
        sessions = [stack.enter_context(Session(model, threads=1)) for model in models]
        rounds = [[latency(session, feed, runs=RUNS) for session in sessions] for _ in range(ROUNDS)]
    return [min(times) for times in zip(*rounds, strict=True)]


def saved_bytes(model: ir.Model) -> int:
    """Return the size of the file that `model` would be saved to."""
    stream = io.BytesIO()
    save(model, stream)
    return len(stream.getvalue())


def main() -> None:
    """Print the table: the model as shipped, then after each pipeline, each from the shipped model anew."""
    digits = Digits.shipped()
    source = path("digits.onnx")
    models = [load(source) for _ in range(1 + len(PIPELINES))]
    reports = [
        optimize(model, text, calibration=digits.feeds) for model, text in zip(models[1:], PIPELINES, strict=True)
    ]
    times = latencies(models, {"image": digits.image[:BATCH]})
    figures = [Figures.of(model, digits, time) for model, time in zip(models, times, strict=True)]
    table = Table(
        *COLUMNS,
        title=f"{source.name}: latency of {BATCH} images on one thread, accuracy on {len(digits.label)} test images",
    )
    table.add_row("(as shipped)", *figures[0].row(figures[0]), "")
    for text, after, report in zip(PIPELINES, figures[1:], reports, strict=True):
        table.add_row(text.replace(",", "\n"), *after.row(figures[0]), verdicts(report))
    table.columns[0].no_wrap = True
    Console(width=WIDTH).print(table)
    print("Verified to: each pass's promise, and the largest relative error against it, on 200 other images.")
    print("The network was trained so that half of its channels fade; an ordinary one loses accuracy sooner.")


def verdicts(report: Report) -> str:
    """Write every pass's promise with the error measured against it, a line each."""
    return "\n".join(f"{step.promise.partition(' ')[0]} {error_text(step.error)}" for step in report)


if __name__ == "__main__":
    main()
