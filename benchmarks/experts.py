"""Dense feed-forward layers to experts without training: quality by splitter and router, plain pruning beside them.

    python -m benchmarks.experts [--model gpt|vit|minilm] [--sparsity 25 50 75] [--windows 32] [--short | --latency]

The model's feed-forward layers become 8 experts (equal parts of the hidden entries) of which 6, 4 or 2 run for each
token, half of these always. CMoE's recipe is rates and analytic, ExpertWeaver's profiles and mean-gate, both without a
fit; the lines with `+ refit` fit the last product after routing. `pruned` keeps the same number of entries for all
tokens and fits the last product to those: the static control. `oracle` runs the experts that add most along the
output: no router can be run like that. `trained` is a linear router, `trained-mlp` one with a small network beside it,
both trained for some seconds on the calibration data; nothing else is.

The error is that of a layer's output on tokens held back, averaged over the layers; the quality that of the model: the
perplexity of the next character in files no training saw (gpt, lower is better), the accuracy in percent on 500
held-out images (vit, of digits), the recall of a function by its docstring (minilm, higher is better). Calibration: 32
windows of training text (gpt, or so many `--windows`), 512 images (vit), 128 functions (minilm).

With `--latency`, there are lines for emissions instead: how many times as fast as the dense layer the model's first
layer is on 1, 16 and 128 rows, and how far it is from the mask. That is processor time on one thread, the median of
runs taken in turns.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

import bevel
from benchmarks import pruning_accuracy_functions as functions
from benchmarks.experts_latency import EMITTED, ROWS, processor_times
from bevel import registry
from bevel.backends.onnxruntime import Session
from bevel.errors import BevelError
from bevel.ir.feed_forward import feed_forwards
from bevel.ir.groups import analyse
from bevel.ir.names import Names
from bevel.ir.split import Partition
from bevel.passes.base import Context
from bevel.passes.calibration import Calibration
from bevel.passes.execution import Execution
from bevel.passes.experts.emission import masked
from bevel.passes.experts.emissions import EMISSIONS, alone, distance
from bevel.passes.experts.evidence import Evidence, evidence
from bevel.passes.experts.mixture import Mixture
from bevel.passes.experts.trial import Fitted, attempt, pruning, write
from bevel.passes.experts.writing import from_rows
from tests import zoo

SPLITTERS, ROUTERS = registry.splitters(), registry.routers()
EXPERTS = 8
ACTIVE = {25: 6, 50: 4, 75: 2}
RECIPES = (("rates", "analytic", False), ("profiles", "mean-gate", False))
REFITTED = tuple(
    [(splitter, "logistic", True) for splitter in SPLITTERS if splitter != "contiguous"]
    + [("coactivation", router, True) for router in ("analytic", "mean-gate", "least-squares")]
    + [("coactivation", router, True) for router in ("trained", "trained-mlp", "oracle")]
)
SHORT = (
    *[("coactivation", router, True) for router in ("logistic", "trained", "trained-mlp", "oracle")],
    ("kmeans", "logistic", True),
)
WINDOWS = {"calibration": 32, "test": 64}


@dataclass
class Task:
    """A model, what to calibrate it on, and how good one like it is."""

    model: ir.Model
    feeds: list[dict[str, np.ndarray]]
    quality: Callable[[ir.Model], float]


def gpt(windows: int) -> Task:
    from benchmarks import character_gpt

    feeds = character_gpt.calibration(windows)
    return Task(character_gpt.model(), feeds, lambda model: character_gpt.perplexity(model, windows=WINDOWS["test"]))


def vit() -> Task:
    from benchmarks.pruning_accuracy import FOLDER
    from benchmarks.pruning_accuracy_tasks import networks

    (network,) = networks(0, FOLDER, ["digits-vit"])
    return Task(bevel.load(network.path), network.calibration, lambda model: 100 * network.test(model))


def minilm() -> Task:
    def answers(model, feeds):
        with Session(model, threads=1) as session:
            return np.concatenate([next(iter(session.run(feed).values())) for feed in feeds])

    model, parts = bevel.load(zoo.minilm()), functions.corpus()
    feeds = functions.feeds(parts["calibration"])
    return Task(model, feeds, lambda model: 100 * functions.recall(answers, parts["test"], model))


def lines(task: Task, sparsity: int, short: bool) -> Iterator[tuple[str, float, float]]:
    """Yield what was done, the mean error of a layer, and the quality of the model."""
    active = ACTIVE[sparsity]
    found = list(gathered(task))
    widths = {each.layer.name: active * each.layer.size // EXPERTS for each in found}
    results = [pruning(each, widths[each.layer.name], refit=True) for each in found]
    yield "pruned + refit", *measured(task, [(kept, fitted) for kept, fitted, _ in results], [e for *_, e in results])
    partitions: dict[tuple[str, str], Partition] = {}
    for splitter, router, refit in (*RECIPES, *(SHORT if short else REFITTED)):
        trials = []
        for each in found:
            key = splitter, each.layer.name
            shared, part = active // 2, each.layer.size // EXPERTS
            if key not in partitions:
                rng = np.random.default_rng(0)
                partitions[key] = SPLITTERS[splitter](each, EXPERTS - shared, shared * part, rng)
            chosen = ROUTERS[router](each, partitions[key], active - shared)
            trials.append(attempt(each, Mixture(partitions[key], chosen, active - shared), Execution(), refit=refit))
        name = f"{splitter}, {router}{' + refit' * refit}"
        yield name, *measured(task, [(each.mixture, each.fitted) for each in trials], [each.error for each in trials])


def speeds(found: Evidence, sparsity: int) -> Iterator[tuple[str, list[float], float]]:
    """Yield emissions of a layer, how many times as fast as the dense one they are, and how far off."""
    active, shared = ACTIVE[sparsity], ACTIVE[sparsity] // 2
    partition = SPLITTERS["random"](
        found, EXPERTS - shared, found.layer.size // EXPERTS * shared, np.random.default_rng(0)
    )
    mixture = Mixture(partition, ROUTERS["mean-gate"](found, partition, active - shared), active - shared)
    models, errors = {"dense": alone(found, mixture, None)}, {}
    for name, emission, integers in EMITTED:
        try:
            emit = EMISSIONS[emission].prepare(found, found.down, integers)
            models[name], errors[name] = alone(found, mixture, emit), distance(found, mixture, emit)[1]
        except BevelError:
            continue
    sessions = [Session(model, threads=1) for model in models.values()]
    given = [from_rows(np.resize(found.rows, (count, found.rows.shape[1])), found.layer) for count in ROWS]
    times = np.array([processor_times(sessions, {found.layer.input.name: rows}) for rows in given])
    for name, each in zip(models, times.T, strict=True):
        yield name, list(times[:, 0] / each), errors.get(name, 0.0)


def gathered(task: Task, model: ir.Model | None = None) -> Iterator[Evidence]:
    model = task.model.clone() if model is None else model
    context = Context(0, Calibration(lambda: task.feeds, "benchmark"), Execution(), samples=10**6)
    return evidence(model, feed_forwards(analyse(model))[0], context)


def measured(task: Task, layers: list[tuple[Mixture | np.ndarray, Fitted]], errors: list[float]) -> tuple[float, float]:
    """Put mixtures, or entries to keep, in the place of the layers, and return the mean error and the quality."""
    model = task.model.clone()
    feeds, task.feeds = task.feeds, task.feeds[:1]
    found = list(gathered(task, model))
    task.feeds = feeds
    for each, (what, fitted) in reversed(list(zip(found, layers, strict=True))):
        if isinstance(what, Mixture):
            write(each, fitted)
            masked(each.parts, what, Names(model))
        else:
            down = np.zeros_like(fitted.down)
            down[what] = fitted.down[what]
            write(each, Fitted(down, fitted.shift))
    return float(np.mean(errors)), task.quality(model)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("gpt", "vit", "minilm"), default="gpt")
    parser.add_argument("--sparsity", type=int, nargs="*", choices=ACTIVE, default=list(ACTIVE))
    parser.add_argument("--windows", type=int, default=WINDOWS["calibration"], help="of text to calibrate the gpt on")
    parser.add_argument("--short", action="store_true", help="the recipes, the trained routers and the oracle only")
    parser.add_argument("--latency", action="store_true", help="how fast each emission is, instead of the quality")
    options = parser.parse_args()
    task = gpt(options.windows) if options.model == "gpt" else {"vit": vit, "minilm": minilm}[options.model]()
    if options.latency:
        first = next(gathered(task))
        for sparsity in options.sparsity:
            print(
                f"\n{sparsity}% rest{'':15}" + "".join(f"{f'M={count}':>8}" for count in ROWS) + "    error", flush=True
            )
            for name, ratios, error in speeds(first, sparsity):
                print(f"  {name:20}" + "".join(f"{ratio:7.2f}x" for ratio in ratios) + f"{error:9.2g}", flush=True)
        return
    print(f"{options.model}, dense: {task.quality(task.model):.3f}", flush=True)
    for sparsity in options.sparsity:
        print(f"\n{sparsity}% of the hidden entries rest{'':20}error   quality", flush=True)
        for name, error, quality in lines(task, sparsity, options.short):
            print(f"  {name:40} {error:9.4f} {quality:9.3f}", flush=True)


if __name__ == "__main__":
    main()
