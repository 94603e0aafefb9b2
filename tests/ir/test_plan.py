"""Plans say what was taken: applied to the original weights they give the pruned ones, bit for bit."""

import json

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner

import bevel
from bevel.cli import optimize as optimize_command
from bevel.errors import EditRefused, UsageError
from bevel.ir.canonical.sharing import copy_of, merge_shared
from bevel.ir.change import Change
from bevel.ir.edit import permute, select
from bevel.ir.plan import Plan, plan
from bevel.ir.provenance import Provenance, set_provenance
from bevel.ir.record import cuts
from tests.graphs import MLP, MLP_WEIGHTS, graph, mlp, proto

HEADS = """
heads (float[n, 5, 6] x) => (float[n, 5, 6] y) {
  qkv = MatMul (x, w)
  split = Constant <value_ints = [0, 0, 4, 6]> ()
  flat = Constant <value_ints = [0, 0, -1]> ()
  q0, k0, v0 = Split <axis = 2, num_outputs = 3> (qkv)
  q1 = Reshape (q0, split)
  k1 = Reshape (k0, split)
  v1 = Reshape (v0, split)
  q = Transpose <perm = [0, 2, 1, 3]> (q1)
  k = Transpose <perm = [0, 2, 3, 1]> (k1)
  v = Transpose <perm = [0, 2, 1, 3]> (v1)
  s = MatMul (q, k)
  p = Softmax <axis = -1> (s)
  m0 = MatMul (p, v)
  m1 = Transpose <perm = [0, 2, 1, 3]> (m0)
  m = Reshape (m1, flat)
  y = MatMul (m, out)
}
"""
HEADS_WEIGHTS = {"w": (6, 72), "out": (24, 6)}


def weights(model: ir.Model) -> dict[str, np.ndarray]:
    return {str(name): value.const_value.numpy() for name, value in model.graph.initializers.items()}


def with_parameters(model: ir.Model) -> ir.Model:
    """Say that the MLP's weights came from two linear layers, which hold them transposed."""
    values = model.graph.initializers
    set_provenance(values["w1"], Provenance(("up.weight",), True).then("transpose", (1, 0)))
    set_provenance(values["b1"], Provenance(("up.bias",), True))
    set_provenance(values["w2"], Provenance(("down.weight",), True).then("transpose", (1, 0)))
    return model


def parameters(seed: int = 0) -> dict[str, np.ndarray]:
    values = weights(mlp(seed))
    return {"up.weight": values["w1"].T, "up.bias": values["b1"], "down.weight": values["w2"].T}


