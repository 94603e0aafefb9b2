"""What README and CONTRIBUTING tell people to type, run on the built-in model."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import bevel
from bevel.models import path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
BINARIES = Path(sys.executable).parent


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder as the examples assume it: a model, and inputs that fit it."""
    shutil.copy(path("digits.onnx"), tmp_path / "model.onnx")
    with np.load(path("digits.npz")) as file:
        np.savez(tmp_path / "inputs.npz", image=file["calibration"][:32])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def block(language):
    (found,) = blocks(language)
    return found


def run(line):
    program, *arguments = shlex.split(line, comments=True)
    return subprocess.run([BINARIES / program, *arguments], capture_output=True, text=True)


def ci_command():
    (folded,) = re.findall(r"run: >\n(.*?)\n      - ", block("yaml"), re.DOTALL)
    return " ".join(folded.split())


def test_the_python_example_runs(workplace):
    exec(blocks("python")[0], {})
    assert (workplace / "small.onnx").stat().st_size < (workplace / "model.onnx").stat().st_size


def test_the_example_of_modules_runs(workplace):
    module = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 10)).eval()
    batches = [torch.randn(4, 1, 8, 8) for _ in range(2)]
    exec(
        blocks("python")[1].replace('"image"', '"input"'), {"module": module, "example": batches[0], "batches": batches}
    )
    assert (workplace / "small.onnx").exists()
    assert module[0].out_channels == 4 and module(batches[0]).shape == (4, 10)


def test_the_example_of_selected_channels_runs(workplace):
    module = nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 10)).eval()
    model = bevel.load(module, (torch.randn(4, 8),))
    batches = [(torch.randn(4, 8), torch.randint(10, (4,))) for _ in range(2)]
    exec(blocks("python")[2], {"bevel": bevel, "model": model, "batches": batches})
    assert (workplace / "tuned.onnx").exists() and (workplace / "task.safetensors").stat().st_size < 4000


def test_the_shell_examples_run(workplace):
    for line in "".join(blocks("sh")).replace("\\\n", " ").splitlines():
        done = run(line)
        assert done.returncode == 0, done.stderr
    assert (workplace / "small.onnx").exists()


def test_the_ci_job_passes_and_writes_its_summary(workplace, monkeypatch):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(workplace / "summary.md"))
    done = run(ci_command())
    assert done.returncode == 0, done.stderr
    assert "prune-channels" in (workplace / "summary.md").read_text("utf-8")


def test_the_ci_job_fails_on_a_missed_budget(workplace):
    done = run(ci_command().replace("size=0.7x", "size=0.1x"))
    assert done.returncode == 1
    assert not (workplace / "small.onnx").exists()


def test_every_installed_pass_is_in_the_table():
    from bevel import registry

    assert set(registry.passes()) <= set(re.findall(r"^\| `([a-z-]+)` \|", README, re.MULTILINE))


def test_links_lead_somewhere():
    for page in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
