"""Networks as other tools leave them: each is optimized and verified, whatever was done to it before."""

import io
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper, version_converter

import bevel
from bevel.errors import EditRefused
from tests import zoo
from tests.graphs import graph
from tests.zoo.found import package

PIPELINE = "simplify,fold,reorder-channels,prune-channels{ratio=0.5}"


def opset(number: int):
    def change(model: onnx.ModelProto, folder: Path, feeds: list) -> onnx.ModelProto:
        return version_converter.convert_version(model, number)

    return change


def runtime(level: str):
    def change(model: onnx.ModelProto, folder: Path, feeds: list) -> onnx.ModelProto:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
        options.optimized_model_filepath = str(folder / "optimized.onnx")
        ort.InferenceSession(model.SerializeToString(), options)
        return onnx.load(folder / "optimized.onnx")

    return change


def simplified(model: onnx.ModelProto, folder: Path, feeds: list) -> onnx.ModelProto:
    return pytest.importorskip("onnxsim").simplify(model)[0]


def half(model: onnx.ModelProto, folder: Path, feeds: list) -> onnx.ModelProto:
    float16 = pytest.importorskip("onnxruntime.transformers.float16")
    return float16.convert_float_to_float16(model, keep_io_types=True)


def quantized(form: str):
    """Quantize as ONNX Runtime's own tool does: weights only and activations as they come, or both beforehand."""

    def change(model: onnx.ModelProto, folder: Path, feeds: list) -> onnx.ModelProto:
        tool = pytest.importorskip("onnxruntime.quantization")
        source, target = folder / "source.onnx", folder / "quantized.onnx"
        del model.graph.value_info[:]
        onnx.save(model, source)
        if form == "dynamic":
            tool.quantize_dynamic(source, target)
            return onnx.load(target)

        class Reader(tool.CalibrationDataReader):
            rest: Iterator = iter(feeds[:1])

            def get_next(self):
                return next(self.rest, None)

        written = {"qdq": tool.QuantFormat.QDQ, "operators": tool.QuantFormat.QOperator}[form]
        tool.quantize_static(source, target, Reader(), quant_format=written, per_channel=form == "qdq")
        return onnx.load(target)

    return change


def constant_nodes(model: onnx.ModelProto, folder: Path, feeds: list) -> onnx.ModelProto:
    return before(model, [helper.make_node("Constant", [], [t.name], value=t) for t in drop(model, 0)])


def listed_as_inputs(model: onnx.ModelProto, folder: Path, feeds: list) -> onnx.ModelProto:
    tensors = model.graph.initializer
    model.graph.input.extend(helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in tensors)
    return model


def external(model: onnx.ModelProto, folder: Path, feeds: list) -> Path:
    onnx.save(model, folder / "m.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    return folder / "m.onnx"


def transposed(model: onnx.ModelProto, folder: Path, feeds: list) -> onnx.ModelProto:
    nodes = []
    for tensor in drop(model, 2):
        array = numpy_helper.to_array(tensor)
        model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array.T), f"{tensor.name}.T"))
        nodes.append(helper.make_node("Transpose", [f"{tensor.name}.T"], [tensor.name]))
    return before(model, nodes)


def half_weights(model: onnx.ModelProto, folder: Path, feeds: list) -> onnx.ModelProto:
    nodes = []
    for tensor in drop(model, 2):
        array = numpy_helper.to_array(tensor).astype(np.float16)
        model.graph.initializer.append(numpy_helper.from_array(array, f"{tensor.name}.half"))
        nodes.append(helper.make_node("Cast", [f"{tensor.name}.half"], [tensor.name], to=onnx.TensorProto.FLOAT))
    return before(model, nodes)


def functions(model: onnx.ModelProto, folder: Path, feeds: list) -> onnx.ModelProto:
    """Call every product, sum and activation through a function of the model's own, one for each kind of node."""
    known: dict[tuple, str] = {}
    for node in model.graph.node:
        if node.domain or node.op_type not in ("MatMul", "Gemm", "Add", "Mul", "Relu", "LayerNormalization"):
            continue
        key = (node.op_type, len(node.input), *sorted(each.SerializeToString() for each in node.attribute))
        if key not in known:
            known[key] = f"{node.op_type}{len(known)}"
            inputs = [f"i{place}" for place in range(len(node.input))]
            inner = helper.make_node(node.op_type, inputs, ["t"])
            inner.attribute.extend(node.attribute)
            body = [inner, helper.make_node("Identity", ["t"], ["o"])]
            standard = [each for each in model.opset_import if not each.domain]
            model.functions.append(helper.make_function("own", known[key], inputs, ["o"], body, standard))
        node.op_type, node.domain = known[key], "own"
        del node.attribute[:]
    model.opset_import.append(helper.make_opsetid("own", 1))
    return model


