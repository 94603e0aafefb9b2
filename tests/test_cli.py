import json
import os
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

import bevel
from bevel.cli import bevel as bevel_command
from bevel.cli import optimize as optimize_command
from bevel.errors import UsageError
from tests.graphs import MLP, MLP_WEIGHTS, proto

DIGITS = str(files("bevel") / "models" / "digits.onnx")


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A small model file in a working directory of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    onnx.save(proto(MLP, MLP_WEIGHTS), "mlp.onnx")
    return "mlp.onnx"


def optimize(*arguments, **options):
    return CliRunner().invoke(optimize_command, [*map(str, arguments)], **options)


def names(folder):
    return {path.name for path in Path(folder).iterdir()}


def run(*arguments):
    return CliRunner().invoke(bevel_command, [*map(str, arguments)])


def test_a_run_writes_the_result_and_prints_a_table(model):
    done = optimize(model, "-p", "simplify,fold", "-o", "out.onnx")
    assert done.exit_code == 0, done.output
    assert "verified on 4 inputs (made-up inputs)" in done.stdout
    assert "latency" in done.stdout
    onnx.checker.check_model("out.onnx")


def test_json_is_data_on_stdout(model):
    done = optimize(model, "-p", "fold", "-o", "out.onnx", "--json", "--report", "r.json", "--report", "r.md")
    report = json.loads(done.stdout)
    assert report == json.loads(Path("r.json").read_text())
    assert report["passes"][0]["verdict"]["kept"] is True
    assert Path("r.md").read_text().startswith("### bevel optimize")


def test_a_file_that_grew_though_its_weights_shrank_says_so(model):
    step = "quantize-dynamic"
    grown = optimize(model, "-p", step, "-o", "out.onnx")
    assert Path("out.onnx").stat().st_size > Path(model).stat().st_size
    assert grown.stderr.startswith("out.onnx: ") and "before: new nodes and noted shapes take more" in grown.stderr
    assert not optimize(model, "-p", "fold", "-o", "out.onnx").stderr
    assert not optimize(model, "-p", step, "-o", "out.onnx", "-q").stderr
    onnx.save(proto(MLP, {"w1": (6, 800), "b1": (800,), "w2": (800, 3)}), model)
    assert not optimize(model, "-p", step, "-o", "out.onnx").stderr


def test_quiet_prints_nothing(model):
    done = optimize(model, "-p", "fold", "-o", "out.onnx", "-q")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", "")


def test_pipes(model):
    done = optimize("-", "-p", "fold", "-o", "-", input=Path(model).read_bytes())
    assert done.exit_code == 0
    onnx.checker.check_model(onnx.load_from_string(done.stdout_bytes))
    assert "verified" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("-p", "scale{factor=2}", "-o", "out.onnx"), 1, "scale: promised Preserving"),
        (("-p", "raises", "-o", "out.onnx"), 3, "raises: raised KeyError"),
        (("-p", "refuses", "-o", "out.onnx"), 2, "no channel is free"),
        (("-p", "simplfy", "-o", "out.onnx"), 2, "did you mean 'simplify'?"),
        (("-p", "lossy-scale{factor=2}", "-o", "out.onnx", "--budget", "error=0.01"), 1, "MISSED (1)"),
        (("-p", "fold", "-o", "out.onnx", "--budget", "size=0.5x"), 1, "budget size=0.5x: MISSED (1x)"),
        (("-p", "fold", "-o", "out.onnx", "--budget", "siz=0.5x"), 2, "did you mean 'size'?"),
        (("-p", "fold", "-o", "out.onnx", "--budget", "size=small"), 2, "is not a limit"),
        (("-p", "lossy-scale{factor=2}", "-o", "out.onnx", "--max-error", "0.1"), 1, "lossy-scale: promised Lossy"),
        (("-p", "fold"), 2, "no output is given"),
        (("-o", "out.onnx"), 2, "no passes are given"),
        (("-p", "fold", "-o", "nowhere/out.onnx"), 2, "folder does not exist"),
        (("-p", "fold", "-o", "-", "--json"), 2, "stdout cannot carry both"),
        (("-p", "fold", "-o", "out.onnx", "--report", "r.pdf"), 2, "a report ends in .json or .md"),
        (("-p", "fold", "-o", "out.onnx", "--print-after", "flod"), 2, "did you mean 'fold'?"),
        (("-p", "fold", "-o", "out.onnx", "--calibration", "absent.npz"), 2, "no such file"),
        (("-p", "fold", "-o", "out.onnx", "--no-verify", "--budget", "error=1"), 2, "needs verification"),
        (("-p", "fold", "-o", "out.onnx", "--recipe"), 2, "requires an argument"),
    ],
)
def test_exit_codes_and_nothing_is_written(model, stubs, arguments, code, message):
    done = optimize(model, *arguments)
    assert done.exit_code == code, done.output
    assert message in done.stderr
    assert not Path("out.onnx").exists()


