"""What 8 bits are judged on: a network's file, unlabelled inputs to calibrate with, and held-out ones."""

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

import bevel
from bevel.backends.onnxruntime import Session

Array = np.ndarray[Any, Any]
Feed = dict[str, Array]
Alike = Callable[[Any, Any], float]


def classes(output: Array) -> Array:
    return np.asarray(output.argmax(-1))


def directions(output: Array) -> Array:
    """Return vectors at length 1; the product of two is their cosine."""
    return np.asarray(output / np.linalg.norm(output, axis=-1, keepdims=True))


def reading(model: ir.Model, feeds: Sequence[Feed], read: Callable[[Array], Sequence[Any]]) -> list[Any]:
    """Return the answer to each sample, as `read` finds them in a batch of the first output."""
    with Session(model, threads=1) as session:
        return [answer for feed in feeds for answer in read(next(iter(session.run(feed).values())))]


@dataclass(frozen=True)
class Subject:
    """A network in floats, what it is calibrated with, and how it is judged: by its score, and by what is alike."""

    path: Path
    calibration: list[Feed]
    held: list[Feed]
    score: Callable[[ir.Model], float]
    read: Callable[[Array], Sequence[Any]] = classes
    alike: Mapping[str, Alike] = field(default_factory=lambda: {"agreement": operator.eq})

    @cached_property
    def original(self) -> list[Any]:
        return reading(bevel.load(self.path), self.held, self.read)

    def agreement(self, path: Path) -> dict[str, float]:
        """Return how far the answers of a model are the original's, on average, by each measure."""
        pairs = list(zip(self.original, reading(bevel.load(path), self.held, self.read), strict=True))
        return {name: float(np.mean([alike(*pair) for pair in pairs])) for name, alike in self.alike.items()}


@dataclass(frozen=True)
class Known:
    """Scores a model by how alike its answers are to what is known, on average."""

    feeds: Sequence[Feed]
    truth: Sequence[Any]
    read: Callable[[Array], Sequence[Any]] = classes
    alike: Alike = operator.eq

    def __call__(self, model: ir.Model) -> float:
        answers = reading(model, self.feeds, self.read)
        return float(np.mean([self.alike(*pair) for pair in zip(answers, self.truth, strict=True)]))
