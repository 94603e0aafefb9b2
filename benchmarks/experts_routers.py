"""How much of the way from a fitted router to the oracle training goes, on the character GPT.

    python -m benchmarks.experts_routers [--sparsity 25 50 75] [--windows 128] [--test 512] [--by divergence|perplexity]
                                         [--seed 0]

Experts are those of `benchmarks.experts`, split by coactivation, with the last product fitted. `logistic` is fitted in
closed form, `trained` is a linear router that was trained on the calibration data for some seconds, `trained-mlp` one
with a small network beside it, `oracle` the best choice of experts for a layer's output. The error is that of a layer's
output on tokens held back, averaged over the layers; by `divergence`, the quality is the Kullback-Leibler divergence of
the next character's probabilities from those of the dense model, in held-out files. It says the same as the perplexity
with less chance in it: what the dense model does not know either does not count. Shares are of the gap between
`logistic` and `oracle`.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from benchmarks import character_gpt
from benchmarks.experts import ACTIVE, Bench, Pair
from benchmarks.experts_models import gpt
from benchmarks.experts_table import Result

SPLITTER = "coactivation"
FITTED, BOUND = "logistic", "oracle"
TRAINED = ("trained", "trained-mlp")


def divergence(dense: ir.Model, windows: int) -> Callable[[ir.Model], float]:
    """Return what tells how far the probabilities of a model are from those of the dense one."""
    wanted = character_gpt.log_probabilities(dense, windows=windows)

    def of(model: ir.Model) -> float:
        found = character_gpt.log_probabilities(model, windows=windows)
        return float((np.exp(wanted) * (wanted - found)).sum(-1).mean())

    return of


def lines(bench: Bench, sparsity: int) -> Iterator[str]:
    """Yield what each router gives, and how much of the gap trained ones close."""
    found = {name: bench.mixed(sparsity, Pair(SPLITTER, name)) for name in (FITTED, *TRAINED, BOUND)}
    for name, each in found.items():
        closed = [f"{gained(found, name, column):11.0%}" for column in ("error", "quality") if name in TRAINED]
        yield f"{sparsity:>3}%  {name:14}{each.error:9.4f}{each.quality:11.5f}{''.join(closed)}"


def gained(found: dict[str, Result], name: str, column: str) -> float:
    """Return which share of the gap a router closes."""
    start, end, here = (getattr(found[each], column) for each in (FITTED, BOUND, name))
    return float((start - here) / (start - end))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sparsity", type=int, nargs="*", choices=ACTIVE, default=list(ACTIVE))
    parser.add_argument("--windows", type=int, default=128, help="of text to calibrate on")
    parser.add_argument("--test", type=int, default=512, help="windows of text to judge by")
    parser.add_argument("--by", choices=("divergence", "perplexity"), default="divergence")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the GPT, trained now in some minutes if it is not there"
    )
    options = parser.parse_args()
    given = gpt(options.windows, options.test, options.seed)
    if options.by == "divergence":
        given = replace(given, quality=divergence(given.model, options.test))
    bench = Bench(given)
    print(f"rest  router            error {options.by:>10}  of the gap: error, {options.by}")
    for sparsity in options.sparsity:
        for line in lines(bench, sparsity):
            print(line, flush=True)


if __name__ == "__main__":
    main()