def same(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        np.testing.assert_array_equal(value, right[name], err_msg=name)


def test_edits_compose_to_one_list_of_original_places():
    model = mlp()
    original = weights(model)
    select(model, {"w1[1]": np.array([1, 2, 4, 5, 7])})
    permute(model, {"w1[1]": np.array([4, 3, 2, 1, 0])})
    select(model, {"w1[1]": np.array([0, 3])})
    (cut,) = cuts(model.graph.initializers["w1"]).values()
    assert (cut.size, cut.kept.tolist()) == (8, [7, 2])
    assert [(change.before, change.after) for change in cut.changes] == [(8, 2)]
    same(plan(model).take(original), weights(model))


def test_a_planted_wrong_place_is_seen():
    model = mlp()
    original = weights(model)
    select(model, {"w1[1]": np.array([0, 3])})
    cuts(model.graph.initializers["w1"])[1].kept[0] = 1
    with pytest.raises(AssertionError):
        same(plan(model).take(original), weights(model))


def test_the_structure_of_heads_is_recorded():
    model = graph(HEADS, HEADS_WEIGHTS)
    original = weights(model)
    (group,) = [group for group in bevel.groups(model) if group.size == 4]
    select(model, {group.name: np.array([0, 2])})
    (change,) = cuts(model.graph.initializers["w"])[1].changes
    assert (change.text("before"), change.text("after")) == ("4*6 + 4*6 + 4*6", "2*6 + 2*6 + 2*6")
    assert {pair.after for pair in change.sizes() if (pair.before, pair.role) == (4, "count")} == {2}
    taken = plan(model).take({name: original[name] for name in HEADS_WEIGHTS})
    same(taken, {name: weights(model)[name] for name in HEADS_WEIGHTS})
    assert "axis 1: 4*6 + 4*6 + 4*6 -> 2*6 + 2*6 + 2*6; places 0-5, 12-17" in str(plan(model))


def test_a_plan_goes_by_parameters_in_their_own_layout():
    model = with_parameters(mlp())
    bevel.optimize(model, "simplify,prune-channels{ratio=0.5},reorder-channels")
    made = plan(model)
    assert [tensor.names for tensor in made.tensors] == [("down.weight",), ("up.bias",), ("up.weight",)]
    small = made.take(parameters())
    assert {name: value.shape for name, value in small.items()} == {
        "up.weight": (4, 6),
        "up.bias": (4,),
        "down.weight": (3, 4),
    }
    same(
        small,
        {"up.weight": weights(model)["w1"].T, "up.bias": weights(model)["b1"], "down.weight": weights(model)["w2"].T},
    )


def test_the_record_survives_onnxsim():
    model = with_parameters(mlp())
    original = parameters()
    bevel.optimize(model, "prune-channels{ratio=0.5},simplify{onnxsim=true},reorder-channels")
    small = plan(model).take(original)
    np.testing.assert_array_equal(small["up.bias"], weights(model)["b1"])
    assert small["down.weight"].shape == (3, 4)


def test_copies_carry_the_record_and_must_agree():
    model = with_parameters(mlp())
    select(model, {"w1[1]": np.arange(4)})
    bias = model.graph.initializers["b1"]
    copy = copy_of(bias, "b1/2")
    model.graph.initializers.add(copy)
    assert len(plan(model).tensors) == 3
    clone = model.clone()
    merge_shared(clone)
    assert len(plan(clone).tensors) == 3
    cut = cuts(copy)[0]
    copy.meta["bevel.cuts"] = {0: type(cut)(cut.size, cut.kept[::-1], cut.changes)}
    with pytest.raises(EditRefused, match=r"parameter 'up.bias': .* differs: axis 0: 0-3; axis 0: 3, 2, 1, 0"):
        plan(model)


def test_scatter_after_take_is_the_masked_original():
    model = with_parameters(mlp())
    bevel.optimize(model, "prune-channels{ratio=0.5}")
    made, original = plan(model), parameters()
    kept = {tensor.names[0]: tensor.cuts for tensor in made.tensors}
    full = made.scatter(made.take(original))
    for name, value in original.items():
        masked = np.zeros_like(value)
        places = [
            kept[name][axis].kept if axis in kept[name] else np.arange(size) for axis, size in enumerate(value.shape)
        ]
        masked[np.ix_(*places)] = value[np.ix_(*places)]
        np.testing.assert_array_equal(full[name], masked)
    same(made.scatter(made.take(original), into=original), original)


def test_a_plan_prunes_another_checkpoint_the_same_way():
    first, second = with_parameters(mlp(0)), with_parameters(mlp(1))
    keep = np.array([6, 1, 3])
    select(first, {"w1[1]": keep})
    select(second, {"w1[1]": keep})
    small = plan(first).take(parameters(1))
    np.testing.assert_array_equal(small["up.weight"], weights(second)["w1"].T)
    np.testing.assert_array_equal(small["down.weight"], weights(second)["w2"].T)


def test_a_wrong_checkpoint_is_refused_by_name():
    model = with_parameters(mlp())
    select(model, {"w1[1]": np.arange(4)})
    made, state = plan(model), parameters()
    with pytest.raises(UsageError, match=r"'up.bias' is \[9\], the plan has \[8\]"):
        made.take(state | {"up.bias": np.zeros(9)})
    with pytest.raises(UsageError, match=r"'up\.bias' is missing"):
        made.check({name: value for name, value in state.items() if name != "up.bias"})
    with pytest.raises(UsageError, match="not those that the plan leaves"):
        made.scatter(state)
    extra = made.take(state | {"other": np.ones(3)})
    np.testing.assert_array_equal(extra["other"], np.ones(3))


def test_a_plan_takes_torch_tensors():
    torch = pytest.importorskip("torch")
    model = with_parameters(mlp())
    select(model, {"w1[1]": np.array([5, 1, 3])})
    made = plan(model)
    state = {name: torch.tensor(value, dtype=torch.bfloat16) for name, value in parameters().items()}
    small = made.take(state)
    assert small["down.weight"].dtype == torch.bfloat16
    assert torch.equal(small["down.weight"], state["down.weight"][:, [5, 1, 3]])
    full = made.scatter(small, into=state)
    assert all(torch.equal(full[name], state[name]) for name in state)
    assert made.scatter(small)["up.weight"].count_nonzero() == small["up.weight"].numel()


def test_files_are_small_deterministic_and_come_back(tmp_path):
    model = graph(HEADS, HEADS_WEIGHTS)
    (group,) = [group for group in bevel.groups(model) if group.size == 4]
    select(model, {group.name: np.array([3, 2, 0])})
    made = plan(model)
    made.save(tmp_path / "plan.json")
    first = (tmp_path / "plan.json").read_bytes()
    again = Plan.load(tmp_path / "plan.json")
    again.save(tmp_path / "plan.json")
    assert (tmp_path / "plan.json").read_bytes() == first
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]
    assert str(again) == str(made)
    assert len(json.loads(first)["places"]) == 2
    assert all(left.same(right) for left, right in zip(made.tensors, again.tensors, strict=True))


