from importlib.metadata import EntryPoint

import pytest

from bevel import registry
from bevel.errors import UsageError


def points(*triples):
    return tuple(EntryPoint(name, value, "bevel.passes") for name, value in triples)


def test_built_in_passes_come_through_the_same_door_as_a_plugins():
    assert {"simplify", "fold"} <= set(registry.passes())
    assert registry.passes()["fold"].name == "fold"
    assert registry.passes().origin("fold").startswith("bevel ")


def test_an_unknown_name_gives_the_nearest():
    with pytest.raises(UsageError, match="did you mean 'simplify'"):
        registry.passes()["simplfy"]
    assert "simplfy" not in registry.passes()


@pytest.mark.parametrize("value", ["bevel.nowhere:Pass", "bevel.passes.fold:Absent"])
def test_a_broken_plugin_says_whose_it_is(monkeypatch, value):
    monkeypatch.setattr(registry, "_entry_points", lambda group: points(("broken", value)))
    with pytest.raises(UsageError, match=r"an unknown package: 'broken' cannot be loaded from bevel\."):
        registry.passes()["broken"]


def test_two_plugins_with_one_name_are_an_error(monkeypatch):
    monkeypatch.setattr(registry, "_entry_points", lambda group: points(("a", "one:A"), ("a", "two:A")))
    with pytest.raises(UsageError, match="'a' is provided by both"):
        registry.passes()


def test_listing_imports_nothing(monkeypatch):
    monkeypatch.setattr(registry, "_entry_points", lambda group: points(("broken", "bevel.nowhere:Pass")))
    assert list(registry.passes()) == ["broken"]
