"""Run `simplify` and `fold` over every runnable model of onnx.backend.test and count what is no longer right.

    python benchmarks/conformance_passes.py [--only TEXT] [--passes simplify fold]

A model is runnable if ONNX Runtime, or else onnx's reference evaluator, gives the outputs that the test data expects.
Each row then says of how many the loaded, rewritten and saved model still does. "nothing" loads and saves only.
"""

import argparse
import io
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from cases import Case, cases
from onnx.reference import ReferenceEvaluator

import bevel
from bevel.backends.onnxruntime import ORT_ERRORS
from bevel.errors import BevelError, PassFailed
from bevel.passes.verify import deviate

REFERENCE_ERRORS = (Exception,)


def by_runtime(model: bytes, names: Sequence[str], feed: dict[str, Any]) -> list[Any]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model, options, ["CPUExecutionProvider"]).run(list(names), feed)


def by_reference(model: bytes, names: Sequence[str], feed: dict[str, Any]) -> list[Any]:
    return ReferenceEvaluator(onnx.load_from_string(model)).run(list(names), feed)


RUNNERS = {"ONNX Runtime": (by_runtime, ORT_ERRORS), "reference": (by_reference, REFERENCE_ERRORS)}


def judged(case: Case, model: bytes, runner: str) -> str:
    """Return "right", "wrong", or "invalid" if the model does not run."""
    run, errors = RUNNERS[runner]
    for inputs, expected in case.sets:
        wanted = [info.name for info in case.model.graph.input][: len(inputs)]
        feed = {name: value for name, value in zip(wanted, inputs, strict=True) if value is not None}
        try:
            results = run(model, [info.name for info in case.model.graph.output][: len(expected)], feed)
        except errors:
            return "invalid"
        if not all(close(case, a, b) for a, b in zip(expected, results, strict=True)):
            return "wrong"
    return "right"


def close(case: Case, expected: Any, got: Any) -> bool:
    if isinstance(expected, list) or expected is None or np.asarray(expected).dtype.kind in "OUST":
        return deviate("", [expected], [got]).relative <= case.rtol
    expected, got = np.asarray(expected), np.asarray(got)
    if expected.shape != got.shape or (expected.dtype != got.dtype and expected.dtype.itemsize != got.dtype.itemsize):
        return False
    if got.dtype != expected.dtype:
        got = got.view(expected.dtype)
    kind = complex if expected.dtype.kind == "c" else float
    return bool(np.allclose(expected.astype(kind), got.astype(kind), case.rtol, case.atol, equal_nan=True))


def rewritten(model: bytes, passes: str) -> bytes:
    loaded = bevel.load(model)
    if passes != "nothing":
        bevel.optimize(loaded, passes, verify=False)
    stream = io.BytesIO()
    bevel.save(loaded, stream)
    return stream.getvalue()


def outcome(case: Case, data: bytes, passes: str, runner: str) -> tuple[str, str]:
    try:
        return judged(case, rewritten(data, passes), runner), ""
    except PassFailed as error:
        return "crashed", str(error)
    except BevelError as error:
        return "refused", str(error)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="")
    parser.add_argument("--passes", nargs="*", default=["simplify", "fold"])
    arguments = parser.parse_args()
    rows = ["nothing", *arguments.passes]
    counts = {row: Counter[str]() for row in rows}
    runnable = Counter[str]()
    for case in cases():
        if arguments.only not in case.name:
            continue
        data = case.model.SerializeToString()
        runner = next((name for name in RUNNERS if judged(case, data, name) == "right"), None)
        runnable[runner or "not runnable"] += 1
        for row in rows if runner else ():
            result, why = outcome(case, data, row, str(runner))
            counts[row][result] += 1
            if result != "right":
                print(f"{row:<10} {result:<8} {runner:<12} {case.name} {why}".rstrip(), flush=True)
    print("models:", dict(runnable))
    for row in rows:
        print(f"{row:<10}", dict(counts[row]))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    main()
