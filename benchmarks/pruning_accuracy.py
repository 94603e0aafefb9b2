"""What pruning leaves of accuracy without any fine-tuning: every importance, with and without refit, at 2x and 3x.

    python -m benchmarks.pruning_accuracy [--only digits-residual ...] [--methods "obs + refit" ...] [--validation]

Each network is loaded, pruned to half and to a third of its multiply-accumulates by one `bevel.optimize`, and judged in
ONNX Runtime on held-out data. Calibration is 512 unlabelled images, or as many texts and files as
benchmarks/pruning_accuracy_tasks.py says; the rows of "no data" are given none. Networks of ours are trained with
several seeds, once: they are kept in `--folder`. `--validation` judges on the validation part instead of the test part,
which nothing here was chosen by.

It takes what `pip install pillow matplotlib` brings, beside requirements-dev.txt and requirements-models.txt.
"""

import argparse
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from statistics import mean

from rich.console import Console
from rich.table import Table

import bevel
from benchmarks.pruning_accuracy_tasks import TASKS, Measure, Network, Task, networks
from bevel.errors import BevelError
from bevel.ir.cost import cost

FACTORS = {2: 'target="macs=0.5x" samples=512', 3: 'target="macs=0.333x" samples=512'}
REFIT = " refit=true"
FOLDER = Path(__file__).parents[1] / ".pytest_cache" / "pruning_accuracy"


@dataclass(frozen=True)
class Method:
    """A way to prune: options of `prune-channels`, and whether it is given data."""

    options: str
    data: bool = True

    def pipeline(self, factor: int) -> str:
        return f"prune-channels{{{FACTORS[factor]} {self.options}}}"


SCORES = {
    "magnitude": Method("importance=magnitude"),
    "wanda": Method("importance=wanda"),
    "flap": Method("importance=flap"),
    "obs": Method("importance=obs"),
    "obs, no data": Method("importance=obs", data=False),
}
METHODS = {
    name + refit.replace(REFIT, " + refit"): replace(method, options=method.options + refit)
    for name, method in SCORES.items()
    for refit in ("", REFIT)
}
ORIGINAL = "original"


@dataclass(frozen=True)
class Goal:
    """The share of the original's accuracy that a method should keep on convolutional networks."""

    method: str
    factor: int
    kept: float


GOALS = (Goal("obs + refit", 2, 0.99), Goal("obs + refit", 3, 0.95), Goal("obs, no data + refit", 2, 0.97))
CONVOLUTIONAL = ("residual", "plain", "depthwise")


@dataclass(frozen=True)
class Trial:
    """A network pruned in one way: its score and its share of MACs, or why it was refused."""

    method: str
    factor: int
    score: float = float("nan")
    macs: float = float("nan")
    seconds: float = 0.0
    refused: str = ""


def trials(name: str, seed: int, folder: Path, methods: Sequence[str], validation: bool) -> list[Trial]:
    """Prune the network of a task and a seed in every one of the ways."""
    (network,) = networks(seed, folder, [name])
    measure = network.validation if validation else network.test
    original = Trial(ORIGINAL, 1, measure(bevel.load(network.path)), 1.0)
    return [original, *(trial(network, way, factor, measure) for way in methods for factor in FACTORS)]


def trial(network: Network, way: str, factor: int, measure: Measure) -> Trial:
    method, start = METHODS[way], time.perf_counter()
    model = bevel.load(network.path)
    before = cost(model).macs
    try:
        bevel.optimize(model, method.pipeline(factor), calibration=network.calibration if method.data else None)
    except BevelError as error:
        return Trial(way, factor, refused=str(error))
    seconds = time.perf_counter() - start
    return Trial(way, factor, measure(model), cost(model).macs / before, seconds)


def table(name: str, found: Sequence[Trial]) -> Table:
    """Return a row for every method: mean and worst seed, and the MACs that are left, at every factor."""
    task = TASKS[name]
    headings = [heading for factor in FACTORS for heading in (f"{factor}x", "worst", "MACs")]
    original = spread(task, chosen(found, ORIGINAL, 1))
    made = Table("method", *headings, "seconds", title=f"{name}: {task.score}, original {' / '.join(original)}")
    for method in dict.fromkeys(trial.method for trial in found if trial.method != ORIGINAL):
        rows = [chosen(found, method, factor) for factor in FACTORS]
        cells = [cell for row in rows for cell in (*spread(task, row), share(row))]
        made.add_row(method, *cells, f"{mean(trial.seconds for row in rows for trial in row):.1f}")
    return made


def chosen(found: Sequence[Trial], method: str, factor: int) -> list[Trial]:
    return [trial for trial in found if (trial.method, trial.factor) == (method, factor)]


def spread(task: Task, row: Sequence[Trial]) -> tuple[str, str]:
    """Return mean and worst of the seeds."""
    scores = [trial.score for trial in row]
    worst = min(scores, key=lambda score: score * task.better)
    return format(mean(scores), task.format), format(worst, task.format)


def share(row: Sequence[Trial]) -> str:
    return f"{mean(trial.macs for trial in row):.3f}x"


def verdicts(name: str, found: Sequence[Trial]) -> Iterator[str]:
    """Say which goals are kept, and by how much."""
    if not name.endswith(CONVOLUTIONAL):
        return
    original = mean(trial.score for trial in chosen(found, ORIGINAL, 1))
    for goal in GOALS:
        row = chosen(found, goal.method, goal.factor)
        if not row:
            continue
        kept = mean(trial.score for trial in row) / original
        said = "kept" if kept >= goal.kept else "MISSED"
        yield f"{said}: {name}, {goal.method}, {goal.factor}x: {kept:.1%} of the original's, goal {goal.kept:.0%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=3, help="of the networks that are trained here")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of trained networks")
    parser.add_argument("--validation", action="store_true", help="judge on the validation part")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    options = parser.parse_args()
    runs = [(name, seed) for name in options.only for seed in range(options.seeds if TASKS[name].trained else 1)]
    console, goals = Console(width=110), list[str]()
    with ProcessPoolExecutor(options.jobs, get_context("spawn")) as pool:
        waiting = {run: pool.submit(trials, *run, options.folder, options.methods, options.validation) for run in runs}
        for name in options.only:
            found = [trial for run in runs if run[0] == name for trial in waiting[run].result()]
            console.print(table(name, found))
            for line in sorted({trial.refused for trial in found if trial.refused}):
                console.print(f"refused: {line}")
            goals += verdicts(name, found)
    console.print("\n".join(["of seeds: the mean, and the worst; MACs: what is left; seconds: pruning", *goals]))


if __name__ == "__main__":
    main()
