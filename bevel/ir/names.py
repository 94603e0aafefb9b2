"""Names of values and nodes: which are taken in a model, and which are free."""

from collections.abc import Iterator
from functools import cached_property
from itertools import count

import onnx_ir as ir


class Names:
    """All names taken in a model, of values and nodes in all its graphs; read once, when a free one is first asked for.

    An inner graph sees the names of those around it, so a name is free only if no graph has it.
    """

    def __init__(self, model: ir.Model) -> None:
        self._model = model
        self._again: dict[str, Iterator[str]] = {}

    @cached_property
    def _taken(self) -> set[str]:
        nodes = (node.name for graph in self._model.graphs() for node in graph)
        return value_names(self._model) | {name for name in nodes if name}

    def free(self, name: str) -> str:
        """Take a name: the one asked for, or `name/2`, `name/3` and so on where that is not free."""
        if name not in self._taken:
            self._taken.add(name)
            return name
        return next(self._again.setdefault(name, free_names(name, self._taken)))


def free_names(name: str, taken: set[str]) -> Iterator[str]:
    """Give `name/2`, `name/3` and so on, those that are free, and take each.

    >>> names = free_names("scale", {"scale", "scale/2"})
    >>> next(names), next(names)
    ('scale/3', 'scale/4')
    """
    for number in count(2):
        found = f"{name}/{number}"
        if found not in taken:
            taken.add(found)
            yield found


def value_names(model: ir.Model) -> set[str]:
    """Give the names of all values in all graphs of the model."""
    names: set[str] = set()
    for graph in model.graphs():
        names.update(value.name for value in graph.inputs if value.name)
        names.update(graph.initializers)
        names.update(value.name for node in graph for value in node.outputs if value.name)
    return names
