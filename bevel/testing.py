"""What authors of plugins run on their own passes: a conformance suite in one call."""

from collections.abc import Iterable, Mapping
from typing import Any

import onnx_ir as ir

from bevel.errors import BevelError
from bevel.passes.base import Context, Pass, Promise
from bevel.passes.calibration import Calibration
from bevel.passes.execution import Execution
from bevel.passes.options import build, schema
from bevel.passes.pipeline import optimize
from bevel.passes.recipe import Pipeline, parse
from bevel.report import Step


def check_pass(step: Pass, model: ir.Model, feeds: Iterable[Mapping[str, Any]] | None = None) -> Step:
    """Check that a pass behaves on `model`, and return the verified step.

    It keeps its promise on `feeds` (made up if None); its options survive the trip through text; it gives the same
    bytes twice; what it raises leaves the model untouched; inputs and outputs keep their names. Raises `AssertionError`
    for a pass that does not behave, `PromiseBroken` for one that lies; a refusal (`BevelError`) is checked to be
    atomic and then raised.
    """
    check_documentation(type(step))
    check_text(step)
    source = None if feeds is None else list(feeds)
    check_refusal(step, model, source)
    first, second = model.clone(), model.clone()
    report = optimize(first, step, calibration=source)
    optimize(second, step, verify=False, calibration=source)
    assert _bytes(first) == _bytes(second), f"{step}: two runs gave different models"
    return report.steps[0]


def check_documentation(cls: type[Pass]) -> None:
    """Check that a pass has a name, a promise and a docstring, and each option a line about it."""
    assert cls.__doc__ and not cls.__doc__.startswith(f"{cls.__name__}("), f"{cls.__name__} has no docstring"
    assert isinstance(getattr(cls, "promise", None), Promise), f"{cls.__name__} has no promise"
    assert getattr(cls, "name", "").replace("-", "").isalnum(), f"{cls.__name__} has no name like 'prune-channels'"
    for option in schema(cls):
        assert option.doc, f"{cls.__name__}: option {option.label} has no Doc"


def check_text(step: Pass) -> None:
    """Check that a pass can be written as text, and read back as an equal pass."""
    values = {option.label: getattr(step, option.name) for option in schema(type(step))}
    assert build(type(step), values) == step, f"{step}: its options do not make an equal pass"
    assert parse(str(step)) == Pipeline((step,)), f"{step}: is another pass when read back"


def check_refusal(step: Pass, model: ir.Model, feeds: list[Mapping[str, Any]] | None) -> None:
    """Check that a pass which refuses does so before its first write."""
    working = model.clone()
    before = _bytes(working)
    inputs = Calibration.of(feeds or [], model)
    try:
        step.run(working, Context(0, inputs, Execution()))
    except BevelError:
        assert _bytes(working) == before, f"{step}: refused after it had changed the model"
        raise


def _bytes(model: ir.Model) -> bytes:
    return bytes(ir.to_proto(model).SerializeToString(deterministic=True))
