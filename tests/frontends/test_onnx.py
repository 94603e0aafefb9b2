"""Every source loads; every refusal names file, node or value, and remedy."""

import io
import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from bevel.errors import BevelError, InvalidModel, MissingData, UnsupportedModel, UsageError
from bevel.frontends.onnx import load

MLP = """
<ir_version: 8, opset_import: ["" : 17]>
mlp (float[N, 4] x) => (float[N, 2] y)
<float[4, 3] w1 = {1,2,3,4,5,6,7,8,9,10,11,12}, float[3] b1 = {1,2,3}, float[3, 2] w2 = {1,2,3,4,5,6}>
{
    h = MatMul(x, w1)
    a = Add(h, b1)
    r = Relu(a)
    y = MatMul(r, w2)
}
"""


def parsed(text: str = MLP) -> onnx.ModelProto:
    return onnx.parser.parse_model(text)


def written(folder: Path, proto: onnx.ModelProto, name: str = "model.onnx") -> Path:
    path = folder / name
    path.write_bytes(proto.SerializeToString())
    return path


def nodes(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


# Sources


def test_every_kind_of_source_gives_the_same_model(tmp_path):
    proto = parsed()
    path = written(tmp_path, proto)
    with path.open("rb") as file:
        sources = (path, str(path), path.read_bytes(), io.BytesIO(path.read_bytes()), file, proto, ir.from_proto(proto))
        texts = {ir.to_onnx_text(load(source)) for source in sources}
    assert len(texts) == 1


def test_a_model_given_as_an_object_is_not_changed():
    proto = parsed()
    before = proto.SerializeToString()
    model = ir.from_proto(proto)
    load(proto)
    load(model)
    assert proto.SerializeToString() == before
    assert ir.to_proto(model).SerializeToString() == ir.to_proto(ir.from_proto(proto)).SerializeToString()


def test_nodes_out_of_order_are_put_in_order():
    proto = parsed()
    shuffled = [proto.graph.node[index] for index in (2, 0, 3, 1)]
    del proto.graph.node[:]
    proto.graph.node.extend(shuffled)
    assert nodes(load(proto)) == ["MatMul", "Add", "Relu", "MatMul"]


def test_the_models_own_opset_stays():
    for opset in (7, 11, 17, 21):
        model = load(parsed(MLP.replace('"" : 17', f'"" : {opset}')))
        assert model.opset_imports[""] == opset


def test_the_long_name_of_the_standard_operators_means_them():
    proto = parsed()
    version = proto.opset_import[0].version
    proto.opset_import[0].domain = "ai.onnx"
    proto.graph.node[0].domain = "ai.onnx"
    model = load(proto)
    assert model.opset_imports == {"": version} and {node.domain for node in model.graph} == {""}
    assert proto.opset_import[0].domain == "ai.onnx"  # the caller's


def test_minus_one_is_an_unknown_size():
    proto = parsed()
    dim = proto.graph.input[0].type.tensor_type.shape.dim[0]
    dim.dim_value = -1
    assert not isinstance(load(proto).graph.inputs[0].shape[0], int)


def test_functions_are_inlined_or_kept():
    text = """
    <ir_version: 8, opset_import: ["" : 17, "local" : 1]>
    g (float[N, 4] x) => (float[N, 4] y) { t = local.twice(x)  y = local.twice(t) }
    <domain: "local", opset_import: ["" : 17]>
    twice (v) => (w) { w = Add(v, v) }
    """
    assert nodes(load(parsed(text))) == ["Add", "Add"]
    assert nodes(load(parsed(text), functions="keep")) == ["twice", "twice"]


@pytest.mark.parametrize(("operator", "inlined"), [("Sigmoid", True), ("ReduceSum <axes = [0]>", False)])
def test_a_function_of_an_older_opset_is_inlined_where_its_operators_are_the_same(operator, inlined):
    text = f"""
    <ir_version: 8, opset_import: ["" : 17, "local" : 1]>
    g (float[N, 4] x) => (float[N, 4] y) {{ y = local.act(x) }}
    <domain: "local", opset_import: ["" : 11]>
    act (v) => (w) {{ w = {operator}(v) }}
    """
    older = 13 if inlined else 11  # Sigmoid is from opset 13, sums took their axes as an operand from there on
    assert (nodes(load(parsed(text.replace('"" : 11', f'"" : {older}')))) == ["act"]) is not inlined


def test_nodes_of_one_name_are_told_apart():
    proto = parsed()
    for node in proto.graph.node:
        node.name = "same"
    assert len({node.name for node in load(proto).graph}) == len(proto.graph.node)


def test_a_function_that_gives_back_its_input_keeps_the_callers_names():
    text = """
    <ir_version: 8, opset_import: ["" : 17, "local" : 1]>
    g (float[4] x) => (float[4] y) { y = local.same(x) }
    <domain: "local", opset_import: ["" : 17]>
    same (v) => (v) { unused = Neg(v) }
    """
    model = load(parsed(text))
    assert [value.name for value in (*model.graph.inputs, *model.graph.outputs)] == ["x", "y"]


# External data


def external(folder: Path, **changes: str) -> Path:
    """Write the MLP with `w1` in a file of its own; `changes` replace what the model says about it."""
    proto = parsed()
    tensor = proto.graph.initializer[0]
    data = numpy_helper.to_array(tensor).tobytes()
    (folder / "weights.bin").write_bytes(b"head" + data)
    tensor.ClearField("float_data")
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in ({"location": "weights.bin", "offset": "4", "length": str(len(data))} | changes).items():
        tensor.external_data.add(key=key, value=value)
    return written(folder, proto)


def test_external_data_is_mapped_and_right(tmp_path):
    tensor = load(external(tmp_path)).graph.initializers["w1"].const_value
    assert isinstance(tensor, ir.ExternalTensor)
    np.testing.assert_array_equal(tensor.numpy(), np.arange(1, 13, dtype=np.float32).reshape(4, 3))
    assert tensor.tobytes() == tensor.numpy().tobytes()


def test_data_that_is_replaced_on_disk_is_still_the_one_loaded(tmp_path):
    tensor = load(external(tmp_path)).graph.initializers["w1"].const_value
    other = tmp_path / "other"
    other.write_bytes(bytes(100))
    other.replace(tmp_path / "weights.bin")
    assert tensor.numpy()[0, 0] == 1


def test_a_download_cache_of_links_is_followed(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    path = external(tmp_path / "blobs")
    for name in ("model.onnx", "weights.bin"):
        (tmp_path / "snapshot" / name).symlink_to(tmp_path / "blobs" / name)
    assert load(tmp_path / "snapshot" / path.name).graph.initializers["w1"].const_value.numpy()[0, 0] == 1


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"location": "absent.bin"}, MissingData, "does not exist"),
        ({"location": "../weights.bin"}, MissingData, "outside the model's folder"),
        ({"location": "/etc/passwd"}, MissingData, "outside the model's folder"),
        ({"location": ""}, MissingData, "outside the model's folder"),
        ({"offset": "40"}, MissingData, "has only 52"),
        ({"length": "44"}, InvalidModel, "needs 48"),
        ({"offset": "-1"}, InvalidModel, "said to be outside"),
        ({"offset": "four"}, InvalidModel, "said to be outside"),
    ],
)
def test_wrong_external_data_is_refused(tmp_path, changes, error, says):
    path = external(tmp_path, **changes)
    with pytest.raises(error, match=says) as caught:
        load(path)
    assert str(path) in str(caught.value) and caught.value.remedy


