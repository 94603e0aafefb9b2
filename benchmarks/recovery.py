"""Prune by half, recover by distillation, export, run in ONNX Runtime: what is left of accuracy and perplexity.

    python benchmarks/recovery.py [--only CNN ViT GPT] [--seeds 3]

Each network is trained here on its training data, loaded, pruned by `prune-channels{ratio=0.5}`, turned into a module
again, and trained to answer as the original does, on the same training data without its labels; nothing is chosen by a
look at held-out data. Every figure is measured in ONNX Runtime on held-out data: accuracy on 500 images of
scikit-learn's digits, perplexity of the next character on 64 kB from files of Python's standard library that no
training saw. Every seed is a row: it decides the weights that training starts from, and the order of the data.
"""

import argparse
import io
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from recovery_data import LENGTH, VOCABULARY, Images, Windows, accuracy, digits, perplexity, source_code
from recovery_models import CNN, GPT, ViT
from rich.console import Console
from rich.table import Table
from torch import nn

import bevel
from bevel.backends.onnxruntime import Session, latencies
from bevel.ir.cost import cost

PIPELINE = "prune-channels{ratio=0.5}"
HELD_OUT_WINDOWS = 512  # of 128 characters

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Subject:
    """A network, its data, and how it is trained and recovered. `score` says how good logits are for labels."""

    build: Callable[[], nn.Module]
    data: Iterable[Any]
    held_out: tuple[Array, Array]
    score: Callable[[Array, Array], float]
    format: str
    input: str
    axes: dict[int, str]
    batch: int  # of latency
    training: dict[str, Any]
    recovery: dict[str, Any]

    def load(self, module: nn.Module) -> ir.Model:
        example = torch.from_numpy(self.held_out[0][:2])
        return bevel.load(module.eval(), (example,), dynamic_shapes={self.input: self.axes})


@dataclass(frozen=True)
class Trial:
    """ONNX files of a network before, pruned, and recovered; seconds of training and of recovery."""

    name: str
    seed: int
    files: tuple[bytes, bytes, bytes]
    seconds: tuple[float, float]


@cache
def subjects() -> dict[str, Subject]:
    return {
        "CNN": of_digits(CNN, training={"epochs": 30, "lr": 5e-3}, recovery={"epochs": 30, "lr": 2e-3}),
        "ViT": of_digits(ViT, training={"epochs": 60, "lr": 2e-3}, recovery={"epochs": 40, "lr": 1e-3}),
        "GPT": of_source_code(),
    }


def of_digits(build: Callable[[], nn.Module], training: dict[str, Any], recovery: dict[str, Any]) -> Subject:
    train, (images, labels) = digits()
    held_out = images.numpy(), labels.numpy()
    return Subject(build, Images(*train), held_out, accuracy, ".1%", "image", {0: "batch"}, 64, training, recovery)


def of_source_code() -> Subject:
    text, unseen = source_code()
    windows = unseen[: HELD_OUT_WINDOWS * (LENGTH + 1)].view(-1, LENGTH + 1).numpy()
    return Subject(
        build=lambda: GPT(VOCABULARY, LENGTH),
        data=Windows(text, batches=100),
        held_out=(windows[:, :-1], windows[:, 1:]),
        score=perplexity,
        format=".2f",
        input="ids",
        axes={0: "batch", 1: "length"},
        batch=1,
        training={"epochs": 20, "lr": 3e-3},
        recovery={"epochs": 7, "lr": 2e-3, "temperature": 1.0},
    )


def trial(name: str, seed: int) -> Trial:
    """Train, prune and recover a network, in a process of its own on one thread."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    subject = subjects()[name]
    original, start = subject.build(), time.perf_counter()
    bevel.finetune(original, None, subject.data, labels=-1, seed=seed, **subject.training)
    trained = time.perf_counter()
    before, pruned = subject.load(original), subject.load(original)
    bevel.optimize(pruned, PIPELINE)
    student = bevel.to_torch(pruned)
    pruned_at = time.perf_counter()
    bevel.finetune(student, original, subject.data, labels=-1, label_weight=0.0, seed=seed, **subject.recovery)
    seconds = trained - start, time.perf_counter() - pruned_at
    return Trial(name, seed, (file(before), file(pruned), file(subject.load(student))), seconds)


def file(model: ir.Model) -> bytes:
    stream = io.BytesIO()
    bevel.save(model, stream)
    return stream.getvalue()


def row(trial: Trial) -> tuple[str, ...]:
    """Measure the three files in ONNX Runtime."""
    subject = subjects()[trial.name]
    models = [bevel.load(content) for content in trial.files]
    sessions = [Session(model, threads=1) for model in models]
    scores = [score(session, subject) for session in sessions]
    feed = {subject.input: subject.held_out[0][: subject.batch]}
    before, after = latencies([sessions[0], sessions[2]], feed, runs=200)
    full, pruned = cost(models[0]).parameters, cost(models[2]).parameters
    return (
        trial.name,
        str(trial.seed),
        f"{full:,}",
        f"{pruned:,}  {pruned / full:.2f}x",
        *(format(figure, subject.format) for figure in scores),
        f"{after / before:.2f}x",
        "{:.0f} + {:.0f}".format(*trial.seconds),
    )


def score(session: Session, subject: Subject) -> float:
    inputs, labels = subject.held_out
    parts = [session.run({subject.input: inputs[start : start + 64]}) for start in range(0, len(inputs), 64)]
    return subject.score(np.concatenate([next(iter(part.values())) for part in parts]), labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=subjects(), default=list(subjects()))
    parser.add_argument("--seeds", type=int, default=3, help="of the digits; the GPT is trained once")
    options = parser.parse_args()
    runs = [(name, seed) for name in options.only for seed in range(1 if name == "GPT" else options.seeds)]
    runs.sort(key=lambda run: run[0] != "GPT")  # the longest first
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        trials = list(pool.map(trial, *zip(*runs, strict=True)))
    table = Table(
        *("network", "seed", "parameters", "pruned", "before", "pruned", "recovered", "latency", "seconds"),
        title="Pruned by half, then distilled: held-out accuracy (digits) and perplexity (GPT) in ONNX Runtime",
    )
    for each in sorted(trials, key=lambda each: options.only.index(each.name)):
        table.add_row(*row(each))
    Console(width=130).print(table)
    print("latency: after / before, on one thread, 64 images or 128 characters; seconds: training + recovery")


if __name__ == "__main__":
    main()
