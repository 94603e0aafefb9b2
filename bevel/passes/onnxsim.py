"""onnxsim as a guest: its result is taken only if nothing is lost."""

import onnx
import onnx_ir as ir
import onnxsim

from bevel.ir.canonical import canonicalize
from bevel.ir.cost import cost
from bevel.ir.record import carry

# onnxsim holds a model several times in memory, and cannot pass protobuf's 2 GB.
LARGEST = 500 * 2**20
FAILURES = (RuntimeError, ValueError, TypeError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError)


def run_onnxsim(model: ir.Model) -> tuple[str, ...]:
    """Replace the graph of `model` by what onnxsim makes of it, and return notes: why it was not done, if so.

    Its result is dropped if it is larger (it duplicates tied weights and folds constants without bound), lacks node
    metadata, or changes inputs or outputs.
    """
    if cost(model).bytes > LARGEST:
        return (f"onnxsim not run: the model is above {LARGEST >> 20} MB",)
    try:
        proto, _ = onnxsim.simplify(ir.to_proto(model), check_n=0, include_subgraph=True)
    except FAILURES as error:
        return (f"onnxsim failed: {' '.join(str(error).split())[:200]}",)
    result = ir.from_proto(proto)
    canonicalize(result)
    lost = _loss(model, result)
    if lost:
        return (f"onnxsim's result dropped: {lost}",)
    carry(model.graph, result.graph)
    model.graph = result.graph
    return ("onnxsim's result taken",)


def _loss(model: ir.Model, result: ir.Model) -> str:
    """Say what `result` lacks, nothing if it is as good."""
    if _interface(model) != _interface(result):
        return "it changes inputs or outputs"
    if cost(result).bytes > cost(model).bytes:
        return "it is larger (tied weights duplicated, or constants folded)"
    if any(node.metadata_props for node in model.graph) and not any(node.metadata_props for node in result.graph):
        return "it lost the nodes' metadata"
    return ""


def _interface(model: ir.Model) -> list[tuple[str | None, ir.DataType | None, str]]:
    values = (*model.graph.inputs, *model.graph.outputs)
    return [(value.name, value.dtype, str(value.shape)) for value in values]