def test_links_out_of_the_folder_are_refused(tmp_path):
    (tmp_path / "model").mkdir()
    path = external(tmp_path / "model")
    (tmp_path / "model" / "weights.bin").replace(tmp_path / "weights.bin")
    (tmp_path / "model" / "weights.bin").symlink_to(tmp_path / "weights.bin")
    with pytest.raises(MissingData, match="link to a file elsewhere"):
        load(path)
    (tmp_path / "model" / "weights.bin").unlink()
    os.link(tmp_path / "weights.bin", tmp_path / "model" / "weights.bin")
    with pytest.raises(MissingData, match="link to a file elsewhere"):
        load(path)


def test_external_data_of_bytes_cannot_be_found(tmp_path):
    with pytest.raises(MissingData, match="not given by its path"):
        load(external(tmp_path).read_bytes())


# Files that are no models


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "truncated, or no ONNX model"),
        (b"\x00" * 100, "no ONNX model"),
        (onnx.ModelProto(ir_version=8).SerializeToString(), "no graph"),
        (parsed().SerializeToString()[:-40], "truncated"),
    ],
)
def test_files_that_are_no_models_are_refused(tmp_path, content, says):
    path = tmp_path / "thing.onnx"
    path.write_bytes(content)
    with pytest.raises(InvalidModel, match=says) as caught:
        load(path)
    assert "thing.onnx" in str(caught.value) and caught.value.remedy


def test_what_is_no_source_is_refused(tmp_path):
    with pytest.raises(InvalidModel, match="folder"):
        load(tmp_path)
    with pytest.raises(InvalidModel, match="No such file"):
        load(tmp_path / "absent.onnx")
    with pytest.raises(UsageError, match="from a int"):
        load(3)
    with pytest.raises(UsageError, match="text mode"):
        load(io.StringIO("model"))


def test_what_has_no_end_is_refused(monkeypatch):
    """As /dev/zero and the output of `yes` do, which would fill the memory."""

    class Endless(io.RawIOBase):
        def read(self, size=-1):
            assert size >= 0, "reads to an end that never comes"
            return bytes(size)

    monkeypatch.setattr("bevel.frontends.onnx.reading.LARGEST_PROTOBUF", 2**22)
    with pytest.raises(InvalidModel, match="more than a protobuf message"):
        load(Endless())
    if Path("/dev/zero").is_char_device():
        with pytest.raises(InvalidModel, match="more than a protobuf message"):
            load("/dev/zero")


# Models that are not well-formed: each change breaks one thing


def dangling(proto):
    proto.graph.node[1].input[1] = "b11"


def cyclic(proto):
    proto.graph.node[0].input[0] = "r"