def edited(**changes):
    """A plan file with something planted in it."""
    file = {
        "format": "bevel.plan",
        "version": 1,
        "places": [[[0, 4]]],
        "tensors": [
            {
                "names": ["b"],
                "shape": [8],
                "parameter": True,
                "axes": {"0": {"places": 0, "changes": [["8", "4"]]}},
            }
        ],
    }
    return json.dumps(file | changes)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "Expecting value"),
        ("[1]", "its format is not 'bevel.plan'"),
        (edited(version=2), "it is of version 2, this is 1"),
        (edited(places=[[[0, 3]]]), "do not lead from 8 to 3"),
        (edited(places=[[5, 6, 7, 8]]), "are not distinct ones of 8"),
        (edited(places=[[0, 1, 2, 2]]), "are not distinct ones of 8"),
        (edited(places=[[-1, 1, 2, 3]]), "-1 is no place"),
        (edited(places=[[[0, 10**12]]]), "is no place"),
        (edited(places=[]), "index out of range"),
        (edited(tensors=[{"names": ["b"]}]), "'shape' is missing"),
        (edited(places=["abcd"]), "is no plan"),
        (edited().replace('"8", "4"', '"__import__(1)", "4"'), "no sum or product"),
        (edited().replace('"8", "4"', '"2*4", "4"'), "the structures before and after differ"),
        (edited().replace('"0": {', '"1": {'), "'b' has no axis 1"),
    ],
)
def test_bad_files_say_what_is_wrong(tmp_path, text, reason):
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=reason) as caught:
        Plan.load(path)
    assert caught.value.where == str(path)


def test_the_file_that_is_edited_is_read_as_it_is(tmp_path):
    (tmp_path / "plan.json").write_text(edited())
    (tensor,) = Plan.load(tmp_path / "plan.json").tensors
    assert tensor.small_shape == (4,)


def test_a_missing_file_and_folder_are_named(tmp_path):
    with pytest.raises(UsageError, match=r"nothing\.json: cannot be read"):
        Plan.load(tmp_path / "nothing.json")
    with pytest.raises(UsageError, match=r"cannot be written"):
        plan(mlp()).save(tmp_path / "nowhere" / "plan.json")


def test_changes_follow_another_when_the_structure_is_the_same():
    first, second = Change.read("12*64", "6*64"), Change.read("6*64", "3*32")
    joined = first.then(second)
    assert joined is not None
    assert (joined.text("before"), joined.text("after")) == ("12*64", "3*32")
    assert first.then(Change.read("384", "192")) is None


@pytest.mark.parametrize("text", ["12", "3*12*64", "4*6 + 7", "2*(3 + 4)", "2*(3 + 4*5) + 6"])
def test_structures_are_read_as_they_are_written(text):
    assert Change.read(text, text).text("after") == text


def test_the_command_writes_a_plan_only_on_success(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mlp.onnx").write_bytes(proto(MLP, MLP_WEIGHTS).SerializeToString())
    arguments = ["mlp.onnx", "-p", "prune-channels{ratio=0.5}", "-o", "small.onnx", "--plan", "plan.json", "-q"]
    missed = CliRunner().invoke(optimize_command, [*arguments, "--budget", "size=0.01x"])
    assert missed.exit_code == 1
    dry = CliRunner().invoke(optimize_command, [*arguments, "--dry-run"])
    assert dry.exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["mlp.onnx"]
    done = CliRunner().invoke(optimize_command, arguments)
    assert done.exit_code == 0, done.output
    small = Plan.load("plan.json").take(weights(bevel.load("mlp.onnx")))
    same(small, weights(bevel.load("small.onnx")))
    lost = CliRunner().invoke(optimize_command, [*arguments[:-2], "nowhere/plan.json"])
    assert (lost.exit_code, "the plan's folder does not exist" in lost.output) == (2, True)