def test_a_kept_budget_exits_zero(model):
    done = optimize(model, "-p", "fold", "-o", "out.onnx", "--budget", "size=1x", "--budget", "error=1e-5")
    assert done.exit_code == 0
    assert "budget size=1x: kept (1x)" in done.stdout


def test_a_bad_model_is_an_error_and_no_traceback(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("bad.onnx").write_bytes(b"not a model")
    for path in ("bad.onnx", "absent.onnx"):
        done = optimize(path, "-p", "fold", "-o", "out.onnx")
        assert done.exit_code == 2
        assert path in done.stderr
        assert "Traceback" not in done.output


def test_the_job_summary_is_appended_to(model, monkeypatch):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "summary.md")
    Path("summary.md").write_text("before\n")
    assert optimize(model, "-p", "fold", "-o", "out.onnx", "-q", "--budget", "size=0.1x").exit_code == 1
    summary = Path("summary.md").read_text()
    assert summary.startswith("before\n### bevel optimize")
    assert "budget size=0.1x: MISSED" in summary


def test_a_recipe_and_a_project_stand_in_for_passes(model, stubs):
    Path("pyproject.toml").write_text('[[tool.bevel.pass]]\nname = "nothing"\n')
    Path("recipe.toml").write_text('passes = "zero"\n')
    for arguments, passes in (((), ["nothing"]), (("--recipe", "recipe.toml"), ["zero"]), (("-p", "fold"), ["fold"])):
        done = optimize(model, "--dry-run", "--json", *arguments)
        assert [step["pass"] for step in json.loads(done.stdout)["passes"]] == passes


def test_a_dry_run_writes_nothing(model):
    assert optimize(model, "-p", "fold", "--dry-run", "-o", "out.onnx").exit_code == 0
    assert not Path("out.onnx").exists()


def test_steering_and_watching(model, stubs):
    done = optimize(model, "-p", "nothing,scale{factor=2}", "-o", "out.onnx", "--bisect", "1", "--time-passes")
    assert done.exit_code == 0
    assert "BISECT: NOT running pass (2) scale" in done.stderr
    assert "check" in done.stderr
    printed = optimize(model, "-p", "nothing", "--dry-run", "--print-after", "nothing")
    assert "// after nothing" in printed.stderr
    assert "Gemm" in printed.stderr


def test_a_failure_is_kept(model, stubs):
    done = optimize(model, "-p", "scale{factor=2}", "-o", "out.onnx", "--keep-failed", "failed")
    assert done.exit_code == 1
    assert {"input.onnx", "pipeline.txt", "feed_0.npz"} <= names("failed")
    optimize(model, "-p", "fold", "-o", "out.onnx", "--keep-failed", "missed", "--budget", "size=0.1x")
    assert names("missed") == {"output.onnx"}


def test_the_same_command_gives_the_same_bytes(model):
    for name in ("a.onnx", "b.onnx"):
        assert optimize(model, "-p", "simplify,fold", "-o", name, "--seed", "1").exit_code == 0
    assert Path("a.onnx").read_bytes() == Path("b.onnx").read_bytes()


def test_calibration_inputs_are_used(model):
    np.savez("x.npz", x=np.ones((2, 6), np.float32))
    done = optimize(model, "-p", "fold", "-o", "out.onnx", "--calibration", "x.npz")
    assert "verified on 1 inputs (x.npz)" in done.stdout