def repeated_output(proto):
    proto.graph.node[2].output[0] = "h"


def repeated_initializer(proto):
    proto.graph.initializer.append(proto.graph.initializer[0])


def output_from_nowhere(proto):
    proto.graph.output[0].name = "z"


def no_operator(proto):
    proto.graph.node[0].op_type = ""


def negative_size(proto):
    proto.graph.initializer[0].dims[0] = -4


def huge_size(proto):
    proto.graph.initializer[0].dims[0] = 2**50


def missing_data(proto):
    del proto.graph.initializer[0].float_data[3:]


def unknown_element_type(proto):
    proto.graph.initializer[0].data_type = 99


def unknown_attribute(proto):
    proto.graph.node[0].attribute.append(onnx.helper.make_attribute("transpose", 1))


def wrong_attribute_type(proto):
    proto.graph.node[2].op_type = "LeakyRelu"
    proto.graph.node[2].attribute.append(onnx.helper.make_attribute("alpha", 1))


def missing_attribute(proto):
    proto.graph.node[2].op_type = "Cast"


def too_many_inputs(proto):
    proto.graph.node[2].input.append("x")


def integer_weights(proto):
    proto.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.arange(3), "b1"))


def strings_into_relu(proto):
    proto.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.STRING


def two_opsets(proto):
    proto.opset_import.add(domain="ai.onnx", version=13)


def no_opset(proto):
    del proto.opset_import[:]


def no_outputs(proto):
    del proto.graph.output[:]


def function_that_calls_itself(proto):
    call = onnx.helper.make_node("again", ["v"], ["w"], domain="local")
    opsets = [onnx.helper.make_opsetid("local", 1)]
    proto.functions.append(onnx.helper.make_function("local", "again", ["v"], ["w"], [call], opsets))
    proto.opset_import.extend(opsets)


def nested_too_deep(proto):
    graph = onnx.parser.parse_graph("g (float[1] a) => (float[1] b) { b = Relu(a) }")
    for _ in range(24):
        outer = onnx.GraphProto(name="g")
        outer.node.add(op_type="Body", output=["b"]).attribute.append(onnx.helper.make_attribute("body", graph))
        outer.output.add(name="b")
        graph = outer
    proto.graph.node[2].attribute.append(onnx.helper.make_attribute("body", graph))


BROKEN = [
    (dangling, "'b11' is not declared", "did you mean 'b1'"),
    (cyclic, "depend on each other: .*->.*->", "Loop"),
    (repeated_output, "'h' is declared twice", ""),
    (repeated_initializer, "'w1' is declared twice", ""),
    (output_from_nowhere, "'z' is not computed", "valid"),
    (no_operator, "has no operator", ""),
    (negative_size, "impossible shape", "damaged"),
    (huge_size, "impossible shape", "damaged"),
    (missing_data, "has 3 numbers of data, its shape needs 12", "damaged"),
    (unknown_element_type, "element type 99", "damaged"),
    (unknown_attribute, "unknown attribute 'transpose'", ""),
    (wrong_attribute_type, "'alpha' is of type INT", "FLOAT"),
    (missing_attribute, "lacks attribute 'to'", ""),
    (too_many_inputs, "has 2 inputs, the operator takes 1", ""),
    (integer_weights, r"tensor\(int64\), another one a tensor\(float\)", "Cast"),
    (strings_into_relu, r"is a tensor\(string\)", "the operator takes"),
    (two_opsets, "imports version 13", "one positive version"),
    (no_opset, "imports no operator set", ""),
    (no_outputs, "has no outputs", "gives out"),
    (function_that_calls_itself, "again -> local::again", "Loop"),
    (nested_too_deep, "nested more than", ""),
]


@pytest.mark.parametrize(("break_it", "what", "remedy"), BROKEN, ids=lambda item: getattr(item, "__name__", ""))
def test_a_broken_model_is_refused(tmp_path, break_it, what, remedy):
    proto = parsed()
    break_it(proto)
    path = written(tmp_path, proto)
    with pytest.raises(InvalidModel, match=what) as caught:
        load(path)
    assert str(path) in caught.value.where and remedy in caught.value.remedy


def newer_format(proto):
    proto.ir_version = 99


def newer_opset(proto):
    proto.opset_import[0].version = 99


def map_input(proto):
    proto.graph.input[0].type.map_type.key_type = onnx.TensorProto.INT64


@pytest.mark.parametrize("change", [newer_format, newer_opset, map_input])
def test_a_model_nothing_here_understands_is_refused(change):
    proto = parsed()
    change(proto)
    with pytest.raises(UnsupportedModel) as caught:
        load(proto)
    assert caught.value.remedy


def test_an_object_with_a_value_from_nowhere_is_refused():
    model = ir.from_proto(parsed())
    model.graph[1].replace_input_with(1, ir.Value(name="lost"))
    with pytest.raises(BevelError, match="lost"):
        load(model)


def test_an_object_with_a_cycle_is_refused():
    model = ir.from_proto(parsed())
    model.graph[0].replace_input_with(0, model.graph[2].outputs[0])
    with pytest.raises(BevelError):
        load(model)
