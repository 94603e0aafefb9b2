"""Files appear whole or not at all, the same every time, in little memory, also over the files they came from."""

import io
import shutil
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from bevel.backends import files
from bevel.backends.files import save
from bevel.backends.onnxruntime import Session
from bevel.errors import UsageError
from bevel.frontends.onnx import load

RNG = np.random.default_rng(0)
TEXT = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 64] x) => (float[N, 64] y)
<float[64, 64] w1, float[64, 64] w2> { h = MatMul(x, w1) r = Relu(h) y = MatMul(r, w2) }"""


CONDITION = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 64] x, bool c) => (float[N, 64] y) {
  h = Relu (x)
  t = If (c) < then_branch = a () => (float[N, 64] p) { q = Exp (h) p = Neg (q) },
               else_branch = b () => (float[N, 64] r) { r = Neg (h) } >
  y = Abs (t)
}"""


def noted(path) -> set[str]:
    """Return the inner values of which a file notes something."""
    graph = onnx.load(path).graph
    branches = [attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g")]
    return {value.name for each in (graph, *branches) for value in each.value_info}


def test_shapes_are_noted_in_a_file_if_they_were_in_the_one_it_came_from(tmp_path):
    plain = onnx.parser.parse_model(CONDITION)
    assert not plain.graph.value_info
    save(load(plain), tmp_path / "plain.onnx")
    assert noted(tmp_path / "plain.onnx") == set()
    save(load(tmp_path / "plain.onnx"), tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "plain.onnx").read_bytes()
    marked = load(plain)
    marked.graph.node(0).outputs[0].metadata_props["mine"] = "kept"
    save(marked, tmp_path / "marked.onnx")
    save(load(tmp_path / "marked.onnx"), tmp_path / "marked.onnx")
    assert noted(tmp_path / "marked.onnx") == {"h"}
    save(load(onnx.shape_inference.infer_shapes(plain)), tmp_path / "noted.onnx")
    assert {"h", "q"} <= noted(tmp_path / "noted.onnx")


def network() -> ir.Model:
    weights = [ir.tensor(RNG.standard_normal((64, 64)).astype(np.float32), name=name) for name in ("w1", "w2")]
    return load(ir.from_onnx_text(TEXT, initializers=weights))


def weights(path: Path) -> dict[str, np.ndarray]:
    return {
        tensor.name: numpy_helper.to_array(tensor, str(path.parent)) for tensor in onnx.load(path).graph.initializer
    }


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("external", [False, True])
def test_a_saved_model_is_valid_and_the_same_every_time(tmp_path, external):
    model = network()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        save(model, tmp_path / name / "m.onnx", external_data=external)
    assert listing(tmp_path / "a") == (["m.onnx", "m.onnx.data"] if external else ["m.onnx"])
    for name in listing(tmp_path / "a"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    onnx.checker.check_model(str(tmp_path / "a" / "m.onnx"), full_check=True)
    for name, array in weights(tmp_path / "a" / "m.onnx").items():
        np.testing.assert_array_equal(array, model.graph.initializers[name].const_value.numpy())


def test_a_stream_gets_what_a_file_gets(tmp_path):
    model, stream = network(), io.BytesIO()
    save(model, stream)
    save(model, tmp_path / "m.onnx")
    assert stream.getvalue() == (tmp_path / "m.onnx").read_bytes()


def test_a_pipe_gets_it_too(tmp_path):
    save(network(), tmp_path / "m.onnx")
    code = f"""
import sys
from bevel.backends.files import save
from bevel.backends.onnxruntime import Session
from bevel.frontends.onnx import load
save(load({str(tmp_path / "m.onnx")!r}), sys.stdout.buffer)
"""
    piped = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    assert piped == (tmp_path / "m.onnx").read_bytes()


def test_a_device_is_written_to_not_replaced():
    save(network(), "/dev/null")
    assert not Path("/dev/null").is_file() and Path("/dev/null").exists()


def test_every_element_type_survives(tmp_path):
    model = network()
    types = (np.float16, np.float64, np.int8, np.uint16, np.bool_, np.complex64, ml_dtypes.bfloat16, ml_dtypes.int4)
    arrays = {f"t{number}": (RNG.random((50, 41)) * 4).astype(dtype) for number, dtype in enumerate(types)}
    arrays["empty"], arrays["scalar"] = np.zeros((0, 3), np.float32), np.array(3.0, np.float32)
    for name, array in arrays.items():
        tensor = ir.tensor(array, name=name)
        value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        model.graph.initializers.add(value)
    text = ir.StringTensor([b"a", b"bc"], shape=ir.Shape((2,)), name="text")
    model.graph.initializers.add(
        ir.Value(name="text", shape=text.shape, type=ir.TensorType(text.dtype), const_value=text)
    )
    for external in (False, True):
        save(model, tmp_path / "m.onnx", external_data=external)
        found = weights(tmp_path / "m.onnx")
        assert found["text"].tolist() == ["a", "bc"]
        for name, array in arrays.items():
            assert found[name].tobytes() == array.tobytes() and found[name].shape == array.shape


def test_saving_over_the_files_a_model_came_from(tmp_path):
    path = tmp_path / "m.onnx"
    save(network(), path, external_data=True)
    model, before = load(path), weights(path)
    for name in ("w1", "w2"):
        tensor = model.graph.initializers[name].const_value
        flipped = ir.LazyTensor(lambda source=tensor: ir.tensor(-source.numpy()), tensor.dtype, ir.Shape(tensor.shape))
        model.graph.initializers[name].const_value = flipped
    for sign in (-1, -1):  # the second time, the model must still see what it was loaded from
        save(model, path, external_data=True)
        for name, array in weights(path).items():
            np.testing.assert_array_equal(array, sign * before[name])
    assert listing(tmp_path) == ["m.onnx", "m.onnx.data"]


def failing() -> ir.Model:
    model = network()

    def fail() -> ir.TensorProtocol:
        raise OSError(28, "No space left on device")

    model.graph.initializers["w2"].const_value = ir.LazyTensor(fail, ir.DataType.FLOAT, ir.Shape((64, 64)))
    return model


@pytest.mark.parametrize("external", [False, True])
def test_a_failure_leaves_the_old_files_and_nothing_else(tmp_path, external):
    path = tmp_path / "m.onnx"
    save(network(), path, external_data=external)
    before = {name: (tmp_path / name).read_bytes() for name in listing(tmp_path)}
    with pytest.raises(UsageError, match="No space left"):
        save(failing(), path, external_data=external)
    assert {name: (tmp_path / name).read_bytes() for name in listing(tmp_path)} == before


def test_if_the_model_cannot_be_put_in_place_the_old_data_comes_back(tmp_path, monkeypatch):
    path = tmp_path / "m.onnx"
    save(network(), path, external_data=True)
    before = {name: (tmp_path / name).read_bytes() for name in listing(tmp_path)}
    replace = Path.replace

    def refuse(self: Path, target: Path) -> Path:
        if Path(target) == path:
            raise PermissionError(13, "Permission denied")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(UsageError, match="Permission denied"):
        save(network(), path, external_data=True)
    assert {name: (tmp_path / name).read_bytes() for name in listing(tmp_path)} == before


def test_a_folder_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(UsageError, match="No such file"):
        save(network(), tmp_path / "absent" / "m.onnx")
    with pytest.raises(UsageError, match="is a folder"):
        save(network(), tmp_path)
    with pytest.raises(UsageError, match="stream cannot take external data"):
        save(network(), io.BytesIO(), external_data=True)


def test_permissions_and_links_of_the_old_file_stay(tmp_path):
    path, link = tmp_path / "m.onnx", tmp_path / "link.onnx"
    save(network(), path)
    path.chmod(0o640)
    link.symlink_to(path)
    save(network(), link)
    assert link.is_symlink() and path.stat().st_mode & 0o777 == 0o640


def test_large_tensors_leave_by_their_own_file_without_being_asked(tmp_path, monkeypatch):
    save(network(), tmp_path / "inline.onnx")
    monkeypatch.setattr(files, "LARGEST_INLINE", 1000)
    save(network(), tmp_path / "split.onnx")
    assert listing(tmp_path) == ["inline.onnx", "split.onnx", "split.onnx.data"]


def test_the_version_of_the_format_is_one_that_onnx_runtime_reads(tmp_path):
    model = network()
    model.ir_version = onnx.IR_VERSION
    save(model, tmp_path / "m.onnx")
    assert onnx.load(tmp_path / "m.onnx").ir_version == files.NEWEST_IR_VERSION
    model.ir_version = 8
    save(model, tmp_path / "m.onnx")
    assert onnx.load(tmp_path / "m.onnx").ir_version == 8


def test_saving_does_not_change_the_model(tmp_path):
    model = network()
    before = ir.to_onnx_text(model)
    save(model, tmp_path / "m.onnx", external_data=True)
    assert ir.to_onnx_text(model) == before


# Peak resident memory in MB for a 1 GB model of ten matrices: packages take 100, one matrix and what is kept of it 150.
# As the kernel counts it for the program itself: getrusage would add what the process that started it held.
PEAK = 350

LARGE = """
import pathlib, sys
import numpy as np
import onnx_ir as ir
from bevel.backends.files import save
from bevel.frontends.onnx import load

rows, columns, path = 4096, 6144, sys.argv[1]
number = ir.tensor(np.float32(0.5).reshape(1))
values, nodes, last = [], [], ir.Value(name="x", shape=ir.Shape(["N", rows]), type=ir.TensorType(ir.DataType.FLOAT))
inputs = [last]
for index in range(10):
    shape = (rows, columns) if index % 2 == 0 else (columns, rows)
    make = lambda shape=shape, index=index: ir.tensor(np.full(shape, index, np.float32))
    tensor = ir.LazyTensor(make, ir.DataType.FLOAT, ir.Shape(shape), name=f"w{index}")
    kind = ir.TensorType(tensor.dtype)
    values.append(ir.Value(name=f"w{index}", shape=ir.Shape(shape), type=kind, const_value=tensor))
    nodes.append(ir.node("MatMul", [last, values[-1]], name=f"n{index}"))
    last = nodes[-1].outputs[0]
    last.name = f"h{index}"
    last.type = ir.TensorType(ir.DataType.FLOAT)
graph = ir.Graph(inputs, [last], nodes=nodes, initializers=values, opset_imports={"": 17}, name="g")
save(ir.Model(graph, ir_version=8), path, external_data=True)

model = load(path)
for value in model.graph.initializers.values():
    shape = ir.Shape((value.shape[0] // 2, value.shape[1]))
    half = lambda tensor=value.const_value: ir.tensor(tensor.numpy()[::2])
    value.const_value = ir.LazyTensor(half, value.dtype, shape)
save(model, path)
status = pathlib.Path("/proc/self/status").read_text()
print(int(status.partition("VmHWM:")[2].split()[0]) // 1000)
"""


@pytest.mark.slow
def test_a_large_model_is_halved_and_saved_over_itself_in_little_memory(tmp_path):
    path = tmp_path / "m.onnx"
    run = subprocess.run([sys.executable, "-c", LARGE, str(path)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < PEAK
    assert (tmp_path / "m.onnx.data").stat().st_size == 10 * 4096 * 6144 * 2
    last = onnx.load(path, load_external_data=False).graph.initializer[9]
    with (tmp_path / "m.onnx.data").open("rb") as file:
        file.seek(int({entry.key: entry.value for entry in last.external_data}["offset"]))
        assert np.fromfile(file, np.float32, 5).tolist() == [9] * 5


EVERYWHERE = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[64, 64] x, bool c) => (float[64, 64] y, float[3] k)
<float[64, 64] w1, float[2] small = {1, 2}>
{
    h = MatMul(x, w1)
    s = ReduceSum(small)
    k = Constant <value = float[3] {1, 2, 3}> ()
    y = If (c) <then_branch = a () => (p) <float[64, 64] w2> { p = MatMul(h, w2) },
                else_branch = b () => (q) { q = Add(h, s) }>
}"""


@pytest.mark.parametrize("external", [False, True])
def test_nothing_refers_to_the_files_a_model_was_loaded_from(tmp_path, external):
    proto = onnx.parser.parse_model(EVERYWHERE)
    array = RNG.standard_normal((64, 64)).astype(np.float32)
    branch = proto.graph.node[-1].attribute[0].g
    for graph, name in ((proto.graph, "w1"), (branch, "w2")):
        kept = [tensor for tensor in graph.initializer if tensor.name != name]
        del graph.initializer[:]
        graph.initializer.extend([*kept, numpy_helper.from_array(array, name)])
    feed = {"x": array, "c": np.array(True)}
    with Session(load(proto)) as session:
        expected = session.run(feed)
    (tmp_path / "from").mkdir()
    (tmp_path / "to").mkdir()
    source = tmp_path / "from" / "m.onnx"
    onnx.save(proto, source, save_as_external_data=True, location="old", size_threshold=0, convert_attribute=True)
    save(load(source), tmp_path / "to" / "m.onnx", external_data=external)
    shutil.rmtree(tmp_path / "from")
    with Session(load(tmp_path / "to" / "m.onnx")) as session:
        found = session.run(feed)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)
