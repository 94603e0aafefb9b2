"""ONNX models in: from a path, bytes, a binary file, an `onnx.ModelProto` or an `onnx_ir.Model`."""

import onnx_ir as ir

from bevel.errors import InvalidModel
from bevel.frontends.onnx.reading import Source, read
from bevel.frontends.onnx.schemas import check_operators, check_types
from bevel.ir.canonical import Functions, canonicalize

__all__ = ["Source", "load"]


def load(source: Source, *, functions: Functions = "inline") -> ir.Model:
    """Read a model, refuse it if it is not well-formed, and return it in canonical form.

    External data is checked and stays on disk, memory-mapped. The model keeps its own operator set version. A model
    object given as `source` is copied (its tensors are shared), never changed. `functions="keep"` leaves calls of
    model-local functions as they are.

    Raises `InvalidModel`, `MissingData` or `UnsupportedModel`, which name file, node or value, and remedy.
    """
    model, where = read(source)
    check_operators(model, where)
    try:
        canonicalize(model, functions=functions)
    except InvalidModel as error:
        raise InvalidModel(error.what, where=where, remedy=error.remedy) from error
    check_types(model, where)
    return model
