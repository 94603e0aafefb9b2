"""The test models of onnx.backend.test as (name, model, inputs, expected outputs), from the installed onnx package."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx.backend.test.case import model as model_cases
from onnx.backend.test.case import node as node_cases

DATA = Path(onnx.__file__).parent / "backend/test/data"


@dataclass(frozen=True)
class Case:
    name: str
    model: onnx.ModelProto
    sets: tuple[tuple[list[Any], list[Any]], ...]
    rtol: float
    atol: float


def cases() -> Iterator[Case]:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        found = [*node_cases.collect_testcases(None), *model_cases.collect_testcases()]
    for case in found:
        if case.model is not None and case.data_sets:
            sets = tuple(([*map(_array, inputs)], [*map(_array, outputs)]) for inputs, outputs in case.data_sets)
            yield Case(f"{case.kind}:{case.name}", case.model, sets, case.rtol, case.atol)
    for kind in ("pytorch-operator", "pytorch-converted", "simple"):
        for folder in sorted((DATA / kind).iterdir()):
            yield from _from_folder(kind, folder)


def _array(value: Any) -> Any:
    return onnx.numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value


def _from_folder(kind: str, folder: Path) -> Iterator[Case]:
    path = folder / "model.onnx"
    if not path.exists():
        return
    model = onnx.load(path)
    sets = tuple(
        (_values(model.graph.input, data, "input"), _values(model.graph.output, data, "output"))
        for data in sorted(folder.glob("test_data_set_*"))
    )
    if sets:
        yield Case(f"{kind}:{folder.name}", model, sets, 1e-3, 1e-7)


def _values(declared: Any, folder: Path, prefix: str) -> list[Any]:
    files = [folder / f"{prefix}_{n}.pb" for n in range(len(list(folder.glob(f"{prefix}_*.pb"))))]
    return [_value(info, file.read_bytes()) for info, file in zip(declared, files, strict=False)]


def _value(info: onnx.ValueInfoProto, data: bytes) -> Any:
    if info.type.HasField("sequence_type"):
        return onnx.numpy_helper.to_list(onnx.SequenceProto.FromString(data))
    if info.type.HasField("optional_type"):
        return onnx.numpy_helper.to_optional(onnx.OptionalProto.FromString(data))
    return onnx.numpy_helper.to_array(onnx.TensorProto.FromString(data))