def test_verify_tells_models_apart(model):
    onnx.save(proto(MLP, MLP_WEIGHTS, seed=1), "other.onnx")
    assert run("verify", model, model, "--exact").exit_code == 0
    done = run("verify", model, "other.onnx")
    assert done.exit_code == 1
    assert "differs in y" in done.stderr
    assert json.loads(run("verify", model, model, "--json").stdout)["kept"] is True


def test_inspect_prints_groups_and_proves_them():
    done = run("inspect", DIGITS, "--check")
    assert done.exit_code == 0, done.output
    assert "permute select" in done.stdout
    assert "groups permuted at random" in done.stdout
    assert json.loads(run("inspect", DIGITS, "--json").stdout)["groups"]


def test_inspect_names_a_group_that_is_wrong(monkeypatch):
    from bevel.ir.edit import permute
    from bevel.passes import shuffle_channels

    def lie(model, orders):
        permute(model, orders)
        if "stem.weight[0]" in orders:
            weight = model.graph.initializers["stem.weight"]
            weight.const_value = bevel.passes.pipeline.ir.tensor(weight.const_value.numpy()[::-1].copy())

    monkeypatch.setattr(shuffle_channels, "permute", lie)
    done = run("inspect", DIGITS, "--check")
    assert done.exit_code == 1
    assert "wrong groups: stem.weight[0]\n" in done.stderr


def test_passes_are_listed_and_explained():
    assert "fold" in run("passes").stdout
    explained = run("passes", "simplify").stdout
    assert "Promise: Preserving 1e-05" in explained
    assert "onnxsim: bool = false" in explained
    assert "did you mean 'fold'" in run("passes", "fodl").stderr


def test_formats_are_listed_and_explained():
    listed = run("formats").stdout
    assert "int4                     5 bits  Signed whole numbers times a scale." in listed.splitlines()
    explained = run("formats", "mxfp4").stdout
    assert "Bits: 4.5 at 16, 4.25 at 32" in explained and "Levels: -6, -4, -3" in explained
    assert "did you mean 'mxfp4'" in run("formats", "mxfp5").stderr


@pytest.mark.parametrize(
    ("command", "name", "said"),
    [("splitters", "kmeans", "Cluster the directions"), ("routers", "logistic", "Fit a logistic regression")],
)
def test_splitters_and_routers_are_listed_and_explained(command, name, said):
    assert f"{name:<20} {said}" in run(command).stdout
    assert run(command, name).stdout.startswith(f"{name}\n\n{said}")
    assert f"did you mean '{name}'" in run(command, name[:-1]).stderr


def test_importances_are_listed_and_explained():
    listed = run("importances").stdout
    assert "lamp                 Score each entry, in each tensor by itself, by its energy" in listed
    explained = run("importances", "magnitude").stdout
    assert "Li et al. 2017" in explained
    assert "aggregate: norm\nnormalize: mean" in explained
    assert "did you mean 'magnitude'" in run("importances", "magnitud").stderr


def test_rules_are_listed():
    assert "Conv" in run("rules").stdout
    assert "bevel.ir.rules" in run("rules", "MatMul").stdout
    assert run("rules", "NoSuchThing").exit_code == 2


# It takes 0.09 on an idle machine; importing onnx alone takes 0.4.
HELP_SECONDS = 0.25


def test_help_imports_nothing_heavy_and_is_quick():
    code = "import sys, bevel.cli; print({'numpy', 'onnx', 'onnx_ir', 'onnxruntime', 'rich'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
    assert min(help_seconds() for _ in range(3)) < HELP_SECONDS


def help_seconds():
    """Processor time, for wall time says more about what else runs."""
    before = os.times()
    subprocess.run([sys.executable, "-m", "bevel.cli", "optimize", "--help"], capture_output=True, check=True)
    after = os.times()
    return after.children_user - before.children_user + after.children_system - before.children_system


