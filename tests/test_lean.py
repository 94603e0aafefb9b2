"""What a run does not need is not imported: it would take memory, and time at the start."""

import json
import subprocess
import sys

import pytest

import bevel
from tests.graphs import graph

LAYER = "layer (float[n, 64] x) => (float[n, 64] y) { y = MatMul(x, w) }"
RUN = """
import json, sys, numpy as np, bevel
model, inputs = bevel.load(PATH), [{"x": np.ones((2, 64), np.float32)}]
bevel.optimize(model, "quantize-blocks", calibration=inputs, verify=VERIFY)
bevel.save(model, PATH)
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""
HEAVY = {"onnxruntime", "scipy", "torch"}


@pytest.mark.parametrize(("verify", "wanted"), [(False, set()), (True, {"onnxruntime"})])
def test_heavy_packages_are_imported_by_what_needs_them(tmp_path, verify, wanted):
    path = tmp_path / "model.onnx"
    bevel.save(graph(LAYER, {"w": (64, 64)}), path)
    run = RUN.replace("PATH", repr(str(path))).replace("VERIFY", str(verify))
    done = subprocess.run([sys.executable, "-c", run], capture_output=True, text=True, check=True)
    assert HEAVY & set(json.loads(done.stdout)) == wanted
