"""What is pruned, and how it is judged: networks that are trained here once, and trained ones that packages ship.

    for network in networks(seed=0, folder=Path("trained")):
        model = bevel.load(network.path)
        bevel.optimize(model, "prune-channels{ratio=0.3}", calibration=network.calibration)
        network.validation(model)                   # 0.97; network.test is for what was chosen by looking at this

Training, calibration, validation and test share no image, text or file, except that the 512 unlabelled calibration
images are among those that the network was trained on, as they mostly are. A trained network is an ONNX file in
`folder`, with its BatchNorm as it was; delete it to train anew.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

import bevel
from benchmarks import pruning_accuracy_files as files
from benchmarks import pruning_accuracy_functions as functions
from benchmarks import pruning_accuracy_glyphs as letters
from benchmarks import pruning_accuracy_models as models
from benchmarks.recovery_data import (
    LENGTH,
    SPLIT_SEED,
    VOCABULARY,
    Images,
    Windows,
    accuracy,
    digits,
    perplexity,
    source_code,
)
from benchmarks.recovery_models import GPT, ViT
from bevel.backends.onnxruntime import Session

Array = np.ndarray[Any, Any]
Feed = dict[str, Array]
Measure = Callable[[ir.Model], float]

CALIBRATION_IMAGES, VALIDATION_IMAGES = 512, 300
WINDOWS = {"calibration": 128, "validation": 256, "test": 512}  # of 128 characters
GLYPHS = {"calibration": 512, "validation": 1000, "test": 2000}
BATCH = 64


@dataclass(frozen=True)
class Network:
    """A trained network: its file, unlabelled inputs, and what says how good a model is on held-out data."""

    name: str
    path: Path
    calibration: list[Feed]
    validation: Measure
    test: Measure


@dataclass(frozen=True)
class Task:
    """A kind of network. `format` is of its score; `better` is 1 if more is better, else -1; `trained` has seeds."""

    network: Callable[[int, Path], Network]
    score: str = "accuracy"
    format: str = ".1%"
    better: int = 1
    trained: bool = True


def networks(seed: int, folder: Path, only: Iterable[str] = ()) -> Iterator[Network]:
    """Yield the networks of one seed, trained now if `folder` does not have them."""
    for name in only or TASKS:
        yield TASKS[name].network(seed, folder)


@dataclass(frozen=True)
class Labelled:
    """Judges a model by its answers to inputs whose labels are known."""

    inputs: Array
    labels: Array
    score: Callable[[Array, Array], float]

    def __call__(self, model: ir.Model) -> float:
        return self.score(answers(model, batches(self.inputs, model.graph.inputs[0].name or "")), self.labels)


@dataclass(frozen=True)
class Agreement:
    """Judges a model by how often its first answer is the original's."""

    original: Path
    inputs: Array

    def __call__(self, model: ir.Model) -> float:
        return Labelled(self.inputs, self.labels, accuracy)(model)

    @cached_property
    def labels(self) -> Array:
        original = bevel.load(self.original)
        return answers(original, batches(self.inputs, original.graph.inputs[0].name or "")).argmax(-1)


def answers(model: ir.Model, feeds: Iterable[Feed]) -> Array:
    """Return the first output for all feeds, as ONNX Runtime computes it."""
    with Session(model, threads=1) as session:
        return np.concatenate([next(iter(session.run(feed).values())) for feed in feeds])


def batches(inputs: Array, name: str) -> list[Feed]:
    return [{name: inputs[start : start + BATCH]} for start in range(0, len(inputs), BATCH)]


@dataclass(frozen=True)
class Data:
    """What a network is trained on, calibrated with, validated and tested on; held-out data is inputs and labels."""

    training: Iterable[tuple[Tensor, Tensor]]
    calibration: Tensor
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


@cache
def digit_images() -> Data:
    (images, labels), test = digits()
    rest, held, rest_labels, held_labels = train_test_split(
        images, labels, test_size=VALIDATION_IMAGES, stratify=labels, random_state=SPLIT_SEED
    )
    return Data(Images(rest, rest_labels), rest[:CALIBRATION_IMAGES], (held, held_labels), test)


@cache
def letter_images() -> Data:
    drawn = {part: letters.glyphs(count, seed) for seed, (part, count) in enumerate(GLYPHS.items())}
    return Data(letters.Glyphs(batches=100), drawn["calibration"][0], drawn["validation"], drawn["test"])


