from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import pytest

from bevel import testing
from bevel.errors import EditRefused, PromiseBroken
from bevel.passes.base import Doc, Exact, Outcome, Pass
from bevel.testing import check_pass
from tests.graphs import mlp
from tests.stub_passes import Options, Refuses, Scale, scale_weight

CALLS = []


@dataclass(frozen=True)
class Drifts(Pass):
    """Give another result each time."""

    name: ClassVar[str] = "drifts"
    promise = Exact()

    def run(self, model, context):
        CALLS.append(1)
        model.graph.name = f"graph{len(CALLS)}"
        return Outcome()


@dataclass(frozen=True)
class RefusesLate(Pass):
    """Write, then refuse."""

    name: ClassVar[str] = "refuses-late"
    promise = Exact()

    def run(self, model, context):
        scale_weight(model, "w2", 2)
        raise EditRefused("too late")


@dataclass(frozen=True)
class Undocumented(Pass):
    name: ClassVar[str] = "undocumented"
    promise = Exact()

    def run(self, model, context):
        return Outcome()


@dataclass(frozen=True)
class Documented(Undocumented):
    """Do nothing."""

    size: Annotated[int, Doc("a size")] = 1


@pytest.fixture(autouse=True)
def known(monkeypatch, stubs):
    for cls in (Drifts, RefusesLate, Undocumented, Documented):
        monkeypatch.setitem(stubs, cls.name, cls)


def test_a_good_pass_passes():
    assert check_pass(Documented(size=2), mlp()).verdict.kept
    assert check_pass(Documented(), mlp(), feeds=[{"x": np.zeros((1, 6), np.float32)}]).verdict.feeds == 1


@pytest.mark.parametrize(
    ("step", "error", "message"),
    [
        (Drifts(), AssertionError, "two runs gave different models"),
        (RefusesLate(), AssertionError, "refused after it had changed the model"),
        (Undocumented(), AssertionError, "no docstring"),
        (Options(), AssertionError, "option round-to has no Doc"),
        (Refuses(), EditRefused, "no channel is free"),
    ],
)
def test_a_pass_that_misbehaves_is_caught(step, error, message):
    with pytest.raises(error, match=message):
        check_pass(step, mlp())


def test_a_lie_is_caught(monkeypatch):
    monkeypatch.setattr(testing, "check_documentation", lambda cls: None)
    with pytest.raises(PromiseBroken):
        check_pass(Scale(factor=2), mlp())
