"""A graph as the Python source of a module's `forward`."""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import onnx_ir as ir
import torch

from bevel.backends.torch import expressions
from bevel.backends.torch.control import WRITERS
from bevel.backends.torch.expressions import Expression, Host
from bevel.backends.torch.lines import Line, assign, settle
from bevel.backends.torch.operators import entry_of, write_operator
from bevel.backends.torch.types import torch_type

GLOBALS: Final[Mapping[str, Any]] = {"numpy": np, "torch": torch}
# What written code uses of Python itself; other builtins are good names for arguments (torch has many an `input`).
_BUILTINS: Final = ("float", "getattr", "len", "range", "zip")
_RESERVED: Final = frozenset({*keyword.kwlist, *_BUILTINS, *GLOBALS, "self", "device", "dtype"})


@dataclass(frozen=True)
class Port:
    """An input or output of the graph: its name there, and its ONNX element type, 0 if that is not a tensor's."""

    name: str
    element_type: int

    @classmethod
    def of(cls, value: ir.Value) -> Port:
        """Describe a value."""
        return cls(value.name or "", int(value.dtype or 0) if isinstance(value.type, ir.TensorType) else 0)


@dataclass(frozen=True)
class Source:
    """The body of a `forward`, the names of its arguments, and the functions that it calls by name.

    `inputs` and `outputs` are the graph's, in the order in which `forward` takes and returns them. Of the arguments,
    the last `optional` ones have a default, which the graph holds, and are given by name.
    """

    arguments: tuple[str, ...]
    body: tuple[str, ...]
    functions: Mapping[str, Callable[..., Any]]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    optional: int = 0

    @property
    def code(self) -> str:
        """The function as Python source."""
        required = self.arguments[: len(self.arguments) - self.optional]
        optional = [f"{name}=None" for name in self.arguments[len(required) :]]
        arguments = ("self", *required, *(["*"] if optional else []), *optional)
        rows = "\n".join(f"    {row}" for row in self.body)
        return f"def forward({', '.join(arguments)}):\n{rows}\n"


