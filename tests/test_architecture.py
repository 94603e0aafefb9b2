"""Imports point one way: commands > pipeline > passes > frontends, backends > ir > errors."""

import ast
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "bevel"
FILES = sorted(ROOT.rglob("*.py"))
# What the modules under a prefix may import of bevel; the longest prefix counts.
ALLOWED = {
    "bevel": {"bevel"},  # the face and the command line see everything
    "bevel.errors": set(),
    "bevel.registry": {"bevel.errors"},
    "bevel.writing": {"bevel.errors"},
    "bevel.report": {"bevel.ir", "bevel.passes.verify"},
    "bevel.limit": {"bevel.errors"},
    "bevel.budget": {"bevel.errors", "bevel.limit", "bevel.report"},
    "bevel.ir": {"bevel.errors", "bevel.ir", "bevel.registry", "bevel.writing"},
    "bevel.frontends": {"bevel.errors", "bevel.ir", "bevel.frontends", "bevel.registry"},
    "bevel.backends": {"bevel.errors", "bevel.ir", "bevel.backends", "bevel.registry", "bevel.writing"},
    "bevel.passes": {"bevel.errors", "bevel.ir", "bevel.limit", "bevel.passes", "bevel.registry"},
    "bevel.passes.verify": {
        "bevel.errors",
        "bevel.passes.base",
        "bevel.passes.deviation",
        "bevel.passes.rounding",
        "bevel.backends",
    },
    "bevel.passes.sensitivity": {"bevel.passes.deviation", "bevel.passes.verify", "bevel.backends"},
    "bevel.passes.pieces": {"bevel.ir", "bevel.passes.deviation", "bevel.passes.rounding", "bevel.backends"},
    "bevel.passes.execution": {"bevel.backends"},
    "bevel.passes.pipeline": {"bevel.errors", "bevel.ir", "bevel.passes", "bevel.backends", "bevel.report"},
}
MACHINERY = {
    "bevel.passes.execution",
    "bevel.passes.pipeline",
    "bevel.passes.verify",
    "bevel.passes.amplified",
    "bevel.passes.pieces",
    "bevel.passes.sensitivity",
    "bevel.passes.recipe",
    "bevel.passes.reproducer",
}
PASSES = {point.value.partition(":")[0] for point in entry_points(group="bevel.passes") if point.dist.name == "bevel"}
TORCH = {"bevel.frontends.torch", "bevel.backends.torch"}


def module(path):
    return ".".join(("bevel", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


def imports(source):
    """Every module that is imported anywhere in a file, those for type checkers left out."""
    tree = ast.parse(source)
    typing_only = [
        node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
    ]
    skipped = {id(node) for block in typing_only for node in ast.walk(block)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name, prefix):
    return name == prefix or name.startswith(f"{prefix}.")


def violations(name, source):
    rule = max((prefix for prefix in ALLOWED if within(name, prefix)), key=len)
    for target in imports(source):
        if within(target, "bevel") and not any(within(target, allowed) for allowed in ALLOWED[rule]):
            yield f"{name} imports {target}"
        if within(target, "torch") and not any(within(name, allowed) for allowed in TORCH):
            yield f"{name} imports torch"
        if rule == "bevel.passes" and name not in MACHINERY and any(within(target, part) for part in MACHINERY):
            yield f"{name} imports the machinery, {target}"
        if within(name, "bevel.passes") and any(within(target, other) and name != other for other in PASSES):
            yield f"{name} imports another pass, {target}"


@pytest.mark.parametrize("path", FILES, ids=module)
def test_imports_point_one_way(path):
    assert list(violations(module(path), path.read_text())) == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("bevel.ir.axes", "from bevel.passes.base import Pass"),
        ("bevel.passes.fold", "from bevel.backends.onnxruntime import Session"),
        ("bevel.passes.fold", "def f():\n    from bevel.passes.pipeline import optimize"),
        ("bevel.errors", "import bevel"),
        ("bevel.passes.fold", "import torch.nn"),
        ("bevel.passes.extract_member", "from bevel.passes.nest import NestChannels"),
        ("bevel.passes.fitting.refit", "from bevel.passes.fold import Fold"),
    ],
)
def test_an_import_the_wrong_way_is_seen(name, source):
    assert list(violations(name, source))


def test_no_cycles():
    names = {module(path): path for path in FILES}
    edges = {
        name: {target for found in imports(path.read_text()) if (target := longest(found, names)) not in (None, name)}
        for name, path in names.items()
    }
    while leaves := {name for name, targets in edges.items() if not targets & edges.keys()}:
        edges = {name: targets for name, targets in edges.items() if name not in leaves}
    assert not edges


def longest(target, names):
    found = [name for name in names if within(target, name)]
    return max(found, key=len, default=None)
