"""How many of the onnx package's node tests a conversion to PyTorch gets right: ours, onnx2torch's, onnx2pytorch's.

    python -m benchmarks.onnx_to_torch                    all cases, every converter that is installed
    python -m benchmarks.onnx_to_torch --list             and every case that is not right, with the reason
    python -m benchmarks.onnx_to_torch --only attention   cases whose name has this in it

benchmarks/requirements-torch.txt installs the others, in an environment of its own.

A case is *right* (outputs within the case's own tolerance, of the right shape and type), *rounded* (not so, but within
four roundings of the output's own type: some expect half precision to round as numpy does), *random* (it draws
numbers, so that only shape and type can be compared; they are right), *refused* (the conversion says that it cannot),
*wrong* (it runs and gives another value: the one thing that must not happen) or *failed* (an error that names no
operator). ONNX Runtime's own passes are counted in the same run.
"""

import argparse
import collections
import importlib.util
import time
from collections.abc import Callable, Sequence
from typing import Any

import onnx

from tests.zoo.conformance import node_cases, runs
from tests.zoo.conversion import STATES, Convert, attempt, ours, several


def onnx2torch(model: onnx.ModelProto) -> Callable[[list[Any]], Sequence[Any]]:
    from onnx2torch import convert

    module = convert(model)
    return lambda inputs: several(module(*inputs), len(model.graph.output))


def onnx2pytorch(model: onnx.ModelProto) -> Callable[[list[Any]], Sequence[Any]]:
    from onnx2pytorch import ConvertModel

    module = ConvertModel(model, experimental=True).eval()
    return lambda inputs: several(module(*inputs), len(model.graph.output))


CONVERTERS: dict[str, Convert] = {"bevel": ours, "onnx2torch": onnx2torch, "onnx2pytorch": onnx2pytorch}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--converter", default="", help="one converter")
    parser.add_argument("--list", action="store_true", help="print every case that is not right")
    options = parser.parse_args()
    names = [name for name in CONVERTERS if name == "bevel" or importlib.util.find_spec(name)]
    names = [name for name in names if options.converter in ("", name)]
    cases = [case for case in node_cases() if options.only in case.name]
    run = {case.name for case in cases if runs(case)}
    print(f"{len(cases)} cases; ONNX Runtime gets {len(run)} right\n")
    for name in names:
        start = time.perf_counter()
        results = {case.name: attempt(CONVERTERS[name], case) for case in cases}
        counts = collections.Counter(state for state, _ in results.values())
        both = sum(results[case][0] == "right" for case in run)
        print(
            f"{name:14}",
            *(f"{counts[state]:5} {state}" for state in STATES),
            f"  {both} of ONNX Runtime's {len(run)} ({both / max(len(run), 1):.1%})",
            f"  {time.perf_counter() - start:.0f} s",
        )
        for case, (state, reason) in sorted(results.items(), key=lambda item: item[1]):
            if state != "right" and (options.only or options.list or (state == "wrong" and name == "bevel")):
                print(f"    {state:8} {case}: {reason}")


if __name__ == "__main__":
    main()