@dataclass
class Writer:
    """Writes one graph, and the graphs inside it, line by line.

    `read` gives the code that reads an initializer; `hold` registers a tensor of an attribute and gives the same.
    """

    read: Callable[[ir.Value], str]
    hold: Callable[[str, ir.TensorProtocol], str]
    imports: Mapping[str, int]
    main_type: torch.dtype | None
    main_tensor: str | None
    names: set[str] = field(default_factory=lambda: set(_RESERVED))
    values: dict[ir.Value, str] = field(default_factory=dict)
    hosts: dict[ir.Value, Host] = field(default_factory=dict)
    functions: dict[str, Callable[..., Any]] = field(default_factory=dict)
    lines: list[Line] = field(default_factory=list)
    follows_type: bool = False

    def write(self, graph: ir.Graph) -> Source:
        """Write the whole function of a main graph."""
        self._reserve(graph)
        inputs = sorted(graph.inputs, key=lambda value: value.is_initializer())  # those with a default come last
        arguments = [self.make(value) for value in inputs]
        optional = [value for value in inputs if value.is_initializer()]
        for name, value in zip(arguments[len(inputs) - len(optional) :], optional, strict=True):
            self.lines.append(assign([name], f"{self.read(value)} if {name} is None else {name}"))
        self.nodes(graph)
        results = [self.tensor(value) for value in graph.outputs]
        result = results[0] if len(results) == 1 else f"({', '.join(results)})"
        body = settle(self.lines, result, kept=arguments)
        taken, given = (tuple(Port.of(value) for value in values) for values in (inputs, graph.outputs))
        whole = (*self._preamble(body, graph), *body)
        return Source(tuple(arguments), whole, self.functions, taken, given, len(optional))

    def _reserve(self, graph: ir.Graph) -> None:
        """Keep the names of the functions that will be called from becoming variables."""
        for node in ir.traversal.RecursiveGraphIterator(graph):
            entry = entry_of(self, node)
            if entry is not None and entry.function is not None:
                self.names.add(entry.function.__name__)

    def nodes(self, graph: ir.Graph) -> None:
        """Write the nodes of a graph in order."""
        for node in graph:
            special = WRITERS.get(node.op_type) if node.domain == "" else None
            if special is not None:
                special(self, node)
            elif not self._sizes(node) and not self._arithmetic(node):
                write_operator(self, node)

    def block(self, write: Callable[[], None]) -> list[Line]:
        """Return the lines that `write` writes, instead of putting them here."""
        outer, self.lines = self.lines, []
        write()
        inner, self.lines = self.lines, outer
        return inner

    # Values

    def name(self, wanted: str | None) -> str:
        """Return a new variable's name, as close to the graph's as Python allows."""
        base = re.sub(r"\W+", "_", (wanted or "value").removesuffix("_output_0")).strip("_") or "value"
        base = f"v{base}" if base[0].isdigit() else base
        name, number = base, 2
        while name in self.names:
            name, number = f"{base}_{number}", number + 1
        self.names.add(name)
        return name

    def make(self, value: ir.Value) -> str:
        """Return the variable of a value that is about to be assigned."""
        self.values[value] = self.name(value.name)
        return self.values[value]

    def tensor(self, value: ir.Value | None) -> str:
        """Return the code of a value as a tensor (or a list, where it is a sequence)."""
        if value is None:
            return "None"
        if value in self.values:
            return self.values[value]
        if value in self.hosts:
            host = self.hosts[value]
            kind = "torch.bool" if host.type is ir.DataType.BOOL else f"torch.{host.type.numpy().name}"
            return f"torch.tensor({host.code()}, dtype={kind}, device=device)"
        return self.read(value)

    def host(self, value: ir.Value) -> Host | None:
        """Return the content of a value as Python numbers and expressions, if it has one."""
        if value in self.hosts or value in self.values:
            return self.hosts.get(value)
        return None if value.const_value is None else expressions.constant(value.const_value)

    def content(self, value: ir.Value | None, *, single: bool) -> str:
        """Return the code of an integer value as Python integers: one, or a flat list."""
        if value is None:
            return "None"
        host = self.host(value)
        if host is None:
            return f"{self.tensor(value)}.{'item' if single else 'tolist'}()"
        flat = Host(host.entries.reshape(() if single else (-1,)), host.type)
        return flat.code()

    # Shape arithmetic

    def _sizes(self, node: ir.Node) -> bool:
        """Take the sizes of a tensor of known rank as expressions."""
        if node.domain != "" or node.op_type not in ("Shape", "Size") or node.inputs[0] is None:
            return False
        value, output = node.inputs[0], node.outputs[0]
        if value.shape is None or value in self.hosts:
            return False
        rank = len(value.shape)
        start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", rank)
        places = range(rank)[start:end] if node.op_type == "Shape" else range(rank)
        sizes = np.empty(len(places), object)
        sizes[:] = [self._size(value, place) for place in places]
        entries = sizes if node.op_type == "Shape" else np.array(np.prod([1, *sizes]), object)
        self.hosts[output] = Host(entries, ir.DataType.INT64)
        return True

    def _size(self, value: ir.Value, place: int) -> Expression:
        """Bind one size of a tensor to a variable, after the model's name for it where that is free."""
        tensor = self.tensor(value)
        assert value.shape is not None
        size = value.shape[place]
        symbol = size.value if isinstance(size, ir.SymbolicDim) else None
        plain = symbol is not None and symbol.isidentifier() and symbol not in self.names
        name = self.name(symbol if plain else f"{value.name}_size{place}")
        self.lines.append(Line(f"{name} = {tensor}.shape[{place}]", (name,), optional=True))
        return Expression(name)

    def _arithmetic(self, node: ir.Node) -> bool:
        """Compute a node on Python integers, if a size takes part and all it needs is known."""
        if not any(value in self.hosts for value in node.inputs) or len(node.outputs) != 1:
            return False
        known = [self.host(value) for value in node.inputs if value is not None]
        inputs = [host for host in known if host is not None]
        result = expressions.evaluate(node, inputs) if len(inputs) == len(node.inputs) else None
        if result is not None:
            self.hosts[node.outputs[0]] = result
        return result is not None

    def version(self, node: ir.Node) -> int:
        """Return the operator set version that a node is of."""
        return self.imports.get(node.domain, 1)

    def use(self, function: Callable[..., Any]) -> str:
        """Make a function callable from the source, and return its name there."""
        name = function.__name__
        while self.functions.get(name, function) is not function:
            name = f"{name}_"
        self.functions[name] = function
        self.names.add(name)
        return name

    def type_code(self, element_type: int) -> str:
        """Return the code of a torch type; the module's main one follows when the module is converted to another."""
        kind = torch_type(element_type)
        if kind is not self.main_type or not self.main_tensor:
            return str(kind)
        self.follows_type = True
        return "dtype"

    def _preamble(self, body: Sequence[str], graph: ir.Graph) -> Iterator[str]:
        words = set(re.findall(r"[A-Za-z_]\w*", "\n".join(body)))
        if "device" in words:
            tensors = [self.values[value] for value in graph.inputs if isinstance(value.type, ir.TensorType)]
            source = self.main_tensor or next(iter(tensors), None)
            yield f"device = {source}.device" if source else 'device = torch.device("cpu")'
        if self.follows_type:
            yield f"dtype = {self.main_tensor}.dtype"
