"""Fixtures that several test files use."""

import copy
import sys
from functools import cache

import pytest

from bevel import registry
from tests import stub_passes


def pytest_runtest_setup():
    """Let PyTorch read its 500 translations to ONNX once, when it has any: they take longer than a small export."""
    loaded = sys.modules.get("torch.onnx._internal.exporter._registration")
    if loaded is not None:
        read_once(loaded.ONNXRegistry)


@cache
def read_once(translations):
    read = cache(translations.from_torchlib)

    def from_torchlib(*args, **kwargs):
        fresh = copy.copy(read(*args, **kwargs))
        fresh.functions = {name: list(known) for name, known in fresh.functions.items()}
        return fresh

    translations.from_torchlib = staticmethod(from_torchlib)


@pytest.fixture
def stubs(monkeypatch):
    """Make the stub passes known by name, beside the real ones."""
    real = registry.Registry.__getitem__

    def lookup(self, name):
        return stub_passes.ALL[name] if self.noun == "pass" and name in stub_passes.ALL else real(self, name)

    monkeypatch.setattr(registry.Registry, "__getitem__", lookup)
    return stub_passes.ALL
