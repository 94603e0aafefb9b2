"""Dense feed-forward layers to experts without training: quality by splitter and router, plain pruning beside them.

    python -m benchmarks.experts [--model gpt|vit|minilm] [--sparsity 25 50 75] [--windows 32] [--test 64]
                                 [--only PATTERN ...] [--minutes 11] [--write docs/experts.md | --latency]

The model's feed-forward layers become 8 experts (equal parts of the hidden entries) of which 6, 4 or 2 run for each
token, half of these always. CMoE's recipe is rates and analytic, ExpertWeaver's profiles and mean-gate, both without a
fit; the lines with `+ refit` fit the last product after routing. `pruned` keeps the same number of entries for all
tokens and fits the last product to those: the static control. `oracle` computes all experts and runs those that leave
the layer's output nearest to that of all, on what the layer reads in the running model: no router can be run like that.
It is best for each layer before the fit, not for the model. `trained` is a linear router, `trained-mlp` one with a
small network beside it, both trained for some seconds on the calibration data; nothing else is.

`active` is the share of the layers' parameters that a token runs, routers included. The error is that of a layer's
output on tokens held back, averaged over the layers; the quality that of the model: the perplexity of the next
character in files no training saw (gpt, lower is better), the accuracy in percent on 500 held-out images (vit, of
digits), the recall of a function by its docstring (minilm, higher is better). Calibration: 32 windows of training text
(gpt, or so many `--windows`; so many of held-out text as `--test` says judge it), 512 images (vit), 128 functions
(minilm).

What was measured is kept in FOLDER, and printed again; delete a file to measure anew. With `--minutes` a run stops
after so long, and another goes on. `--write` puts what is kept of all models into a page.

With `--latency`, there are lines for emissions instead: how many times as fast as the dense layer the model's first
layer is on 1, 16 and 128 rows, and how far it is from the mask. That is processor time on one thread, the median of
runs taken in turns.
"""

import argparse
import fnmatch
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.experts_latency import EMITTED, ROWS, processor_times
from benchmarks.experts_models import WINDOWS, Task, gathered, task
from benchmarks.experts_table import FOLDER, Kept, Result, table
from bevel import registry
from bevel.backends.onnxruntime import Session
from bevel.errors import BevelError
from bevel.ir.names import Names
from bevel.ir.split import Partition
from bevel.passes.execution import Execution
from bevel.passes.experts.emission import masked
from bevel.passes.experts.emissions import EMISSIONS, alone, distance
from bevel.passes.experts.evidence import Evidence
from bevel.passes.experts.mixture import Mixture
from bevel.passes.experts.trial import Fitted, attempt, pruning, write
from bevel.passes.experts.writing import from_rows

MODELS = ("gpt", "vit", "minilm")
SPLITTERS, ROUTERS = registry.splitters(), registry.routers()
EXPERTS = 8
ACTIVE = {25: 6, 50: 4, 75: 2}
MADE = """Made by `python -m benchmarks.experts --write docs/experts.md` of what runs for each `--model` kept, on one
thread of a processor that had other work to do, which changes no number here. Empty cells were not measured. The run
with more text is of those lines that tell how much routers learn from it."""
DENSE, PRUNED = "dense", "pruned + refit"
FREE = ("logistic", "least-squares", "analytic", "mean-gate")
BOUNDED = ("coactivation", "kmeans")


@dataclass(frozen=True)
class Pair:
    """A splitter, a router, and whether the last product is fitted after routing."""

    splitter: str
    router: str
    refit: bool = True

    def __str__(self) -> str:
        return f"{self.splitter}, {self.router}{' + refit' * self.refit}"


RECIPES = (Pair("rates", "analytic", refit=False), Pair("profiles", "mean-gate", refit=False))
PAIRS = (
    *RECIPES,
    *(Pair(splitter, router) for splitter in BOUNDED for router in ("logistic", "trained", "trained-mlp", "oracle")),
    *(
        Pair(splitter, router)
        for router in FREE
        for splitter in SPLITTERS
        if not (splitter in BOUNDED and router == "logistic")
    ),
)


