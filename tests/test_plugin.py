"""A real plugin is built, installed with pip, and used like a built-in."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.graphs import MLP, MLP_WEIGHTS, proto

PLUGIN = Path(__file__).parent / "plugin"


@pytest.fixture(scope="session")
def installed(tmp_path_factory):
    """The folder the plugin was installed into. Its source is copied first: a build writes beside it."""
    source, target = tmp_path_factory.mktemp("plugin") / "source", tmp_path_factory.mktemp("site")
    subprocess.run(["cp", "-r", PLUGIN, source], check=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", target, source], check=True, capture_output=True)
    return target


@pytest.fixture
def python(installed, tmp_path):
    """Run Python in a fresh folder, with the plugin installed."""

    def run(*arguments):
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(installed), str(PLUGIN.parent.parent)))}
        return subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )

    return run


def test_its_pass_is_listed_with_its_origin_and_explained(python):
    assert (
        "halve-weights        Halve the weights named.  [bevel-halve 1.2.3]"
        in python("-m", "bevel.cli", "passes").stdout
    )
    assert "times: int from 1 to 8 = 1  how often" in python("-m", "bevel.cli", "passes", "halve-weights").stdout


def test_its_pass_runs_in_a_pipeline(python, tmp_path):
    onnx.save(proto(MLP, MLP_WEIGHTS), tmp_path / "mlp.onnx")
    text = "simplify,halve-weights{only=w1,w2 times=2}"
    done = python("-m", "bevel.cli", "optimize", "mlp.onnx", "-p", text, "-o", "out.onnx", "--json")
    assert done.returncode == 0, done.stderr
    weights = {
        tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(tmp_path / "out.onnx").graph.initializer
    }
    original = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto(MLP, MLP_WEIGHTS).graph.initializer}
    assert (weights["w1"] == original["w1"] / 4).all()
    assert (weights["b1"] == original["b1"]).all()


def test_its_format_is_listed_and_stores_weights(python, tmp_path):
    listed = python("-m", "bevel.cli", "formats").stdout
    assert "ternary                  3 bits" in listed and "[bevel-halve 1.2.3]" in listed
    onnx.save(proto(MLP, MLP_WEIGHTS), tmp_path / "mlp.onnx")
    text = "quantize-blocks{format=ternary block=0 only=w1}"
    done = python("-m", "bevel.cli", "optimize", "mlp.onnx", "-p", text, "-o", "out.onnx")
    assert done.returncode == 0, done.stderr
    assert "MatMulNBits" in {node.op_type for node in onnx.load(tmp_path / "out.onnx").graph.node}


def test_its_splitter_and_its_router_make_experts(python, tmp_path):
    onnx.save(proto(MLP, MLP_WEIGHTS), tmp_path / "mlp.onnx")
    text = "convert-moe{experts=2 active=1 shared=0 splitter=turns router=first refit=false}"
    done = python("-m", "bevel.cli", "optimize", "mlp.onnx", "-p", text, "-o", "out.onnx")
    assert done.returncode == 0, done.stderr
    model = onnx.load(tmp_path / "out.onnx")
    experts = [attribute.g for node in model.graph.node if node.op_type == "If" for attribute in node.attribute]
    held = [onnx.numpy_helper.to_array(tensor) for graph in experts for tensor in graph.initializer]
    (original,) = (
        onnx.numpy_helper.to_array(tensor)
        for tensor in proto(MLP, MLP_WEIGHTS).graph.initializer
        if tensor.name == "w1"
    )
    assert all(any(np.array_equal(each, original[:, part::2]) for each in held) for part in (0, 1))


def test_its_importance_decides_what_goes(python, tmp_path):
    onnx.save(proto(MLP, MLP_WEIGHTS), tmp_path / "mlp.onnx")
    text = "prune-channels{ratio=0.5 importance=places}"
    done = python("-m", "bevel.cli", "optimize", "mlp.onnx", "-p", text, "-o", "out.onnx")
    assert done.returncode == 0, done.stderr
    weights = {
        tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(tmp_path / "out.onnx").graph.initializer
    }
    original = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto(MLP, MLP_WEIGHTS).graph.initializer}
    assert (weights["b1"] == original["b1"][:4]).all()


def test_its_author_checks_it_with_one_call(python):
    code = """
from bevel.testing import check_pass
from bevel_halve.halve import HalveWeights
from tests.graphs import mlp
print(check_pass(HalveWeights(only=("w1",), times=3), mlp()).promise)
"""
    assert python("-c", code).stdout == "Lossy\n"


def test_its_rule_is_known(python):
    assert "com.halve.Halve  bevel_halve.rules.halve" in python("-m", "bevel.cli", "rules", "Halve").stdout


def test_its_rule_takes_part_in_the_analysis(python):
    code = """
import bevel
from tests.graphs import MLP_WEIGHTS, proto
from onnx import helper
made = proto(\'\'\'
mlp (float[n, 6] x) => (float[n, 3] y) {
  h = Gemm (x, w1, b1)
  r = Halve (h)
  y = MatMul (r, w2)
}
\'\'\', MLP_WEIGHTS)
made.graph.node[1].domain = "com.halve"
made.opset_import.append(helper.make_opsetid("com.halve", 1))
print([group.name for group in bevel.groups(bevel.load(made)) if group.allows("select")])
"""
    done = python("-c", code)
    assert done.stdout == "['w1[1]']\n", done.stderr


def test_without_it_nothing_of_it_is_known():
    done = subprocess.run([sys.executable, "-m", "bevel.cli", "passes"], capture_output=True, text=True, check=True)
    assert "halve" not in done.stdout


def test_a_plugin_that_is_broken_is_named_and_hinders_nobody(python, installed, tmp_path):
    broken = installed / "bevel_halve" / "halve.py"
    good = broken.read_text()
    broken.write_text("import nothing_of_this_name")
    try:
        done = python("-m", "bevel.cli", "passes")
        assert "halve-weights        cannot be used: bevel-halve 1.2.3: " in done.stdout
        assert "fold" in done.stdout
        used = python("-m", "bevel.cli", "passes", "halve-weights")
        assert used.returncode == 2
        assert "reinstall or upgrade that package" in used.stderr
    finally:
        broken.write_text(good)