def one_function(model: onnx.ModelProto, folder: Path, feeds: list) -> onnx.ModelProto:
    graph = model.graph
    names = [value.name for value in (*graph.input, *graph.initializer)]
    outputs = [value.name for value in graph.output]
    model.functions.append(helper.make_function("own", "Whole", names, outputs, graph.node, model.opset_import))
    model.opset_import.append(helper.make_opsetid("own", 1))
    del graph.node[:], graph.value_info[:]
    graph.node.append(helper.make_node("Whole", names, outputs, domain="own"))
    return model


def drop(model: onnx.ModelProto, rank: int) -> list[onnx.TensorProto]:
    """Take the initializers of at least that rank out of the graph; above rank 0 only those that hold float32."""
    graph = model.graph
    wanted = [t for t in graph.initializer if not rank or (len(t.dims) >= rank and t.data_type == t.FLOAT)]
    kept = [t for t in graph.initializer if not any(t is each for each in wanted)]
    taken = [onnx.TensorProto.FromString(t.SerializeToString()) for t in wanted]
    kept = [onnx.TensorProto.FromString(t.SerializeToString()) for t in kept]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return taken


def before(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> onnx.ModelProto:
    rest = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *rest])
    return model


CHANGES = {
    **{f"opset {number}": opset(number) for number in (21, 23, 26)},
    **{level: runtime(f"ORT_ENABLE_{level.upper()}") for level in ("basic", "extended", "all")},
    **{form: quantized(form) for form in ("dynamic", "qdq", "operators")},
    "onnxsim": simplified,
    "half": half,
    "half weights": half_weights,
    "constant nodes": constant_nodes,
    "listed as inputs": listed_as_inputs,
    "external": external,
    "transposed": transposed,
    "functions": functions,
    "one function": one_function,
}
# Calibration divides by the width of a range that is empty.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:onnxruntime")

# An attention block with a fused projection, a residual stream of convolutions, a recurrence.
SOME = ("gpt", "resnet", "lstm")
# What other tools refuse to make of these networks: conversions without an adapter, QOperator without biases.
NOT_MADE = (RuntimeError, AttributeError)


def optimized(name: str, style: str, change: str, folder: Path) -> None:
    feeds = [feed for feed, _ in zoo.trials(name)]
    try:
        source = CHANGES[change](zoo.model(name, style), folder, feeds)
    except NOT_MADE as error:
        pytest.skip(f"not made: {error}")
    model = bevel.load(source)
    report = bevel.optimize(model, PIPELINE, calibration=feeds)
    assert all(step.verdict.kept for step in report)
    stream = io.BytesIO()
    bevel.save(model, stream)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    deployed = ort.InferenceSession(stream.getvalue(), options)
    for feed in feeds:
        assert all(np.isfinite(output).all() for output in deployed.run(None, feed))


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", SOME)
def test_a_changed_network_is_optimized_and_verified(name, change, tmp_path):
    optimized(name, "torchscript", change, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "change", "style"), [*zip(zoo.NAMES, cycle(CHANGES), cycle(zoo.STYLES), strict=False)]
)
def test_every_network_is_optimized_and_verified_after_one_of_the_changes(name, change, style, tmp_path):
    optimized(name, style, change, tmp_path)


NOTHING = "nothing (float[n, 0] x) => (float[n, 4] y) { h = MatMul (x, w1)  r = Relu (h)  y = MatMul (r, w2) }"


@pytest.mark.parametrize(
    "name", ["equalize", "smooth", "low-rank", "prune-weights", "prune-tiles", "prune-channels", "quantize-dynamic"]
)
def test_layers_without_a_single_weight_are_left_alone(name):
    model = graph(NOTHING, {"w1": (0, 8), "w2": (8, 4)})
    (step,) = bevel.optimize(model, name)
    assert step.verdict is not None and step.verdict.kept


def test_layers_that_read_nothing_become_no_experts():
    with pytest.raises(EditRefused, match="no channels"):
        bevel.optimize(graph(NOTHING, {"w1": (0, 8), "w2": (8, 4)}), "convert-moe")


@pytest.mark.skipif(find_spec("rapidocr_onnxruntime") is None, reason="its wheel is not for this Python")
@pytest.mark.parametrize("pipeline", [PIPELINE, "quantize-static", "quantize-blocks{format=int4}"])
@pytest.mark.parametrize("name", ["ch_ppocr_mobile_v2.0_cls_infer", "ch_PP-OCRv4_rec_infer"])
def test_networks_that_paddle_trained_are_optimized_and_verified(name, pipeline):
    model = bevel.load(package("rapidocr_onnxruntime") / "models" / f"{name}.onnx")
    assert model.opset_imports[""] < 13
    assert all(step.verdict.kept for step in bevel.optimize(model, pipeline))