def test_an_interrupt_leaves_nothing_behind(model, monkeypatch):
    from bevel.commands import optimize as command

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "write", interrupted)
    done = optimize(model, "-p", "fold", "-o", "out.onnx")
    assert done.exit_code == 130
    assert names(".") == {"mlp.onnx"}


def test_a_model_is_written_as_python(model):
    done = run("to-torch", model, "-o", "mlp.py")
    assert done.exit_code == 0 and "verified" in done.stderr
    assert names(".") == {"mlp.onnx", "mlp.py", "mlp.safetensors"}


def test_a_module_is_not_written_to_a_name_without_py(model):
    done = run("to-torch", model, "-o", "mlp.bin")
    assert done.exit_code == 2 and ".py" in done.stderr
    assert names(".") == {"mlp.onnx"}
    assert run("to-torch", "absent.onnx", "-o", "mlp.bin").stderr == done.stderr  # said before anything is read


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-o", ""), "the output has no name"),
        (("-o", "."), "is a folder"),
        (("-o", "x" * 300), "File name too long"),
        (("-o", "out.onnx", "--plan", "."), "is a folder"),
        (("-o", "out.onnx", "--plan", "./out.onnx"), "the plan would replace the output"),
        (("-o", "out.json", "--report", "out.json"), "the report would replace the output"),
        (("-o", "out.onnx", "--report", "absent/r.json"), "the report's folder does not exist"),
        (("-o", "out.onnx", "--keep-failed", "mlp.onnx"), "is no folder"),
        (("-o", "out.onnx", "--keep-failed", ""), "is no folder"),
        (("-o", "out.onnx", "--seed", "-1"), "-1"),
        (("-o", "out.onnx", "--max-error", "nan"), "nan is no number"),
    ],
)
def test_what_cannot_be_written_or_asked_for_is_refused_before_any_work(model, arguments, message):
    done = optimize(model, "-p", "fold", *arguments)
    assert (done.exit_code, done.stdout) == (2, ""), done.output
    assert message in done.stderr
    assert names(".") == {"mlp.onnx"}


def test_a_plan_or_report_does_not_take_the_place_of_a_device(model, tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    for option in ("--plan", "--report"):
        with subprocess.Popen(["cat", "pipe.json"], stdout=subprocess.PIPE, cwd=tmp_path) as reader:
            done = optimize(model, "-p", "prune-channels", "-o", "out.onnx", option, "pipe.json")
            assert done.exit_code == 0, done.output
            assert json.loads(reader.communicate()[0])
        assert (tmp_path / "pipe.json").is_fifo()


def test_a_full_device_is_an_error_and_no_traceback(model):
    if not Path("/dev/full").is_char_device():
        pytest.skip("this system has no full device")
    for done in (
        optimize(model, "-p", "fold", "-o", "/dev/full"),
        run("merge-delta", model, "--base", model, "-o", "/dev/full"),
    ):
        assert done.exit_code == 2 and "No space left" in done.stderr
    assert Path("/dev/full").is_char_device()


def test_limits_that_are_no_numbers_are_kept_by_nothing(model):
    assert run("verify", model, model, "--rtol", "nan").exit_code == 2
    assert run("merge-delta", model, "--base", model, "-o", "out.onnx", "--max-error", "nan").exit_code == 2
    assert run("merge-delta", model, "--base", model, "-o", "out.onnx", "--scale", "inf").exit_code == 2
    with pytest.raises(UsageError, match="no limit"):
        bevel.optimize(bevel.load(model), "fold", max_error=float("nan"))
    with pytest.raises(UsageError, match="negative"):
        bevel.optimize(bevel.load(model), "fold", seed=-1)
    assert names(".") == {"mlp.onnx"}


def test_what_is_needed_is_told_where_it_cannot_be_kept(model, stubs, monkeypatch):
    def full(*arguments, **named):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bevel.passes.reproducer.ZipFile", full)
    done = optimize(model, "-p", "scale{factor=2}", "-o", "out.onnx", "--keep-failed", "failed")
    assert done.exit_code == 1 and "scale: promised Preserving" in done.stderr
    assert "was not saved: [Errno 28] No space left" in done.stderr
