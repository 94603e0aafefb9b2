"""A graph as an `nn.Module`, whose `forward` is the Python that was written for it."""

from __future__ import annotations

import linecache
from collections.abc import Callable, Mapping
from itertools import count
from os import PathLike
from typing import Any, Final

from bevel.backends.torch.failures import SOURCE_FILE
from bevel.backends.torch.parameters import Parameters
from bevel.backends.torch.source import GLOBALS, Port, Source
from bevel.backends.torch.written import write_module

_NUMBERS: Final = count()


class GraphModule(Parameters):
    """A converted graph: trainable, readable, and like any other module to torch.

    `forward` takes the graph's inputs in order, or by name, and returns its output, or a tuple of several; inputs that
    have a default in the graph are given by name. `code` is the Python it runs, `inputs` and `outputs` are the names in
    the graph, `arguments` what `forward` calls the inputs. Parameters and buffers have the names that the model gives
    them.
    """

    code: str
    inputs: tuple[str, ...]
    arguments: tuple[str, ...]
    outputs: tuple[str, ...]
    ports: tuple[Port, ...]

    def __init__(self, source: Source, tree: Parameters) -> None:
        super().__init__()
        self.__dict__.update(tree.__dict__)
        self._source = source
        self.code = source.code
        self.ports = (*source.inputs, *source.outputs)
        self.arguments = source.arguments
        self.inputs = tuple(port.name for port in source.inputs)
        self.outputs = tuple(port.name for port in source.outputs)
        # Every instance has a class of its own, so that torch.compile and torch.export find a plain `forward` there.
        self.__class__ = type("GraphModule", (GraphModule,), {"forward": compiled(source)})

    @property
    def functions(self) -> Mapping[str, Callable[..., Any]]:
        """The functions that `code` calls, by the names that it uses."""
        return self._source.functions

    def write(self, path: str | PathLike[str]) -> None:
        """Write the module as `path`, a `.py` file that needs no Bevel, with a `.safetensors` file beside it."""
        write_module(self, path)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _rebuild, (self._source, self.__dict__)

    def __copy__(self) -> GraphModule:
        return _rebuild(self._source, self.__dict__)


def _rebuild(source: Source, state: Mapping[str, Any]) -> GraphModule:
    module = GraphModule(source, Parameters())
    module.__dict__.update(state)
    return module


def compiled(source: Source) -> Callable[..., Any]:
    """Compile a source to a function; tracebacks and debuggers can show its lines."""
    filename = f"{SOURCE_FILE} {next(_NUMBERS)}>"
    linecache.cache[filename] = (len(source.code), None, source.code.splitlines(True), filename)
    namespace: dict[str, Any] = {**GLOBALS, **source.functions}
    exec(compile(source.code, filename, "exec"), namespace)
    forward: Callable[..., Any] = namespace["forward"]
    return forward
