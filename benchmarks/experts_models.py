"""The models of `benchmarks.experts`: what to calibrate each on, and how good one like it is."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

import bevel
from benchmarks import pruning_accuracy_functions as functions
from bevel.backends.onnxruntime import Session
from bevel.ir.feed_forward import feed_forwards
from bevel.ir.groups import analyse
from bevel.passes.base import Context
from bevel.passes.calibration import Calibration
from bevel.passes.execution import Execution
from bevel.passes.experts.evidence import Evidence, evidence
from tests import zoo

WINDOWS = {"calibration": 32, "test": 64}


@dataclass
class Task:
    """A model, what to calibrate it on, and how good one like it is, in words and numbers."""

    model: ir.Model
    feeds: list[dict[str, np.ndarray]]
    quality: Callable[[ir.Model], float]
    unit: str


def gpt(windows: int, test: int, seed: int = 0) -> Task:
    from benchmarks import character_gpt

    feeds = character_gpt.calibration(windows)
    return Task(
        character_gpt.model(seed),
        feeds,
        lambda model: character_gpt.perplexity(model, windows=test),
        "perplexity, lower is better",
    )


def vit() -> Task:
    from benchmarks.pruning_accuracy import FOLDER
    from benchmarks.pruning_accuracy_tasks import networks

    (network,) = networks(0, FOLDER, ["digits-vit"])
    return Task(
        bevel.load(network.path), network.calibration, lambda model: 100 * network.test(model), "accuracy in percent"
    )


def minilm() -> Task:
    def answers(model, feeds):
        with Session(model, threads=1) as session:
            return np.concatenate([next(iter(session.run(feed).values())) for feed in feeds])

    model, parts = bevel.load(zoo.minilm()), functions.corpus()
    feeds = functions.feeds(parts["calibration"])
    return Task(model, feeds, lambda model: 100 * functions.recall(answers, parts["test"], model), "recall in percent")


def task(name: str, windows: int, test: int) -> Task:
    return gpt(windows, test) if name == "gpt" else {"vit": vit, "minilm": minilm}[name]()


def gathered(task: Task, model: ir.Model | None = None, feeds: int | None = None) -> Iterator[Evidence]:
    """Yield what the feed-forward layers of a task's model, or of one like it, read: of all feeds, or the first."""
    model = task.model.clone() if model is None else model
    context = Context(0, Calibration(lambda: task.feeds[:feeds], "benchmark"), Execution(), samples=10**6)
    return evidence(model, feed_forwards(analyse(model))[0], context)
