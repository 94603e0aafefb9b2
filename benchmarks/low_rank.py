"""What factoring layers leaves of accuracy without any fine-tuning: by the weights, and by what they read.

    python -m benchmarks.low_rank [--only digits-residual minilm ...] [--seeds 3] [--factor 0.5] [--folder trained]

Networks, calibration and held-out data are those of benchmarks/pruning_accuracy.py, which says what it needs. Each is
folded, then factored to a share of its multiply-accumulates; scores are means over the seeds, on the test part.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import bevel
from benchmarks.pruning_accuracy import FOLDER
from benchmarks.pruning_accuracy_tasks import TASKS, Network, networks
from bevel.errors import BevelError
from bevel.ir.cost import cost

METHODS = {
    "weights": "metric=weights",
    "inputs": "metric=inputs samples=512",
    "inputs, same share": "metric=inputs samples=512 allocation=uniform",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=TASKS, default=["digits-residual", "digits-plain"])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--factor", type=float, default=0.5)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    options = parser.parse_args()
    print("| network | MACs | as it is | " + " | ".join(METHODS) + " |\n|---|--:|--:|" + "--:|" * len(METHODS))
    for name in options.only:
        seeds = options.seeds if TASKS[name].trained else 1
        found = [network for seed in range(seeds) for network in networks(seed, options.folder, [name])]
        print(row(name, found, options.factor), flush=True)


def row(name: str, found: Sequence[Network], factor: float) -> str:
    """Return a line of the table."""
    form = TASKS[name].format
    original = mean(network.test(bevel.load(network.path)) for network in found)
    cells = []
    for options in METHODS.values():
        scores = [score(network, f'fold,low-rank{{target="macs={factor}x" {options}}}') for network in found]
        cells.append("refused" if None in scores else format(mean(each for each in scores if each is not None), form))
    return f"| {name} | {factor}x | {original:{form}} | " + " | ".join(cells) + " |"


def score(network: Network, pipeline: str) -> float | None:
    """Return how good a network is after a pipeline; None if it was refused."""
    model = bevel.load(network.path)
    before = cost(model).macs
    try:
        bevel.optimize(model, pipeline, calibration=network.calibration)
    except BevelError:
        return None
    assert cost(model).macs < before
    return network.test(model)


if __name__ == "__main__":
    main()
