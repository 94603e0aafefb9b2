"""Quantize one file with one tool, and say what that took: the process that `benchmarks/quantization.py` starts.

    python -m benchmarks.quantization_child '{"tool": "bevel", "method": ..., "source": ..., "result": ...}'

It imports the tool that it runs and nothing else, so that its peak is that tool's. The clock stands while modules are
imported that a caller names; what they import later counts. Calibration data are in `feeds.npz` beside the source. What
is printed: seconds, processor seconds, and bytes of resident memory at the peak.
"""

import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, Any]
Feeds: TypeAlias = list[dict[str, Array]]


def main() -> None:
    measured(**json.loads(sys.argv[1]))


def measured(tool: str, source: str, result: str, **options: Any) -> None:
    with np.load(Path(source).with_name("feeds.npz")) as kept:
        feeds = unpacked(kept)
    run = (ours if tool == "bevel" else theirs(tool))(**options)
    wall, cpu = time.perf_counter(), time.process_time()
    with quiet():
        run(source, result, feeds)
    spent = time.perf_counter() - wall, time.process_time() - cpu
    status = Path("/proc/self/status").read_text()
    peak = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert peak is not None
    print(json.dumps([*spent, int(peak[1]) * 1024]))


def ours(recipe: str, products: bool, calibrated: bool) -> Callable[[str, str, Feeds], None]:
    """Return what runs passes; `ONLY` in the recipe stands for the layers, or for products of matrices alone."""
    from bevel import load, optimize, save
    from bevel.passes.fitting.layers import layers
    from bevel.passes.recipe import parse

    parse(recipe)  # imports the passes that it names

    def run(source: str, result: str, feeds: Feeds) -> None:
        model = load(source)
        names = ",".join(f'"{layer.node.name}"' for layer in layers(model) if not products or is_product(layer))
        optimize(model, recipe.replace("ONLY", names), calibration=feeds if calibrated else None, verify=False)
        save(model, result)

    return run


def is_product(layer: Any) -> bool:
    """Say whether the other tool sees a layer."""
    return bool(layer.node.op_type == "MatMul")


def theirs(tool: str) -> Callable[..., Callable[[str, str, Feeds], None]]:
    from benchmarks.quantization_peers import TOOLS

    return TOOLS[tool]


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what a tool prints out of the result."""
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)


def packed(feeds: Feeds) -> dict[str, Array]:
    return {f"{place}/{name}": array for place, feed in enumerate(feeds) for name, array in feed.items()}


def unpacked(kept: Any) -> Feeds:
    feeds: dict[int, dict[str, Array]] = {}
    for key in kept.files:
        place, name = key.split("/", 1)
        feeds.setdefault(int(place), {})[name] = kept[key]
    return [feeds[place] for place in sorted(feeds)]


if __name__ == "__main__":
    main()
