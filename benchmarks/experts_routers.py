"""How much of the way from a fitted router to the oracle training goes, on the character GPT.

    python -m benchmarks.experts_routers [--sparsity 25 50 75] [--windows 512] [--test 512] [--seed 0]

Experts are those of `benchmarks.experts`, split by coactivation, with the last product fitted. `logistic` is fitted in
closed form, `trained` is a linear router that was trained on the calibration data for some seconds, `trained-mlp` one
with a small network beside it, `oracle` the best choice of experts for a layer's output. The error is that of a layer's
output on tokens held back, averaged over the layers. The divergence is that of Kullback and Leibler, of the next
character's probabilities from those of the dense model in held-out files; perplexity says the same with more chance in
it, for in the divergence what the dense model does not know either does not count. Shares are of the gap between
`logistic` and `oracle`. With the 16,384 tokens of 128 windows training goes half the way, see docs/decisions.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from benchmarks import character_gpt
from benchmarks.experts import ACTIVE, Bench, Pair
from benchmarks.experts_models import gpt

SPLITTER = "coactivation"
FITTED, BOUND = "logistic", "oracle"
TRAINED = ("trained", "trained-mlp")


class Judge:
    """Says how far a model is from the dense one, and how perplexed; keeps both of the model that it saw last."""

    def __init__(self, dense: ir.Model, windows: int) -> None:
        self.windows = windows
        self.wanted = character_gpt.log_probabilities(dense, windows=windows)
        self.found = (0.0, 0.0)

    def __call__(self, model: ir.Model) -> float:
        found = character_gpt.log_probabilities(model, windows=self.windows)
        divergence = (np.exp(self.wanted) * (self.wanted - found)).sum(-1).mean()
        self.found = float(divergence), character_gpt.perplexity(model, windows=self.windows)
        return self.found[0]


def lines(bench: Bench, judge: Judge, sparsity: int) -> Iterator[str]:
    """Yield what each router gives, and how much of the gaps trained ones close."""
    found = {}
    for name in (FITTED, *TRAINED, BOUND):
        error = bench.mixed(sparsity, Pair(SPLITTER, name)).error
        found[name] = (error, *judge.found)
    for name, (error, divergence, perplexity) in found.items():
        shares = "".join(f"{each:12.0%}" for each in gained(found, name)) if name in TRAINED else ""
        yield f"{sparsity:>3}%  {name:12}{error:12.4f}{divergence:12.5f}{perplexity:12.3f}{shares}"


def gained(found: dict[str, Sequence[float]], name: str) -> list[float]:
    """Return which share of each gap a router closes.

    >>> gained({FITTED: [0.5, 8.0], BOUND: [0.1, 4.0], "trained": [0.2, 6.0]}, "trained")
    [0.75, 0.5]
    """
    gaps = zip(found[FITTED], found[BOUND], found[name], strict=True)
    return [(start - here) / (start - end) for start, end, here in gaps]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sparsity", type=int, nargs="*", choices=ACTIVE, default=list(ACTIVE))
    parser.add_argument("--windows", type=int, default=512, help="of text to calibrate on, of 128 characters each")
    parser.add_argument("--test", type=int, default=512, help="windows of text to judge by")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the GPT, trained now in some minutes if it is not there"
    )
    options = parser.parse_args()
    given = gpt(options.windows, options.test, options.seed)
    judge = Judge(given.model, options.test)
    bench = Bench(replace(given, quality=judge))
    print("rest  router             error  divergence  perplexity  of the gap: error, divergence, perplexity")
    for sparsity in options.sparsity:
        for line in lines(bench, judge, sparsity):
            print(line, flush=True)


if __name__ == "__main__":
    main()
