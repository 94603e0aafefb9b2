"""The conformance data, in the forms in which a rule meets its operator: all operands fed, some of them constant."""

import os
import pickle
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, fields, replace
from functools import cache
from itertools import islice
from multiprocessing import get_context
from typing import TypeVar

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper
from onnx.version_converter import convert_version

from bevel.equivariance import Checked, check_rule
from bevel.errors import UnsupportedModel
from tests.zoo.conformance import Case, Value, flat, model_tests, node_cases, node_tests, read, runs
from tests.zoo.store import kept

# ONNX Runtime 1.31 knows no later standard operators and no later format.
KNOWN_OPSET, KNOWN_FORMAT = 26, 11


@cache
def restated_tests() -> tuple[Case, ...]:
    """Cases of later opsets that ONNX Runtime gets right when they are stated in one it knows."""
    content = kept("restated-tests.pickle", lambda: pickle.dumps([flat(case) for case in restated_cases()]))
    return tuple(Case(name, onnx.load_from_string(model), *rest) for name, model, *rest in read(content))


def restated_cases() -> Iterator[Case]:
    for case in node_cases():
        if any(opset.domain == "" and opset.version > KNOWN_OPSET for opset in case.model.opset_import):
            restated = replace(case, model=restate(case.model))
            if runs(restated):
                yield restated


def restate(model: onnx.ModelProto) -> onnx.ModelProto:
    restated = onnx.ModelProto()
    restated.CopyFrom(model)
    restated.ir_version = KNOWN_FORMAT
    for opset in restated.opset_import:
        if opset.domain == "":
            opset.version = KNOWN_OPSET
    return restated


@cache
def modernised_tests() -> tuple[Case, ...]:
    """The small models of old opsets, converted: what masking adds to a model needs broadcasting."""
    old = [case for case in model_tests() if any(opset.version < 7 for opset in case.model.opset_import)]
    converted = (replace(case, name=f"{case.name}_converted", model=convert_version(case.model, 13)) for case in old)
    return tuple(case for case in converted if runs(case))


def cases() -> Iterator[Case]:
    yield from node_tests()
    yield from restated_tests()
    yield from model_tests()
    yield from modernised_tests()


@dataclass(frozen=True)
class Form:
    """A case with some of its inputs turned into initializers."""

    case: str
    given: tuple[str, ...]
    model: ir.Model
    feed: dict[str, Value]

    def __str__(self) -> str:
        return f"{self.case}({', '.join(self.given)})"


def forms(case: Case) -> Iterator[Form]:
    """A case as it is; with what may be a size, an axis or a scale given; with all but the first operand given.

    The bodies of function operators, hundreds of cases of many nodes, are tried in the second form only.
    """
    names = [name for name, value in case.feed.items() if isinstance(value, np.ndarray)]
    small = tuple(name for name in names if is_parameter(case.feed[name]))
    expanded = case.name.endswith("_expanded")
    for given in (small,) if expanded else dict.fromkeys(((), small, tuple(names[1:]))):
        yield form(case, given)


def is_parameter(array: np.ndarray) -> bool:
    return array.ndim == 0 or (array.ndim == 1 and array.dtype in (np.int64, np.int32))


def form(case: Case, given: tuple[str, ...]) -> Form:
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    remaining = [value for value in model.graph.input if value.name not in given]
    del model.graph.input[:]
    model.graph.input.extend(remaining)
    model.graph.initializer.extend(numpy_helper.from_array(case.feed[name], name) for name in given)
    feed = {name: value for name, value in case.feed.items() if name not in given}
    return Form(case.name, given, ir.from_proto(model), feed)


Found = TypeVar("Found")


@dataclass
class Tally:
    """What a run over the corpus found."""

    forms: int = 0
    permuted: int = 0
    selected: int = 0
    permuted_by: Counter[str] = field(default_factory=Counter)
    selected_by: Counter[str] = field(default_factory=Counter)
    disagreements: list[str] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    refused: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    fixed: dict[str, set[str]] = field(default_factory=dict)

    def add(self, form: Form) -> None:
        nodes = list(ir.traversal.RecursiveGraphIterator(form.model.graph))
        self.forms += 1
        self.seen.update(label(node.domain, node.op_type) for node in nodes)
        try:
            checked = check_rule(form.model, form.feed)
        except UnsupportedModel as error:
            self.refused.append(f"{form}: {error.what}")
            return
        self.record(form, checked)
        if len(nodes) == 1:
            self.fixed.setdefault(label(nodes[0].domain, nodes[0].op_type), set()).update(checked.fixed)

    def record(self, form: Form, checked: Checked) -> None:
        self.permuted += checked.permuted
        self.selected += checked.selected
        self.permuted_by.update(label(*operator) for operator in checked.permuted_operators)
        self.selected_by.update(label(*operator) for operator in checked.selected_operators)
        self.disagreements += [f"{form}: {each}" for each in checked.disagreements]
        self.skipped += [f"{form}: {each}" for each in checked.skipped]

    def __add__(self, other: "Tally") -> "Tally":
        fixed = {key: self.fixed.get(key, set()) | other.fixed.get(key, set()) for key in self.fixed | other.fixed}
        joined = {each.name: getattr(self, each.name) + getattr(other, each.name) for each in SUMMED}
        return Tally(**joined, seen=self.seen | other.seen, fixed=fixed)


SUMMED = [each for each in fields(Tally) if each.name not in ("seen", "fixed")]


def label(domain: str, op_type: str) -> str:
    return f"{domain}::{op_type}" if domain else op_type


def sweep(workers: int = os.cpu_count() or 1) -> Tally:
    """Try every form of every case, in several processes."""
    return sum(in_processes(share, workers), Tally())


def in_processes(share: Callable[[int, int], Found], workers: int = os.cpu_count() or 1) -> list[Found]:
    """Call `share` for every `workers`-th case from each of the first ones on, in processes of their own."""
    restated_tests()  # made once, before the workers look for it
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return list(pool.map(share, range(workers), [workers] * workers))


def share(first: int, step: int) -> Tally:
    """Try every `step`-th case."""
    tally = Tally()
    for case in islice(cases(), first, None, step):
        for form in forms(case):
            tally.add(form)
    return tally