@dataclass
class Bench:
    """A task, what its layers read, and the partitions made so far."""

    task: Task
    partitions: dict[tuple[str, str, int], Partition] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.found = list(gathered(self.task))

    def dense(self) -> Result:
        return Result(0, DENSE, 1.0, 0.0, self.task.quality(self.task.model))

    def pruned(self, sparsity: int) -> Result:
        """Keep the same entries for all tokens."""
        active = ACTIVE[sparsity]
        results = [pruning(each, active * each.layer.size // EXPERTS, refit=True) for each in self.found]
        layers = [(kept, fitted) for kept, fitted, _ in results]
        return self._result(sparsity, PRUNED, layers, [error for *_, error in results], 0)

    def mixed(self, sparsity: int, pair: Pair) -> Result:
        """Make experts of all layers."""
        active = ACTIVE[sparsity] - ACTIVE[sparsity] // 2
        trials = []
        for each in self.found:
            partition = self._partition(each, pair.splitter, ACTIVE[sparsity] // 2)
            mixture = Mixture(partition, ROUTERS[pair.router](each, partition, active), active)
            trials.append(attempt(each, mixture, Execution(), refit=pair.refit, control=False, bound=False))
        layers = [(each.mixture, each.fitted) for each in trials]
        routers = sum(each.mixture.router.size for each in trials)
        return self._result(sparsity, str(pair), layers, [each.error for each in trials], routers)

    def _partition(self, found: Evidence, splitter: str, shared: int) -> Partition:
        key = splitter, found.layer.name, shared
        if key not in self.partitions:
            width = shared * (found.layer.size // EXPERTS)
            self.partitions[key] = SPLITTERS[splitter](found, EXPERTS - shared, width, np.random.default_rng(0))
        return self.partitions[key]

    def _result(
        self,
        sparsity: int,
        name: str,
        layers: list[tuple[Mixture | np.ndarray, Fitted]],
        errors: list[float],
        routers: int,
    ) -> Result:
        """Put mixtures, or entries to keep, in the place of the layers, and measure."""
        model = self.task.model.clone()
        found = list(gathered(self.task, model, feeds=1))
        for each, (what, fitted) in reversed(list(zip(found, layers, strict=True))):
            if isinstance(what, Mixture):
                write(each, fitted)
                masked(each.parts, what, Names(model))
            else:
                down = np.zeros_like(fitted.down)
                down[what] = fitted.down[what]
                write(each, Fitted(down, fitted.shift))
        share = 1 - sparsity / 100 + routers / sum(each.parameters for each in self.found)
        return Result(sparsity, name, share, float(np.mean(errors)), self.task.quality(model))


def lines(options: argparse.Namespace) -> Iterator[Result | str]:
    """Yield results, those kept first measured where they are not there yet, and headings."""
    kept, bench = Kept(path(options)), None
    until = time.monotonic() + 60 * options.minutes
    yield f"{options.model:42}active     error   quality"
    for sparsity in (0, *options.sparsity):
        for what in wanted(sparsity, options.only):
            if (sparsity, str(what)) not in kept.results:
                if time.monotonic() > until:
                    yield "stopped: the time is over; what was measured is kept"
                    return
                bench = bench or Bench(task(options.model, options.windows, options.test))
                kept.add(measured(bench, sparsity, what))
            yield kept.results[sparsity, str(what)]
        yield f"{sparsity}% of the hidden entries rest above" if sparsity else ""


def wanted(sparsity: int, patterns: list[str]) -> list[Pair | str]:
    every: list[Pair | str] = [PRUNED, *PAIRS] if sparsity else [DENSE]
    return [each for each in every if not sparsity or any(fnmatch.fnmatch(str(each), name) for name in patterns)]


def measured(bench: Bench, sparsity: int, what: Pair | str) -> Result:
    if isinstance(what, Pair):
        return bench.mixed(sparsity, what)
    return bench.pruned(sparsity) if sparsity else bench.dense()


def path(options: argparse.Namespace) -> Path:
    """Return where results are kept: of the gpt apart for each number of windows."""
    of_text = f"-{options.windows}-{options.test}" if options.model == "gpt" else ""
    return FOLDER / f"{options.model}{of_text}.jsonl"


def page() -> str:
    """Return what is kept of all models as a page."""
    about = __doc__.split("\n\n")
    parts = ["# Dense layers to experts, without training", *about[2:4]]
    parts.append(MADE)
    for each in sorted(FOLDER.glob("*.jsonl")):
        kept = Kept(each)
        parts += [f"## {heading(each.stem)}", f"Dense: {kept.results[0, DENSE].quality:.4g}."]
        parts.append("\n".join(table(kept, map(str, [PRUNED, *PAIRS]), list(ACTIVE))))
    return "\n\n".join(parts) + "\n"


def heading(stem: str) -> str:
    """Say what a file of results is of.

    >>> heading("gpt-32-64"), heading("vit")
    ('gpt: 32 windows to calibrate on, 64 to judge by', 'vit')
    """
    model, *windows = stem.split("-")
    return f"{model}: {windows[0]} windows to calibrate on, {windows[1]} to judge by" if windows else model


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


def latencies(options: argparse.Namespace) -> None:
    first = next(gathered(task(options.model, options.windows, options.test)))
    for sparsity in options.sparsity:
        print(f"\n{sparsity}% rest{'':15}" + "".join(f"{f'M={count}':>8}" for count in ROWS) + "    error", flush=True)
        for name, ratios, error in speeds(first, sparsity):
            print(f"  {name:20}" + "".join(f"{ratio:7.2f}x" for ratio in ratios) + f"{error:9.2g}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="gpt")
    parser.add_argument("--sparsity", type=int, nargs="*", choices=ACTIVE, default=list(ACTIVE))
    parser.add_argument("--windows", type=int, default=WINDOWS["calibration"], help="of text to calibrate the gpt on")
    parser.add_argument("--test", type=int, default=WINDOWS["test"], help="windows of text to judge the gpt by")
    parser.add_argument("--only", nargs="*", default=["*"], help="patterns of lines, such as 'coactivation, *'")
    parser.add_argument("--minutes", type=float, default=np.inf, help="after which no line is begun")
    parser.add_argument("--write", type=Path, help="a file to write the tables of all models to, of what is kept")
    parser.add_argument("--latency", action="store_true", help="how fast each emission is, instead of the quality")
    options = parser.parse_args()
    if options.write:
        options.write.write_text(page(), "utf-8")
    elif options.latency:
        latencies(options)
    else:
        for line in lines(options):
            print(line, flush=True)


if __name__ == "__main__":
    main()
