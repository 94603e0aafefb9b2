"""What a model says about itself: version of the format, versions of the operator sets."""

from typing import Final

import onnx

from bevel.errors import InvalidModel, UnsupportedModel
from bevel.frontends.onnx.tensors import check_text

NEWER: Final = "upgrade the onnx and onnxruntime packages, or export for an older version"
STANDARD: Final = ("", "ai.onnx")


def check_header(proto: onnx.ModelProto, where: str) -> None:
    """Refuse what is no model, or one of a version that nothing here understands."""
    if not proto.HasField("graph") or proto.ir_version < 1:
        raise InvalidModel(
            "is no ONNX model: it has no graph or no version of the format",
            where=where,
            remedy="check that this is the .onnx file, complete, and not its external data",
        )
    if proto.ir_version > onnx.IR_VERSION:
        raise UnsupportedModel(
            f"has version {proto.ir_version} of the ONNX format; up to {onnx.IR_VERSION} is known",
            where=where,
            remedy=NEWER,
        )
    check_text((proto.producer_name, proto.producer_version, proto.domain, proto.doc_string), where)
    check_opsets(proto, where)
    if proto.training_info:
        raise UnsupportedModel("holds training graphs", where=where, remedy="export the model for inference")


def check_opsets(proto: onnx.ModelProto, where: str) -> None:
    """Refuse a model without one known version of the standard operator set."""
    seen: dict[str, int] = {}
    for opset in proto.opset_import:
        domain = "" if opset.domain in STANDARD else opset.domain
        if seen.setdefault(domain, opset.version) != opset.version or opset.version < 1:
            raise InvalidModel(
                f"imports version {opset.version} of operator set {opset.domain!r}",
                where=where,
                remedy="one positive version of each operator set can be imported",
            )
    if not seen:
        raise InvalidModel("imports no operator set", where=where, remedy="export the model again")
    newest = onnx.defs.onnx_opset_version()
    if seen.get("", 1) > newest:
        raise UnsupportedModel(f"uses opset {seen['']}; up to {newest} is known", where=where, remedy=NEWER)


def name_standard(proto: onnx.ModelProto) -> None:
    """Import the standard operator set by its short name, which is the empty one, wherever it has its long name."""
    for opset in (*proto.opset_import, *(each for function in proto.functions for each in function.opset_import)):
        if opset.domain in STANDARD:
            opset.domain = ""