@cache
def text() -> Data:
    seen, unseen = source_code()
    held = unseen.split((LENGTH + 1) * (WINDOWS["test"] + WINDOWS["validation"]))[0].view(-1, LENGTH + 1)
    inputs, labels = held[:, :-1], held[:, 1:]
    test, validation = slice(WINDOWS["test"]), slice(WINDOWS["test"], None)
    starts = torch.randint(len(seen) - LENGTH, (WINDOWS["calibration"], 1), generator=torch.Generator().manual_seed(0))
    return Data(
        Windows(seen, batches=100),
        seen[starts + torch.arange(LENGTH)],
        (inputs[validation], labels[validation]),
        (inputs[test], labels[test]),
    )


def trained(
    name: str,
    build: Callable[[], nn.Module],
    data: Callable[[], Data],
    score: Callable[[Array, Array], float],
    axes: Mapping[int, str],
    training: Mapping[str, Any],
    seed: int,
    folder: Path,
) -> Network:
    """Return a network of ours, trained on one thread if `folder` does not have it."""
    path = folder / f"{name}-{seed}.onnx"
    part = data()
    if not path.exists():
        torch.set_num_threads(1)
        torch.manual_seed(seed)
        module = build()
        bevel.finetune(module, None, part.training, labels=-1, seed=seed, **training)
        keep(bevel.load(module.eval(), (part.test[0][:2],), dynamic_shapes=(dict(axes),)), path)
    held = {kind: Labelled(inputs.numpy(), labels.numpy(), score) for kind, (inputs, labels) in held_out(part)}
    feeds = batches(part.calibration.numpy(), bevel.load(path).graph.inputs[0].name or "")
    return Network(f"{name}-{seed}", path, feeds, held["validation"], held["test"])


def held_out(part: Data) -> Sequence[tuple[str, tuple[Tensor, Tensor]]]:
    return ("validation", part.validation), ("test", part.test)


def keep(model: ir.Model, path: Path) -> None:
    """Write a model so that another process sees the whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as draft:
        bevel.save(model, Path(draft) / path.name)
        (Path(draft) / path.name).replace(path)


def images(
    name: str, build: Callable[[], nn.Module], data: Callable[[], Data] = digit_images, **training: float
) -> tuple[str, Task]:
    return name, Task(partial(trained, name, build, data, accuracy, {0: "batch"}, training))


def of_letters(build: Callable[..., nn.Module]) -> Callable[[], nn.Module]:
    return partial(build, letters.CLASSES, stride=2)


def minilm(_seed: int, _folder: Path) -> Network:
    """The sentence encoder: it finds the function that a docstring was written for."""
    from tests import zoo

    corpus = functions.corpus()
    search = {part: partial(functions.recall, answers, corpus[part]) for part in ("validation", "test")}
    return Network("minilm", zoo.minilm(), functions.feeds(corpus["calibration"]), search["validation"], search["test"])


def magika(_seed: int, _folder: Path) -> Network:
    """The file type detector: labels are what the original says."""
    from tests import zoo

    path, found = zoo.magika(), files.contents()
    name = bevel.load(path).graph.inputs[0].name or ""
    agrees = {part: Agreement(path, found[part]) for part in ("validation", "test")}
    return Network("magika", path, batches(found["calibration"], name), agrees["validation"], agrees["test"])


TASKS: dict[str, Task] = dict(
    [
        images("digits-residual", partial(models.residual, 10), epochs=30, lr=5e-3),
        images("digits-plain", partial(models.plain, 10), epochs=30, lr=5e-3),
        images("digits-depthwise", partial(models.depthwise, 10), epochs=40, lr=5e-3),
        images("digits-vit", ViT, epochs=100, lr=2e-3),
        images("letters-residual", of_letters(models.residual), letter_images, epochs=8, lr=5e-3),
        images("letters-plain", of_letters(models.plain), letter_images, epochs=8, lr=5e-3),
        images("letters-depthwise", of_letters(models.depthwise), letter_images, epochs=8, lr=5e-3),
    ],
    gpt=Task(
        partial(
            trained,
            "gpt",
            partial(GPT, VOCABULARY, LENGTH),
            text,
            perplexity,
            {0: "batch", 1: "length"},
            {"epochs": 10, "lr": 3e-3},
        ),
        "perplexity",
        ".2f",
        -1,
    ),
    minilm=Task(minilm, "recall@1", trained=False),
    magika=Task(magika, "agreement", trained=False),
)
